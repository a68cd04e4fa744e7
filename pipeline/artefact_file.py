"""The file of an artefact: a tar whose first member tells what it is and where the others lie."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from focusdpo.data_schemas.runs import Artefact
from focusdpo.pipeline import tars
from focusdpo.pipeline.keys import digest

INDEX = "artefact.json"
HEAD = 16384
"""Bytes read for an index in one go; most are smaller."""


@dataclass(frozen=True, slots=True)
class Index:
    """What an artefact's first member says, and where the others lie in the file."""

    artefact: Artefact
    spans: Mapping[str, tars.Span]

    @property
    def end(self) -> int:
        """Bytes up to the end of the last member."""
        return max(start + size for start, size in self.spans.values())


def artefact_bytes(artefact: Artefact, contents: Mapping[str, bytes]) -> bytes:
    """The file of an artefact; spans in its index count from the end of the index."""
    packed, spans = tars.pack(contents)
    values = dataclasses.asdict(artefact)
    # Times differ from run to run, and these bytes must not.
    del values["seconds"]
    index = {**values, "spans": spans}
    sink = io.BytesIO()
    written = tars.append(sink, INDEX, _canonical({**index, "digest": digest(_canonical(index))}))
    sink.write(packed)
    tars.finish(sink, written + len(packed))
    return sink.getvalue()


def read_index(first: Callable[[int], bytes], where: str, seconds: float) -> Index:
    """The index of a file whose first n bytes `first(n)` reads. ValueError, KeyError, TypeError or
    AttributeError when its bytes are not those that were written."""
    head = first(HEAD)
    size = tars.first_size(head, where)
    end = tars.BLOCK + size + (-size % tars.BLOCK)
    if end > len(head):
        head = first(end)
    values = json.loads(head[tars.BLOCK : tars.BLOCK + size])
    if values.pop("digest") != digest(_canonical(values)):
        raise ValueError("its bytes are not those that were written")
    spans = {name: (end + int(a), int(b)) for name, (a, b) in values.pop("spans").items()}
    values["inputs"] = tuple(values["inputs"])
    return Index(Artefact(**values, seconds=seconds), spans)


def _canonical(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True).encode()
