"""Taking samples out of a shard in place.

A shard keeps its name, its size and the place of every other sample, so that all versions and all
readers that know it go on reading; where a sample was, there is one member of zeros. Its name
`__purged__` is what webdataset and `datasets` pass over.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline import tars

BLANK = "__purged__"


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample as it lies in a shard: its members' span in bytes."""

    pair_id: str
    subject_ids: tuple[str, ...]
    start: int
    end: int


def samples(data: bytes, where: str) -> list[Sample]:
    """All samples of a shard, in order. UserError names `where` when it is damaged."""
    found: list[Sample] = []
    name, start, end = "", 0, 0
    subjects: tuple[str, ...] = ()
    for member, offset, content in _members(data, where):
        key, _, field = member.partition(".")
        if key != name:
            if name and name != BLANK:
                found.append(Sample(name, subjects, start, end))
            name, start, subjects = key, offset, ()
        end = offset + tars.BLOCK + len(content) + (-len(content) % tars.BLOCK)
        if field == "json":
            subjects = _subjects(content, where)
    if name and name != BLANK:
        found.append(Sample(name, subjects, start, end))
    return found


def without(data: bytes, gone: Collection[str], where: str) -> bytes | None:
    """The shard without the samples that show one of the subjects; None when no other is left."""
    theirs = [one for one in samples(data, where) if set(gone) & set(one.subject_ids)]
    if len(theirs) == len(samples(data, where)):
        return None
    blanked = bytearray(data)
    for one in theirs:
        sink = io.BytesIO()
        tars.append(sink, BLANK, bytes(one.end - one.start - tars.BLOCK))
        blanked[one.start : one.end] = sink.getvalue()
    return bytes(blanked)


def _members(data: bytes, where: str) -> Iterator[tuple[str, int, bytes]]:
    """Names, offsets of their headers, and contents."""
    offset = 0
    for name, content in tars.members(data, where):
        yield name, offset, content
        offset += tars.BLOCK + len(content) + (-len(content) % tars.BLOCK)


def _subjects(content: bytes, where: str) -> tuple[str, ...]:
    try:
        return tuple(json.loads(content)["pair"]["subject_ids"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: a sample's json cannot be read ({error})") from error
