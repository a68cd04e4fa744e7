"""Everything that touches bytes, near and far."""
