"""Recipes of the first edition's models."""
