"""Fixtures of the flows' tests."""

from toy_root import built, toy, toy_made
from toy_team import team

__all__ = ["built", "team", "toy", "toy_made"]
