"""Errors that a user can mend, and the words of texts that count."""

from __future__ import annotations

import re
from collections import Counter


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


_SAME = {"fish", "sheep", "deer"}
NUMBERS = {2: "two", 3: "three", 4: "four"}


def plural(noun: str) -> str:
    """Of a regular noun, as in subjects, boxes, entries, and of animals that are many as one."""
    if noun in _SAME:
        return noun
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in {"a", "e", "i", "o", "u", ""}:
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def counted(count: int, noun: str) -> str:
    """As in "1 shard", "2 shards", "0 shards"."""
    return f"{count} {noun if count == 1 else plural(noun)}"


_YOU = r"uni(?![dmn])|u[krst][aeiou]|ufo|u\b|eu|ewe|on[ec]e?\b"
"""Begins with a vowel and is spoken with a consonant: unit, utensil, U-shaped, ewe, one, once."""
_AN = re.compile(rf"\b(a) (?=[aeiou]|hour)(?!{_YOU})", re.IGNORECASE)


def in_english(prompt: str) -> str:
    """A prompt as people are shown it: "two dogs and an airplane on sand" for "a dog, a dog and a
    airplane on sand", which is how prompts are made, stored and read by models."""
    head, on, ground = prompt.partition(" on ")
    things = re.split(r", | and ", head)
    counts = Counter(things)
    if len(counts) < len(things) <= 4 and all(thing.startswith("a ") for thing in things):
        named = [
            thing if count == 1 else f"{NUMBERS[count]} {plural(thing[2:])}"
            for thing, count in counts.items()
        ]
        head = " and ".join([", ".join(named[:-1]), named[-1]] if named[1:] else named)
    return _AN.sub(r"\1n ", f"{head}{on}{ground}")
