"""The reference of the Python modules, from their docstrings: a page for each of some folders."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "records": (
        "Records that stages, training and evaluation exchange (`focusdpo.data_schemas`).",
        ("data_schemas/*.py",),
    ),
    "datasets": (
        "A dataset root and a run's folder, near and far (`focusdpo.store`).",
        ("store/*.py",),
    ),
    "stages": (
        "The stages of a build and the protocols that models fit (`focusdpo.pipeline`).",
        ("pipeline/*.py", "pipeline/subjects/*.py", "pipeline/upkeep/*.py"),
    ),
    "training": (
        "Focus maps, objectives, backbones' protocol and the training loop (`focusdpo.model`).",
        ("model/*.py", "model/training/*.py"),
    ),
    "evaluation": (
        "Protocols, metrics and intervals (`focusdpo.evaluation`), exports (`focusdpo.sharing`).",
        ("evaluation/*.py", "sharing/*.py"),
    ),
    "jobs": (
        "The jobs behind the commands (`focusdpo.flows`), as plain calls.",
        ("flows/config.py", "flows/settings.py", "flows/*/run.py", "flows/generate/inference.py"),
    ),
}
"""Page -> what it is about, and its modules."""


def python_pages() -> dict[str, str]:
    """Page -> its Markdown; mkdocstrings fills in the modules."""
    return {
        f"reference/{name}.md": "\n\n".join(
            [f"# Python: {name}", about, *(f"::: {module}" for module in modules_of(patterns))]
        )
        + "\n"
        for name, (about, patterns) in PAGES.items()
    }


def modules_of(patterns: tuple[str, ...]) -> list[str]:
    """Dotted names of the modules that the patterns name, by folder and name."""
    files = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [
        ".".join(("focusdpo", *path.relative_to(ROOT).with_suffix("").parts))
        for path in files
        if path.name != "__init__.py"
    ]
