"""Generators behind the `Backbone` protocol."""
