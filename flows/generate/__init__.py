"""Painting with a base and an adapter."""
