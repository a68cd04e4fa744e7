"""The commands that are disturbed: what each starts from, how it is called, what it must leave."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.tables import arrow_table
from focusdpo.store.keys import SEAL
from focusdpo.store.manifests import TWIN, read_twin

from .processes import Launcher

TIMES = {
    *("seconds", "created", "started", "decided", "promoted", "machine", "wall_seconds"),
    "data_seconds",
    *("digests", "purged"),
}
"""Fields that tell when, how fast and where: not what. A manifest's digests are of such files."""
SUBJECTS = {"red": ("disc", 0.0), "blue": ("disc", 240.0), "green": ("square", 120.0)}
FEW = ("red", "blue")

State = dict[str, str]
"""Path -> digest of what a command decides."""


class Job:
    """A command on a folder that every trial makes anew at the same path."""

    name: str
    suite: str
    scenarios: tuple[str, ...] = ("new",)
    result: str
    """The folder below `now` that the command fills."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.now = work / "now"
        self.launcher = Launcher(self.suite, work / "output")

    @property
    def out(self) -> Path:
        """What the command fills."""
        return self.now / self.result

    @property
    def address(self) -> str:
        """`out` as the command is told."""
        return str(self.out)

    def base(self, scenario: str) -> Path | None:
        """A folder whose copy `out` is in the beginning."""
        return None

    def lay(self, scenario: str) -> None:
        """Everything as it is before the command."""
        for path in self.now.iterdir() if self.now.is_dir() else ():
            shutil.rmtree(path)
        self.now.mkdir(parents=True, exist_ok=True)
        base = self.base(scenario)
        if base is not None:
            shutil.copytree(base, self.out)

    def arguments(self, scenario: str) -> list[str]:
        raise NotImplementedError

    def is_decided(self, path: str) -> bool:
        """Whether a file below `out` is part of the result, and not a lock, a log or a preview."""
        raise NotImplementedError

    def state(self) -> State:
        """Of all that the command has decided so far, times left out."""
        return {
            name: digest_of(path) for name, path in files_below(self.out) if self.is_decided(name)
        }

    def finished_units(self) -> frozenset[str]:
        """Keys of the partitions' artefacts that are there."""
        return frozenset()


SMALL = (
    *("--set", "compose.pair_rate=1", "--set", "compose.triple_rate=0"),
    *("--set", "compose.variants=1", "--set", "compose.same_class=true"),
    *("--set", "generate.candidates=3", "--set", "shard.max_pairs=4"),
)
"""A build of a few seconds."""
HELD_OUT = ("--set", "held_out={singles: 1, pairs: 2, same_class_pairs: 1, triples: 1}")


class Build(Job):
    """build-dataset, into an empty root and into one that has a version of fewer subjects."""

    name, suite, result = "build-dataset", "toy_suite", "root"
    scenarios = ("new", "grown")

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        import toy_suite

        for scenario, names in (("grown", SUBJECTS), ("new", FEW)):
            toy_suite.write_subjects(self.subjects(scenario), {n: SUBJECTS[n] for n in names})
        self._before = work / "before"

    def base(self, scenario: str) -> Path | None:
        return self._before if scenario == "grown" else None

    def subjects(self, scenario: str) -> Path:
        """The folder of subjects that a scenario is built from."""
        return self.work / f"subjects-{scenario}"

    def arguments(self, scenario: str) -> list[str]:
        subjects = str(self.subjects(scenario))
        return [
            *("build-dataset", "--root", self.address, "--subjects", subjects),
            *SMALL,
            *("--no-prefect", "--json"),
        ]

    def grow(self) -> None:
        """Make the root that scenario `grown` begins with."""
        self.lay("new")
        code = self.launcher.start(self.arguments("new"), self.work, {}).wait()
        assert code == 0, "the build of few subjects failed"
        self.out.rename(self._before)

    def is_decided(self, path: str) -> bool:
        return is_of_dataset(path)

    def finished_units(self) -> frozenset[str]:
        return artefacts_below(self.out)


class Train(Job):
    """train, on the dataset that the undisturbed build left."""

    name, suite, result = "train", "toy_trainer", "run"
    settings: tuple[str, ...] = (
        *("steps=8", "save_every=2", "batch_pairs=2", "mixed_precision=no", "warmup=2"),
        *("lora.rank=2", "ema=0.9", "tensorboard=false"),
    )

    def __init__(self, work: Path, dataset: Path) -> None:
        super().__init__(work)
        self.dataset = dataset

    def arguments(self, scenario: str) -> list[str]:
        given = [word for one in self.settings for word in ("--set", f"train.{one}")]
        own = ["train", "--root", str(self.dataset), "--out", str(self.out)]
        return [*own, *given, "--no-prefect", "--json"]

    def is_decided(self, path: str) -> bool:
        return not any(part.startswith(".") for part in path.split("/"))


REPORT = ("report.html", "report.json")
"""Pages that tell times."""


class Evaluate(Job):
    """evaluate, of the adapter that the undisturbed training left."""

    name, suite, result = "evaluate", "toy_trainer", "evaluation"

    def __init__(self, work: Path, adapter: Path) -> None:
        super().__init__(work)
        self.adapter = adapter

    def arguments(self, scenario: str) -> list[str]:
        return [
            *("evaluate", "--adapter", str(self.adapter), "--out", str(self.out)),
            *HELD_OUT,
            *("--no-prefect", "--json"),
        ]

    def is_decided(self, path: str) -> bool:
        return not path.endswith((".part", *REPORT))


class Retrain(Job):
    """retrain: build, train, evaluate and promote, in a folder of models."""

    name, suite, result = "retrain", "toy_trainer", "models"

    def __init__(self, work: Path, subjects: Path) -> None:
        super().__init__(work)
        self.subjects = subjects

    def arguments(self, scenario: str) -> list[str]:
        given = (*Train.settings, "steps=4")
        settings = [word for one in given for word in ("--set", f"train.{one}")]
        return [
            *("retrain", "--out", str(self.out), "--subjects", str(self.subjects)),
            *SMALL,
            *settings,
            *HELD_OUT,
            *("--no-prefect", "--json"),
        ]

    def is_decided(self, path: str) -> bool:
        if path.startswith("dataset/"):
            return is_of_dataset(path.removeprefix("dataset/"))
        hidden = any(part.startswith(".") for part in path.split("/"))
        return not hidden and not path.endswith((".part", ".tmp", *REPORT))

    def finished_units(self) -> frozenset[str]:
        return artefacts_below(self.out / "dataset")


def is_of_dataset(path: str) -> bool:
    """Whether a file of a dataset root is decided by what it is built from. Artefacts' seconds,
    and build.json with a build's, are not."""
    first, *_ = path.split("/")
    if path.endswith((".part", "/build.json")) or (first == "stages" and path.endswith(".json")):
        return False
    return first in {"stages", "shards", "versions", "LATEST", "dataset.json"}


def artefacts_below(root: Path) -> frozenset[str]:
    """Keys of the partitions' artefacts in a dataset root."""
    return frozenset(
        Path(name).stem
        for name, _ in files_below(root)
        if name.startswith("stages/") and name.endswith(".tar")
    )


def files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """All files, by path relative to the folder; what goes away meanwhile is left out."""
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where) / name
            yield path.relative_to(folder).as_posix(), path


def digest_of(path: Path) -> str:
    """Of a file's content without its times."""
    return digest_of_data(path.name, path.read_bytes())


def digest_of_data(name: str, data: bytes) -> str:
    """The same of bytes that lie elsewhere."""
    data = _without_times(name, data)
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _without_times(name: str, data: bytes) -> bytes:
    if name.endswith(".json"):
        return _json_without_times(data)
    if name.endswith(".parquet"):
        return _table_without_times(data)
    files = read_twin(data) if name == TWIN else None
    if files is None:
        return data
    return b"".join(_without_times(*one) for one in sorted(files.items()))


def _json_without_times(data: bytes) -> bytes:
    try:
        value = _pruned(json.loads(data))
        if isinstance(value, dict):
            value.pop(SEAL, None)  # of the times, too
        return json.dumps(value, sort_keys=True).encode()
    except ValueError:
        return data


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _pruned(one) for name, one in value.items() if name not in TIMES}
    return [_pruned(one) for one in value] if isinstance(value, list) else value


def _table_without_times(data: bytes) -> bytes:
    import pyarrow as pa

    try:
        table = arrow_table(data)
    except (pa.ArrowException, OSError):
        return data
    return repr(table.drop_columns(sorted(TIMES & set(table.column_names))).to_pylist()).encode()
