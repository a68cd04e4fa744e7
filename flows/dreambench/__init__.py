"""Evaluation by DreamBench's protocols."""
