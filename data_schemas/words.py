"""English for texts that count or name a class."""

from __future__ import annotations

VOWEL_SOUND = ("a", "e", "i", "o", "u")
AS_CONSONANT = ("eu", "one", "uni", "use", "ut", "ukulele")
"""Beginnings that are written with a vowel and spoken with a consonant."""
SILENT_H = ("heir", "honest", "honour", "honor", "hour")


def plural(noun: str) -> str:
    """Of a regular noun, as in subjects, boxes, entries."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in {"a", "e", "i", "o", "u", ""}:
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def counted(count: int, noun: str) -> str:
    """As in "1 shard", "2 shards", "0 shards"."""
    return f"{count} {noun if count == 1 else plural(noun)}"


def with_article(noun: str) -> str:
    """As in "a dog", "an airplane", "a unicorn"."""
    word = noun.lower()
    vowel = word.startswith(VOWEL_SOUND) and not word.startswith(AS_CONSONANT)
    return f"{'an' if vowel or word.startswith(SILENT_H) else 'a'} {noun}"
