"""Which training runs, evaluations and exports lie in the folders that the studio was told of.

A folder is what the files in it say; nothing outside those folders is looked at, and links that
lead out of them are not followed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from focusdpo.studio.places import runs_folder
from focusdpo.studio.settings import StudioConfig

DEPTH = 4
"""How far below a folder of --runs."""
MOST_FOLDERS = 20_000
SKIPPED = {"stages", "shards", "versions", "checkpoints", "tensorboard", "metrics", "pictures"}


@dataclass(frozen=True)
class RunFolder:
    """A folder that something was made in."""

    id: str
    """For addresses: a hash of the path, so that no address names a path."""
    name: str
    """Below the folder that was told of."""
    path: Path
    finished: bool
    changed: float
    """When, in seconds."""


@dataclass(frozen=True)
class Found:
    """All of them, the newest first."""

    training: tuple[RunFolder, ...]
    evaluations: tuple[RunFolder, ...]
    exports: tuple[RunFolder, ...]

    def run(self, id: str) -> RunFolder | None:
        return next((one for one in self.training if one.id == id), None)

    def evaluation(self, id: str) -> RunFolder | None:
        return next((one for one in self.evaluations if one.id == id), None)

    def adapters(self) -> list[RunFolder]:
        """Runs whose adapter can be used."""
        return [one for one in self.training if (one.path / "adapter").is_dir()]


def find_runs(config: StudioConfig) -> Found:
    """What there is now."""
    own = runs_folder(config)
    tops = list(dict.fromkeys([*(one.absolute() for one in config.runs), own]))
    training: dict[str, RunFolder] = {}
    evaluations: dict[str, RunFolder] = {}
    exports: dict[str, RunFolder] = {}
    for top in tops:
        for path, names in _folders(top):
            if "scenes.parquet" in names and "rows.json" in names:
                one = _folder(top, path, "run.json" in names, "rows.json")
                evaluations.setdefault(one.id, one)
            elif "config.json" in names and names & {"metrics", "run.json", "steps.parquet"}:
                one = _folder(top, path, "run.json" in names, "config.json")
                training.setdefault(one.id, one)
            elif "README.md" in names and names & {"adapter.json", "data"}:
                one = _folder(top, path, True, "README.md")
                exports.setdefault(one.id, one)
    return Found(_newest(training), _newest(evaluations), _newest(exports))


def _newest(found: dict[str, RunFolder]) -> tuple[RunFolder, ...]:
    return tuple(sorted(found.values(), key=lambda one: (-one.changed, one.name)))


def _folders(top: Path) -> Iterator[tuple[Path, set[str]]]:
    """Folders from `top` down with the names in them; what looks like a run is not entered."""
    left, seen = [(top, 0)], 0
    while left and seen < MOST_FOLDERS:
        path, depth = left.pop()
        try:
            with os.scandir(path) as entries:
                there = list(entries)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        seen += 1
        names = {one.name for one in there}
        yield path, names
        if depth == DEPTH or "dataset.json" in names:
            continue
        left += [
            (path / one.name, depth + 1)
            for one in there
            if one.is_dir(follow_symlinks=False)
            and not one.name.startswith(".")
            and one.name not in SKIPPED
        ]


def _folder(top: Path, path: Path, finished: bool, file: str) -> RunFolder:
    name = path.name if path == top else f"{top.name}/{path.relative_to(top).as_posix()}"
    try:
        changed = (path / file).stat().st_mtime
    except FileNotFoundError:  # taken away meanwhile
        changed = 0.0
    id = hashlib.blake2b(str(path).encode(), digest_size=8).hexdigest()
    return RunFolder(id, name, path, finished, changed)
