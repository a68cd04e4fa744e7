"""Pairs made elsewhere, as a dataset version."""
