"""The rules of the house that import-linter cannot say. Its contracts (who may import whom) stand
in pyproject.toml and are checked by `make lint`; docs/architecture.md draws them."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TOOL: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
CONTRACTS = {one["id"]: one for one in TOOL["importlinter"]["contracts"]}
PRODUCT: tuple[str, ...] = tuple(TOOL["setuptools"]["package-dir"].values())
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in (*PRODUCT, "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "__init__.py"
}
MOST_MODULES = 15
MOST_LINES = 500
OF_EVERY_JOB = {"run", "config", "commands"}
"""Names that each job's folder gives to its own."""

STUDIO_COMMAND = ("flows.commands.studio", "studio.app")
"""The one way up: the command that starts the studio, in its function."""
HEAVY = {
    *("torch", "diffusers", "transformers", "prefect", "open_clip", "matplotlib", "ray", "gradio"),
    *("starlette", "uvicorn", "segment_anything"),
}
LIGHT = (
    *("data_schemas.", "store.", "pipeline.", "reports.", "sharing."),
    *("flows.build.", "flows.retrain.", "flows.commands.", "flows.config", "flows.cli"),
)
LIGHT_TOO = (
    "pipeline.adapters.segmenters.grounding_sam",
    "pipeline.adapters.segmenters.grounding_sam_hf",
    "model.backbones.sdxl_ip_adapter",
)
"""Settings and checks of heavy parts."""
HEAVY_FOR_A_REASON = ("pipeline.adapters.", "flows.build.cluster.")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imported_modules(path: Path) -> set[str]:
    """Modules of ours that a file imports, at its top or in a function."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix("focusdpo.") for name in names} & set(MODULES)


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a ring, the first of them twice; empty without one."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return [str(name) for name in error.args[1]]
    return []


def test_every_folder_of_tests_is_gone_through(request: pytest.FixtureRequest) -> None:
    """pytest passes over folders of some names, `build` among them, and says nothing."""
    passed_over = request.config.getini("norecursedirs")
    folders = {part for path in (ROOT / "tests").rglob("test_*.py") for part in path.parts}
    assert [name for name in folders if any(fnmatch(name, one) for one in passed_over)] == []


def test_no_module_imports_itself_through_others() -> None:
    """import-linter's contract compares siblings and leaves a few imports out; this leaves none."""
    imports = {name: imported_modules(path) for name, path in MODULES.items()}
    importer, imported = STUDIO_COMMAND
    imports[importer].remove(imported)
    assert circle(imports) == []


def test_a_circle_is_seen(tmp_path: Path) -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert sorted(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})[1:]) == ["b", "c"]
    lazy = tmp_path / "lazy.py"
    lazy.write_text("import os\ndef f():\n    from focusdpo.store.keys import stable_hash\n")
    assert imported_modules(lazy) == {"store.keys"}


def test_few_modules_stand_side_by_side() -> None:
    count = Counter(name.rpartition(".")[0] for name in MODULES)
    crowded = {folder: n for folder, n in count.items() if n > MOST_MODULES}
    assert crowded == {}


def test_a_module_is_an_idea() -> None:
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: n for name, n in lines.items() if n > MOST_LINES} == {}


def test_a_name_is_used_for_one_module() -> None:
    modules = defaultdict(list)
    for name in MODULES:
        modules[name.rpartition(".")[2]].append(name)
    twice = {name: where for name, where in modules.items() if len(where) > 1}
    assert set(twice) <= OF_EVERY_JOB, twice


def test_imports_are_absolute() -> None:
    relative = [
        f"{name}:{node.lineno}"
        for name, path in MODULES.items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_every_folder_has_its_layer() -> None:
    """A new folder beside the others is in no contract until it is named in one."""
    layers = CONTRACTS["layers"]["layers"]
    named = {name.strip() for layer in layers for name in layer.split("|")}
    assert named == {f"focusdpo.{folder}" for folder in PRODUCT} | {"benchmarks"}
    banned = set(TOOL["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"])
    assert banned == set(PRODUCT), "a bare `import store` gives a second module of the same file"


def test_importing_loads_nothing_heavy() -> None:
    """`--help`, a look at a store and a run in which nothing changed must not wait for torch."""
    light = [
        f"focusdpo.{name}"
        for name in MODULES
        if (name.startswith(LIGHT) and not name.startswith(HEAVY_FOR_A_REASON)) or name in LIGHT_TOO
    ]
    assert len(light) > 50
    assert heavy_of(light) == ""


def test_heavy_imports_are_seen() -> None:
    assert heavy_of(["json", "starlette.status"]) == "starlette.status loads starlette\n"


ARCHITECTURE = ROOT / "docs" / "architecture.md"


def test_the_floor_plan_is_the_contract() -> None:
    text = ARCHITECTURE.read_text("utf-8")
    drawn = re.findall(r"^\| `(\w+)/` \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE)
    layers = CONTRACTS["layers"]["layers"]
    named = [name.strip() for layer in layers for name in layer.split("|")]
    assert drawn == [name.removeprefix("focusdpo.") for name in named]


def heavy_of(modules: list[str]) -> str:
    """Which of these, imported one after the other, loads a heavy package first."""
    code = (
        "import importlib, sys\n"
        "seen = set()\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    new = ({HEAVY!r} & set(sys.modules)) - seen\n"
        "    seen |= new\n"
        "    for package in sorted(new):\n"
        "        print(name, 'loads', package)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout
