"""Errors that a user can mend, and the words of texts that count."""

from __future__ import annotations

from focusdpo.data_schemas.prompts import plural


class UserError(ValueError):
    """Bad input: the message names the file or field, what was expected and what to do."""


class Forbidden(UserError):
    """A disk or store that refuses: who is asking may not do this here."""


class Full(UserError):
    """A disk without room, or a quota that is reached."""


class TakenAway(UserError):
    """A folder that was there before: somebody has taken it away meanwhile."""


class ClusterGone(UserError):
    """The cluster has died under this process: its client's threads are still in it, and may crash
    an interpreter that is taken apart around them."""


def run_doctor(root: object) -> str:
    """What to do about a damaged dataset."""
    return f"Run `focusdpo doctor --root {root} --repair`"


def counted(count: int, noun: str) -> str:
    """As in "1 shard", "2 shards", "0 shards"."""
    return f"{count} {noun if count == 1 else plural(noun)}"
