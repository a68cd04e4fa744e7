"""The first pictures of a long build, on one sheet that grows with it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.candidates import Sampled
from focusdpo.data_schemas.images import contact_sheet, encode_png
from focusdpo.flows.build.builder import Builder
from focusdpo.store.addresses import RemoteRoot

log = logging.getLogger(__name__)

FIRST = "first.png"


def first_pictures(builder: Builder, limit: int = 32) -> Path | RemoteRoot | None:
    """Write `first.png` below the root from the partitions generated so far, until it is full."""
    target = builder.store.root / FIRST
    if builder.pictures_shown >= limit:
        return target
    pictures: list[NDArray[np.uint8]] = []
    for partition in builder.partitions:
        key = builder.plan.key("generate", partition)
        if len(pictures) < limit and builder.store.has("generate", key):
            records = builder.store.read("generate", key, Sampled)
            pictures += [builder.store.image(record.image) for record in records]
    if not pictures:
        return None
    builder.pictures_shown = len(pictures)
    sheet = contact_sheet(pictures[:limit], columns=8, scale=2)
    builder.store.files.write(FIRST, encode_png(np.asarray(sheet)))
    log.info("first pictures: %s", target)
    return target
