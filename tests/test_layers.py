"""Who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT: dict[str, set[str]] = {
    "data_schemas": set(),
    "store": {"data_schemas"},
    "model": {"data_schemas", "store"},
    "pipeline": {"data_schemas", "store"},
    "pocket": {
        "data_schemas",
        "store",
        "model",
        "pipeline.parts",
        "pipeline.adapters.painter",
    },
    "evaluation": {"data_schemas", "store", "model", "pipeline", "pocket", "flows", "reports"},
    "reports": {"data_schemas", "store", "pipeline", "model", "evaluation", "flows"},
    "sharing": {"data_schemas", "store", "pipeline", "model", "evaluation", "reports", "flows"},
    # Of the studio flows know only the command that starts it.
    "flows": {
        *("data_schemas", "store", "model", "pipeline", "pocket"),
        *("evaluation", "reports", "sharing"),
    },
    "studio": {
        *("data_schemas", "store", "model", "pipeline", "evaluation"),
        *("reports", "sharing", "flows"),
    },
    "benchmarks": {
        *("data_schemas", "store", "model", "pipeline", "pocket", "evaluation"),
        *("reports", "sharing", "flows", "studio"),
    },
}
STUDIO_COMMANDS = {"flows/commands/studio.py"}
"""Who may import the studio, and only in a function."""
HEAVY = (
    *("torch", "diffusers", "transformers", "prefect", "open_clip", "matplotlib"),
    *("starlette", "uvicorn"),
)
LIGHT = (
    "data_schemas.tables",
    "data_schemas.shards",
    "store.artefacts",
    "store.versions",
    "pipeline.subjects.ingest",
    "pipeline.compose",
    "pipeline.shard",
    "flows.config",
    "flows.cli",
)


def own_imports(path: Path) -> set[str]:
    """Dotted names below focusdpo that a file imports, at its top or in a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix("focusdpo.") for name in names if name.startswith("focusdpo.")}


def is_allowed(name: str, layer: str) -> bool:
    return any(
        name == allowed or name.startswith(f"{allowed}.") for allowed in {layer, *MAY_IMPORT[layer]}
    )


def test_imports_point_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for layer in MAY_IMPORT
        for path in sorted((ROOT / layer).rglob("*.py"))
        for name in sorted(own_imports(path))
        if not is_allowed(name, layer)
        and not (name.startswith("studio.") and str(path.relative_to(ROOT)) in STUDIO_COMMANDS)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_relative_imports() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for layer in MAY_IMPORT
        for path in sorted((ROOT / layer).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not wrong, wrong


def test_the_command_line_imports_the_studio_in_functions_only() -> None:
    for name in STUDIO_COMMANDS:
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        at_top = [one.module for one in tree.body if isinstance(one, ast.ImportFrom)]
        assert not [one for one in at_top if (one or "").startswith("focusdpo.studio")], name


@pytest.mark.parametrize("module", LIGHT)
def test_importing_loads_nothing_heavy(module: str) -> None:
    """`--help` and a look at a store must not wait for torch."""
    code = f"import sys, focusdpo.{module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = sorted(set(run.stdout.split()) & set(HEAVY))
    assert not loaded, f"focusdpo.{module} loads {loaded}"
