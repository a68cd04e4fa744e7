"""The job evaluate."""
