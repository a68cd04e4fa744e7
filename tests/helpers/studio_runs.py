"""Folders as training runs and evaluations leave them, made by hand and small."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
from small_root import grey

from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.images import encode_png
from focusdpo.data_schemas.runs import EvalRow
from focusdpo.data_schemas.tables import to_parquet
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


def make_evaluation(
    out: Path, *, gain: float = 0.05, adapter: str = "", image: str = "", prompt: str = "a cat"
) -> Path:
    """Base and adapter on 14 scenes; scene 0 is the adapter's worst. `image`: what the record of
    scene 0's adapter names instead of its picture."""
    records = []
    for at in range(SCENES):
        for model in ("base", "adapter"):
            name = f"images/{model}-{at:02d}.png"
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(encode_png(grey(60 + 10 * at)))
            better = gain * (at + 1) if at else -0.4
            value = 0.5 + (better if model == "adapter" else 0.0)
            hidden = image and at == 0 and model == "adapter"
            records.append(_record(f"scene{at:02d}", model, image if hidden else name, value))
    (out / "references/s0").mkdir(parents=True)
    (out / "references/s0/0.png").write_bytes(encode_png(grey(200)))
    (out / "scenes.parquet").write_bytes(to_parquet(records, EvalScene))
    rows = [
        _row("base", 0.5, 0.45, 0.55),
        _row("adapter", 0.5 + gain, 0.45 + gain, 0.55 + gain),
        _row("adapter - base", gain, gain - 0.02, gain + 0.02),
    ]
    (out / "rows.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
    (out / "run.json").write_text(json.dumps({"protocol": "pocket/test", "adapter": adapter}))
    about = {"s0": {"class_name": "cat", "pictures": ["references/s0/0.png"]}}
    prompts = {one.scene_id: prompt for one in records}
    (out / "subjects.json").write_text(json.dumps({"subjects": about, "prompts": prompts}))
    return out


def _row(model: str, mean: float, low: float, high: float) -> EvalRow:
    return EvalRow(
        protocol="pocket/test", metric="identity", group="all", model=model,
        mean=mean, low=low, high=high, scenes=SCENES,
    )  # fmt: skip


def _record(scene: str, model: str, image: str, identity: float) -> EvalScene:
    values = {
        field.name: math.nan for field in dataclasses.fields(EvalScene) if field.type == "float"
    }
    return EvalScene(
        **values | {"identity": identity, "missing": 0.0, "duplicate": 0.0, "confusion": 0.0},
        protocol="pocket/test",
        model=model,
        scene_id=scene,
        index=0,
        image=image,
        subject_ids=("s0",),
        class_names=("cat",),
        held_out=False,
        seen=1,
        boxes=((0, 0, 8, 8),),
        matched=(identity,),
    )
