"""Fixtures of the flows' tests."""

from toy_root import toy

__all__ = ["toy"]
