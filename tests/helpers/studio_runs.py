"""Folders as training runs and evaluations leave them, made by hand and small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from evaluated import evaluation_folder

from focusdpo.model.training.config import TrainConfig
from focusdpo.model.training.monitor import Monitor

SCENES = 14


def make_run(out: Path, *, steps: int = 30, finished: bool = True) -> Path:
    """A training run with the tables that `Monitor` really writes."""
    out.mkdir(parents=True)
    config = TrainConfig(steps=40).model_dump(mode="json")
    (out / "config.json").write_text(json.dumps(config))
    add_steps(out, 0, steps)
    if finished:
        monitor = Monitor(out, start=steps, tensorboard=False)
        monitor.finish()
        about = {"steps": steps, "objective": "focus_dpo", "pairs": 5, "seconds": 3.5, "seed": 0}
        (out / "run.json").write_text(json.dumps(about))
        (out / "adapter").mkdir()
    return out


def add_steps(out: Path, start: int, steps: int) -> None:
    """What a run writes between two checkpoints."""
    monitor = Monitor(out, start=start, tensorboard=False)
    rng = np.random.default_rng(start)
    for step in range(start + 1, start + steps + 1):
        table = {
            "sigma": rng.uniform(0, 1, 4),
            "alignment": rng.uniform(0, 1, 4),
            "implicit_accuracy": rng.integers(0, 2, 4).astype(float),
        }
        monitor.add(step, table, {"loss": 1 / step, "grad_norm": 1.0})
    monitor.flush()
    monitor.close()


def make_evaluation(out: Path, *, gain: float = 0.05, adapter: str = "", **more: Any) -> Path:
    """Base and adapter on 14 scenes; scene 0 is the adapter's worst, the last its best."""
    gains = [-0.4, *(gain + 0.001 * at for at in range(1, SCENES))]
    return evaluation_folder(out, gains, about={"adapter": adapter}, **more)
