"""Datasets and adapters made ready to be given away."""
