"""Detectors and mask models behind the `Segmenter` protocol."""
