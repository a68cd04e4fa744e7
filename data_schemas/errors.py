"""Errors that a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: the message names the file or field, what was expected and what to do."""


class Forbidden(UserError):
    """A disk or store that refuses: who is asking may not do this here."""


class ClusterGone(UserError):
    """The cluster has died under this process: its client's threads are still in it, and may crash
    an interpreter that is taken apart around them."""


def run_doctor(root: object) -> str:
    """What to do about a damaged dataset."""
    return f"Run `focusdpo doctor --root {root} --repair`"
