"""The reference of the Python modules: one page a package, its text from docstrings."""

from __future__ import annotations

PUBLIC: dict[str, tuple[str, tuple[str, ...]]] = {
    "records": (
        "Records that stages, training and evaluation exchange (`focusdpo.data_schemas`).",
        tuple(
            f"focusdpo.data_schemas.{name}"
            for name in (
                "subjects",
                "scenes",
                "candidates",
                "pairs",
                "shards",
                "evaluations",
                "runs",
                "images",
                "addresses",
                "errors",
            )
        ),
    ),
    "datasets": (
        "A dataset root: store, versions, register, and the protocols that models fit "
        "(`focusdpo.pipeline`).",
        tuple(
            f"focusdpo.pipeline.{name}"
            for name in (
                "parts",
                "store",
                "versions",
                "dataset_diff",
                "registry",
                "retention",
                "purge",
                "files",
                "objects",
                "leases",
                "evaluate",
                "metrics",
                "compare",
            )
        ),
    ),
    "training": (
        "Focus maps, objectives, backbones and the training loop (`focusdpo.model`).",
        tuple(
            f"focusdpo.model.{name}"
            for name in (
                "backbone",
                "focus",
                "correspondence",
                "objectives",
                "adapter",
                "training",
                "checkpoint",
                "shard_index",
                "shard_cache",
            )
        ),
    ),
    "jobs": (
        "The jobs behind the commands (`focusdpo.flows`).",
        tuple(
            f"focusdpo.flows.{name}"
            for name in (
                "settings",
                "building",
                "incremental",
                "training",
                "evaluation",
                "retraining",
                "inference",
                "outputs",
                "sharing.dataset_export",
                "reports.report",
            )
        ),
    ),
}
"""Page -> what it is about, and its modules in the order in which one reads them."""


def python_pages() -> dict[str, str]:
    """Page -> its Markdown; mkdocstrings fills in the modules."""
    pages = {}
    for name, (about, modules) in PUBLIC.items():
        parts = [f"# Python: {name}", about, *(f"::: {module}" for module in modules)]
        pages[f"reference/{name}.md"] = "\n\n".join(parts) + "\n"
    return pages
