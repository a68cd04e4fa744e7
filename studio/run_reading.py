"""A training run as it stands: finished, or while it is still being written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.tables import arrow_table
from focusdpo.flows.reports.focus import read_focus
from focusdpo.flows.reports.looks import look_charts
from focusdpo.flows.reports.training import collect_training
from focusdpo.flows.reports.training_charts import bucket_charts, curve_charts
from focusdpo.flows.reports.view import Fact, TrainingPart
from focusdpo.studio.run_folders import RunFolder

PART = re.compile(r"(steps|buckets)-(\d+)-(\d+)\.parquet")
Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Standing:
    """How far a run is."""

    objective: str
    steps: int
    wanted: int | None
    finished: bool
    stamp: str
    """Changes whenever there is more to see."""


def standing(folder: RunFolder) -> Standing:
    """From names and small files alone: asked for again and again."""
    config = read_small(folder.path / "config.json")
    run = read_small(folder.path / "run.json")
    parts = _parts(folder.path, "steps")
    steps = int(run.get("steps") or (parts[-1][0] if parts else 0))
    return Standing(
        objective=str(run.get("objective") or (config.get("objective") or {}).get("name", "?")),
        steps=steps,
        wanted=config.get("steps"),
        finished=bool(run),
        stamp=f"{steps}-{len(parts)}-{bool(run)}",
    )


def read_small(path: Path) -> Mapping[str, Any]:
    """A JSON object; empty where there is none yet. UserError when it is no JSON object."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run the same command again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object; run the same command again")
    return value


def training_part(folder: RunFolder) -> TrainingPart:
    """Curves and facts, as the report shows them."""
    path = folder.path
    if (path / "run.json").is_file():
        return collect_training(path)
    config = read_small(path / "config.json")
    steps, buckets = (_columns(path, name) for name in ("steps", "buckets"))
    now = standing(folder)
    facts = [Fact(label="steps so far", value=f"{now.steps} of {now.wanted or '?'}")]
    return TrainingPart(
        objective=now.objective,
        facts=tuple(facts),
        charts=curve_charts(steps, config) if steps else (),
        buckets=bucket_charts(buckets) if buckets else (),
        focus=read_focus(path / "focus.safetensors"),
        looks=look_charts({}, config),
        notes=("Curves grow whenever the run saves a checkpoint.",),
    )


def _parts(path: Path, name: str) -> list[tuple[int, Path]]:
    """Last step and file of each part that a running training has written, in order."""
    found = []
    folder = path / "metrics"
    for one in folder.iterdir() if folder.is_dir() else ():
        match = PART.fullmatch(one.name)
        if match is not None and match[1] == name:
            found.append((int(match[3]), one))
    return sorted(found)


def _columns(path: Path, name: str) -> Columns:
    """The parts of a table, joined; {} before the first."""
    import pyarrow as pa

    tables = []
    for _, part in _parts(path, name):
        try:
            tables.append(arrow_table(part.read_bytes()))
        except FileNotFoundError:  # a restarted run takes later parts away
            continue
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{part}: cannot be read ({error}); train again") from error
    if not tables:
        return {}
    whole = pa.concat_tables(tables, promote_options="default")
    return {
        field.name: np.asarray(whole[field.name].to_numpy(zero_copy_only=False), dtype=np.float64)
        for field in whole.schema
        if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
    }
