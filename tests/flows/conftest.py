"""Fixtures of the flows' tests."""

from toy_root import built, toy, toy_made

__all__ = ["built", "toy", "toy_made"]
