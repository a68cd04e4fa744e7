"""What is in the tree is in the wheel: an unlisted package works in a checkout only."""

from __future__ import annotations

import fnmatch
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
    "setuptools"
]
LAYERS = tuple(SETUPTOOLS["package-dir"].values())


def tracked_files() -> list[Path]:
    """Files of the layers that git knows; all files where there is no git."""
    run = subprocess.run(
        ["git", "ls-files", *LAYERS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if run.returncode == 0 and run.stdout:
        return [ROOT / line for line in run.stdout.splitlines() if (ROOT / line).is_file()]
    return [
        path
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]


def package_of(folder: Path) -> str:
    return "focusdpo." + ".".join(folder.relative_to(ROOT).parts)


def test_every_package_is_listed() -> None:
    found = {
        package_of(init.parent) for layer in LAYERS for init in (ROOT / layer).rglob("__init__.py")
    }
    assert found == set(SETUPTOOLS["packages"])


def test_every_folder_with_code_is_a_package() -> None:
    bare = {
        str(path.parent.relative_to(ROOT))
        for path in tracked_files()
        if path.suffix == ".py" and not (path.parent / "__init__.py").exists()
    }
    assert not bare


def test_every_layer_says_that_it_is_typed() -> None:
    assert [layer for layer in LAYERS if not (ROOT / layer / "py.typed").exists()] == []


def is_packaged(path: Path) -> bool:
    """Whether a package-data pattern of the nearest package covers a file."""
    folder = path.parent
    while not (folder / "__init__.py").exists():
        folder = folder.parent
    inside = path.relative_to(folder).as_posix()
    patterns = [
        *SETUPTOOLS["package-data"].get("*", []),
        *SETUPTOOLS["package-data"].get(package_of(folder), []),
    ]
    return any(
        fnmatch.fnmatch(inside, pattern) and inside.count("/") == pattern.count("/")
        for pattern in patterns
    )


def test_every_other_file_is_package_data() -> None:
    missing = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path.suffix != ".py" and not is_packaged(path)
    ]
    assert not missing


def test_the_links_for_type_checkers_cover_all_layers() -> None:
    links = {path.name: path.resolve() for path in (ROOT / ".typing" / "focusdpo").iterdir()}
    assert links == {layer: ROOT / layer for layer in LAYERS}


@pytest.mark.parametrize("limit_mib", [60])
def test_weights_stay_small(limit_mib: int) -> None:
    weights = [path for path in tracked_files() if path.parent.name == "weights"]
    size = sum(path.stat().st_size for path in weights) / 2**20
    assert size <= limit_mib
