"""The toy suite in place of the pocket one, and folders of subjects."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import toy_suite

from focusdpo.flows import wiring
from focusdpo.flows.cli import main

HUES = {"red": ("disc", 0.0), "blue": ("disc", 240.0), "green": ("square", 120.0)}
TOY_CLI = [sys.executable, str(Path(toy_suite.__file__).with_name("toy_cli.py"))]


@dataclass
class Toy:
    """A root and a folder of subjects for the toy suite."""

    subjects: Path
    root: Path

    def add(self, **hues: tuple[str, float]) -> None:
        toy_suite.write_subjects(self.subjects, hues)

    def tree(self, **given: object) -> dict[str, object]:
        """Settings of a small build."""
        compose = {"pair_rate": 1.0, "triple_rate": 0.0, "variants": 1, "same_class": True}
        base: dict[str, object] = {
            "root": str(self.root),
            "subjects": str(self.subjects),
            "compose": compose,
            "generate": {"candidates": 3},
        }
        return {**base, **given}

    @property
    def arguments(self) -> list[str]:
        """The same as command-line arguments."""
        return [
            *("build-dataset", "--root", str(self.root), "--subjects", str(self.subjects)),
            *("--set", "compose.pair_rate=1", "--set", "compose.triple_rate=0"),
            *("--set", "compose.variants=1", "--set", "compose.same_class=true"),
            *("--set", "generate.candidates=3", "--no-prefect"),
        ]

    def files(self, below: str = "") -> dict[str, bytes]:
        """Every file of the root that a build decides, but for times and logs."""
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in sorted((self.root / below).rglob("*"))
            if path.is_file()
            and path.name not in ("metrics.prom", "build.json")
            and not path.relative_to(self.root).parts[0].startswith(".")
            and not (path.suffix == ".json" and path.parts[-4] == "stages")
        }


def _world(folder: Path, patch: pytest.MonkeyPatch) -> Toy:
    """Red disc, blue disc, green square; parts are the toy's."""
    patch.setitem(wiring.SUITES, "pocket", "toy_suite")
    wiring.resident_parts.cache_clear()
    world = Toy(folder / "subjects", folder / "root")
    world.add(**HUES)
    return world


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    """Red disc, blue disc, green square; parts are the toy's; nothing is built."""
    yield _world(tmp_path, monkeypatch)
    wiring.resident_parts.cache_clear()


@pytest.fixture(scope="session")
def toy_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root that the command makes with `toy.arguments`, built once."""
    with pytest.MonkeyPatch.context() as patch:
        world = _world(tmp_path_factory.mktemp("toy"), patch)
        with pytest.raises(SystemExit) as ended:
            main(world.arguments)
    assert not ended.value.code
    wiring.resident_parts.cache_clear()
    return world.root


@pytest.fixture
def built(toy: Toy, toy_made: Path) -> Toy:
    """`toy` with a copy of `toy_made` as its root."""
    shutil.copytree(toy_made, toy.root)
    return toy
