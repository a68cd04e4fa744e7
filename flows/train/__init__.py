"""The job train."""
