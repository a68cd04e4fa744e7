"""What a training run leaves in its folder beside checkpoints: settings, tables, a summary."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.checkpoint import make_folder, write_file
from focusdpo.model.configs import TrainConfig
from focusdpo.model.looks import Looks
from focusdpo.model.monitor import mean_present

SUMMARY = "run.json"


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    adapter: Path
    steps: int
    seconds: float
    """Sum of the steps' times, over all the times it was started."""
    pairs: int
    resumed_from: int
    """The step it went on from; 0 for a fresh start."""
    final: dict[str, float]
    """Means of the diagnostics over the last tenth of the steps."""
    adapter_step: int
    """The step whose weights the adapter holds."""
    stopped: bool
    """Whether validation ended it before its last step."""
    validation: list[dict[str, float]]
    """A row per look: step and metrics."""


def write_config(out_dir: Path, config: TrainConfig) -> None:
    """The resolved settings, before the first step."""
    make_folder(out_dir)
    text = json.dumps(config.model_dump(mode="json"), indent=2)
    write_file(out_dir / "config.json", text.encode())


def write_summary(
    out_dir: Path,
    config: TrainConfig,
    rows: Sequence[dict[str, Any]],
    identity: dict[str, str],
    *,
    pairs: int,
    dataset_version: str,
    device: str,
    looks: Looks,
) -> None:
    """run.json, the last file: its presence means that the run is whole."""
    tail = rows[-max(1, len(rows) // 10) :]
    means = {name: mean_present(np.array([row[name] for row in tail], float)) for name in rows[0]}
    summary = {
        "steps": len(rows),
        "seconds": sum(row["seconds"] for row in rows),
        "pairs": pairs,
        "dataset_version": dataset_version,
        "identity": identity,
        "objective": config.objective.name,
        "seed": config.seed,
        "stopped": looks.stop,
        "adapter_step": looks.kept_step(len(rows)),
        "validation": looks.rows,
        "final": {k: v for k, v in means.items() if k != "step" and math.isfinite(v)},
        "machine": {
            "device": device,
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }
    write_file(out_dir / SUMMARY, json.dumps(summary, indent=2, sort_keys=True).encode())


def read_summary(out_dir: Path) -> dict[str, Any] | None:
    """run.json, or None if the run is not finished. UserError if it is damaged."""
    path = out_dir / SUMMARY
    if not path.is_file():
        return None
    try:
        summary = json.loads(path.read_text())
        summary["identity"]["config"], summary["steps"], summary["final"], summary["stopped"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Remove it and run the same command again: training "
            "goes on from the last checkpoint."
        ) from error
    return dict(summary)


def result_of(out_dir: Path, summary: dict[str, Any], resumed_from: int) -> TrainResult:
    """The summary as a record."""
    return TrainResult(
        adapter=out_dir / "adapter",
        steps=summary["steps"],
        seconds=summary["seconds"],
        pairs=summary["pairs"],
        resumed_from=resumed_from,
        final=summary["final"],
        adapter_step=summary["adapter_step"],
        stopped=summary["stopped"],
        validation=summary["validation"],
    )
