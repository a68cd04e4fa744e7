"""Stages of build-dataset on a Ray cluster."""
