"""Recipes of the second edition: from random weights to the shipped ones, one command each."""
