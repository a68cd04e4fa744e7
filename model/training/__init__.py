"""The training run: pairs in, an adapter out."""
