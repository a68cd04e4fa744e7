"""Backbones, focus maps, objectives and training: torch, tensors, no folders."""
