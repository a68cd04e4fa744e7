"""Errors that a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: the message names the file or field, what was expected and what to do."""
