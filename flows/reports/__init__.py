"""Pages that people look at: the report of a run, and what differs between two."""
