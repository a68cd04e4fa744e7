"""What a training run leaves in its folder, and its looks at validation scenes."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.training.checkpoint import make_folder, write_file
from focusdpo.model.training.config import TrainConfig, ValidationConfig
from focusdpo.model.training.monitor import mean_present
from focusdpo.model.training.run_state import RunState

Validate = Callable[[], Mapping[str, float]]
"""Paints validation scenes with the weights that are in place and measures them; higher is better
for `ValidationConfig.metric`."""


class Looks:
    """The looks of a run so far; they go into checkpoints, so a resumed run decides alike."""

    def __init__(
        self,
        config: ValidationConfig,
        validate: Validate | None,
        folder: Path,
        *,
        writes: bool = True,
    ) -> None:
        """`writes`: this is the process that keeps the best weights."""
        if config.every and validate is None:
            raise ValueError("train.validation.every is set and no `validate` was given")
        self._config, self._validate, self._folder = config, validate, folder
        self._writes = writes
        self.rows: list[dict[str, float]] = []

    def restore(self, rows: list[dict[str, Any]]) -> None:
        """The looks that a checkpoint tells of."""
        self.rows = [dict(row) for row in rows]

    def due(self, step: int) -> bool:
        """Whether the scenes are looked at after `step`."""
        return self._config.every > 0 and step % self._config.every == 0

    def look(self, state: RunState) -> None:
        """Measure the present weights, and keep them if they are the best so far."""
        assert self._validate is not None
        with state.averaged():
            values = dict(self._validate())
            if self._config.metric not in values:
                raise UserError(
                    f"train.validation.metric '{self._config.metric}': the validation measures "
                    f"{', '.join(sorted(values))}"
                )
            self.rows.append({"step": state.step, **values})
            is_best = self._config.keep == "best" and self.best_step == state.step
            if is_best and self._writes:
                write_file(self._file(state.step), _weights(state))

    @property
    def best_step(self) -> int:
        """The first step with the best value; 0 before any look."""
        if not self.rows:
            return 0
        return int(max(self.rows, key=lambda row: row[self._config.metric])["step"])

    @property
    def stop(self) -> bool:
        """Whether the last `patience` looks have all been no better than one before them."""
        since = [row for row in self.rows if row["step"] > self.best_step]
        return 0 < self._config.patience <= len(since)

    def kept_step(self, last: int) -> int:
        """The step whose weights the adapter of a run of `last` steps holds."""
        return (self.best_step if self._config.keep == "best" else 0) or last

    def forget_older(self) -> None:
        """Removes weights that are not the best; call after a checkpoint."""
        for path in self._folder.glob("best-*.safetensors"):
            if path != self._file(self.best_step):
                path.unlink()

    def use_best(self, state: RunState) -> None:
        """Puts the best weights in place, where the config asks for them."""
        from safetensors.torch import load

        if self._config.keep == "best" and self.best_step:
            tensors = load(self._file(self.best_step).read_bytes())
            for name, parameter in state.parameters.items():
                parameter.data.copy_(tensors[name])

    def _file(self, step: int) -> Path:
        return self._folder / f"best-{step:06d}.safetensors"


def _weights(state: RunState) -> bytes:
    from safetensors.torch import save

    return save({n: p.detach().cpu().contiguous() for n, p in state.parameters.items()})


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
