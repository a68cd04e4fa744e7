"""Exports: datasets and adapters in the layouts that others load."""
