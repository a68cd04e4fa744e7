"""The job build-dataset."""
