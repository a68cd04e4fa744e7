"""Section 3 of the report from a training run's folder: facts and notes; charts are drawn from its
tables by `report_training_charts`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.tables import arrow_table
from focusdpo.flows.reports.files import read_json, seconds_text
from focusdpo.flows.reports.focus import read_focus
from focusdpo.flows.reports.looks import look_charts, look_facts, look_notes
from focusdpo.flows.reports.training_charts import Columns, bucket_charts, curve_charts
from focusdpo.flows.reports.view import Fact, TrainingPart

AGAIN = "let `focusdpo train` end in this folder first"


def read_run(train_dir: Path) -> dict[str, Any]:
    """run.json of a finished training run. Raises UserError where there is none."""
    run = read_json(train_dir / "run.json", AGAIN)
    if not isinstance(run, dict):
        raise UserError(f"{train_dir / 'run.json'}: expected a JSON object; {AGAIN}")
    return run


def collect_training(train_dir: Path) -> TrainingPart:
    """Curves, buckets of sigma and focus maps of one run."""
    run = read_run(train_dir)
    config = read_json(train_dir / "config.json", AGAIN, default={})
    steps = _read_table(train_dir / "steps.parquet")
    buckets = _read_table(train_dir / "buckets.parquet")
    return TrainingPart(
        objective=str(run.get("objective", "unknown")),
        facts=(*_facts(run, config), *look_facts(run, config)),
        charts=curve_charts(steps, config) if steps else (),
        looks=look_charts(run, config),
        buckets=bucket_charts(buckets) if buckets else (),
        focus=read_focus(train_dir / "focus.safetensors"),
        notes=(*_notes(steps), *look_notes(run, config)),
    )


def _read_table(path: Path) -> dict[str, NDArray[np.float64]]:
    """Numeric columns of a Parquet file; {} when it is missing."""
    import pyarrow as pa

    if not path.is_file():
        return {}
    try:
        table = arrow_table(path.read_bytes())
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); train again") from error
    numeric = [
        f.name for f in table.schema if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)
    ]
    return {name: table[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in numeric}


def _facts(run: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Fact, ...]:
    objective = config.get("objective", {})
    lora = config.get("lora", {})
    facts = [Fact(label="steps", value=f"{run.get('steps', '?')}")]
    if "pairs" in run:
        facts.append(Fact(label="training pairs", value=str(run["pairs"])))
    if isinstance(run.get("seconds"), int | float):
        facts.append(Fact(label="time in steps", value=seconds_text(float(run["seconds"]))))
    for label, source, name in (
        ("pairs a step", config, "batch_pairs"),
        ("peak learning rate", config, "lr"),
        ("beta", objective, "beta"),
        ("LoRA rank", lora, "rank"),
        ("seed", run, "seed"),
    ):
        value = source.get(name)
        if value is not None:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            facts.append(Fact(label=label, value=text))
    if run.get("dataset_version"):
        facts.append(Fact(label="dataset version", value=str(run["dataset_version"])))
    machine = run.get("machine") or {}
    if machine:
        words = ", ".join(f"{name} {value}" for name, value in sorted(machine.items()))
        facts.append(Fact(label="trained on", value=words))
    return tuple(facts)


def _notes(steps: Columns) -> tuple[str, ...]:
    skipped = int(np.nansum(steps.get("skipped", np.zeros(1))))
    if not skipped:
        return ()
    were = "step was" if skipped == 1 else "steps were"
    return (f"{skipped} {were} skipped: the gradient was far above the usual (guards.spike).",)
