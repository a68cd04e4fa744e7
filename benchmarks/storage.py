"""How fast shards are written and read here, beside plain tarfile and webdataset alone.

All ways work on the same samples in the same folder, by turns, so that what else the machine does
falls on all alike; of each the fastest turn counts.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import BenchFigure
from focusdpo.store.local import LocalFiles
from focusdpo.store.samples import Place, checksum, fields_in, write_samples

WRITE_LIMIT, READ_LIMIT = 1 / 0.8, 1 / 0.9
"""Time against tarfile's and webdataset's: at least 0.8 and 0.9 of their speed."""
PICTURES = ("win", "lose", "prior", "complexity", "losecomplexity", "mask0", "ref0", "refmask0")

Sizes = dict[str, dict[str, int]]
"""Sample -> field -> bytes."""
Samples = Sequence[tuple[str, Mapping[str, bytes]]]


@dataclass(frozen=True)
class IoBench:
    """How much is written and read, and how often."""

    samples: int = 512
    picture_bytes: int = 20_000
    """Of each of the eight pictures of a sample. Compressed pictures are as random as these."""
    shards: int = 4
    repeats: int = 5

    def make(self, seed: int = 0) -> list[Samples]:
        """Samples with the fields of a pair of one subject, by shard."""
        random = np.random.default_rng(seed)
        header = {"split": "train", "pair": {"source": "rank", "prompt": "a cat on grass"}}
        made = []
        for number in range(self.samples):
            name = hashlib.blake2b(f"{number}".encode(), digest_size=8).hexdigest()
            fields = {f"{picture}.png": random.bytes(self.picture_bytes) for picture in PICTURES}
            made.append((name, {"json": json.dumps(header).encode(), **fields}))
        size = -(-self.samples // self.shards)
        return [made[at : at + size] for at in range(0, len(made), size)]


def measure(folder: Path, bench: IoBench | None = None) -> dict[str, float]:
    """Seconds of the fastest turn of each way, and MiB of the samples. RuntimeError when two ways
    disagree about what is in a shard."""
    bench = bench or IoBench()
    shards = bench.make()
    files = LocalFiles(folder)
    ours = [str(folder / "ours" / f"{at}.tar") for at in range(len(shards))]
    plain = [folder / f"plain-{at}.tar" for at in range(len(shards))]

    rows: dict[str, tuple[str, Place]] = {}

    def write_ours() -> None:
        for at, samples in enumerate(shards):
            places = write_samples(files, f"ours/{at}.tar", samples)
            for (name, _), place in zip(samples, places, strict=True):
                rows[name] = (f"ours/{at}.tar", place)

    def write_plain() -> None:
        for path, samples in zip(plain, shards, strict=True):
            _write_plain(path, samples)

    seconds = _by_turns({"write": write_ours, "tarfile": write_plain}, bench.repeats)
    if _read_ours(files, rows) != _read_webdataset(ours):
        raise RuntimeError("webdataset reads other samples than the loader")
    ways: dict[str, Callable[[], Any]] = {
        "read": lambda: _read_ours(files, rows),
        "webdataset": lambda: _read_webdataset(ours),
    }
    size = sum(len(data) for shard in shards for _, fields in shard for data in fields.values())
    return seconds | _by_turns(ways, bench.repeats) | {"mib": size / 2**20}


def figures(folder: Path, bench: IoBench | None = None) -> list[BenchFigure]:
    """The same as figures of `python -m benchmarks`."""
    results = measure(folder, bench)
    return [
        BenchFigure("shards: written", results["mib"] / results["write"], "MiB/s"),
        BenchFigure(
            "shards: write / plain tarfile, time",
            results["write"] / results["tarfile"],
            "",
            WRITE_LIMIT,
        ),
        BenchFigure("shards: read by the loader", results["mib"] / results["read"], "MiB/s"),
        BenchFigure(
            "shards: read / webdataset alone, time",
            results["read"] / results["webdataset"],
            "",
            READ_LIMIT,
        ),
    ]


def _by_turns(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def _write_plain(path: Path, samples: Samples) -> None:
    """As safe against a power cut as ours: synced."""
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample, fields in samples:
                for name, data in fields.items():
                    info = tarfile.TarInfo(f"{sample}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        file.flush()
        os.fsync(file.fileno())


def _read_ours(files: LocalFiles, rows: Mapping[str, tuple[str, Place]]) -> Sizes:
    """Every sample's fields by the way that training reads them: one read each, checked."""
    sizes = {}
    for name, (path, place) in rows.items():
        data = files.read(path, place.offset, place.size)
        if checksum(data) != place.checksum:
            raise RuntimeError(f"{path}: sample {name} is not what was written")
        sizes[name] = {field: len(content) for field, content in fields_in(data, path).items()}
    return sizes


def _read_webdataset(paths: Sequence[str]) -> Sizes:
    import webdataset

    data = webdataset.WebDataset([f"file:{path}" for path in paths], shardshuffle=False)
    return {
        sample["__key__"]: {
            name: len(data) for name, data in sample.items() if not name.startswith("__")
        }
        for sample in data
    }
