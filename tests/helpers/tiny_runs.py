"""Short training runs on the tiny backbone, and stops on their way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

SETTINGS: dict[str, Any] = {
    "steps": 12,
    "batch_pairs": 4,
    "lr": 1e-3,
    "warmup": 3,
    "mixed_precision": "no",
    "lora": {"rank": 2, "targets": ["to_q", "to_k", "to_v"]},
    "objective": {"beta": 100.0},
}


class Interrupted(Exception):
    """Stands for a kill in this process."""


def stop_at(step: int) -> Any:
    """A `progress` that stops the run after a step."""

    def progress(phase: str, done: int, total: int, figures: Any) -> None:
        if phase == "train" and done == step:
            raise Interrupted

    return progress


def table_rows(run: Path, name: str = "steps") -> list[dict[str, str]]:
    """A table that a run left, without times."""
    table = pq.read_table(run / f"{name}.parquet").to_pylist()
    return [{k: repr(v) for k, v in row.items() if not k.endswith("seconds")} for row in table]
