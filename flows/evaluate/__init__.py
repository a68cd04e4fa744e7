"""The job evaluate: base against adapter by a protocol."""
