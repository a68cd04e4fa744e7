"""An evaluation's folder: numbers with intervals, and its scenes with their pictures."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.tables import from_parquet
from focusdpo.flows.reports.evaluation import AGAIN, metric_rows
from focusdpo.flows.reports.metrics import metric_info
from focusdpo.flows.reports.view import MetricRow
from focusdpo.studio.run_folders import RunFolder
from focusdpo.studio.run_reading import read_small

FIELDS = (
    "identity",
    "leakage_margin",
    "confusion",
    "missing",
    "duplicate",
    "class_recognition",
    "hue_error",
    "pattern_error",
    "clip_t",
    "copy_paste",
)
"""Metrics that each scene has, by which they can be ordered."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation left."""

    folder: RunFolder
    about: Mapping[str, Any]
    rows: tuple[MetricRow, ...]
    prompts: Mapping[str, str]
    references: Mapping[str, tuple[str, ...]]
    """Subject -> its pictures' paths below the folder."""
    scenes: Mapping[str, Mapping[str, EvalScene]]
    """Scene -> model -> its first picture's record."""

    @property
    def protocol(self) -> str:
        return str(self.about.get("protocol", "unknown"))

    def overall(self, metric: str) -> MetricRow | None:
        """The row of a metric over all scenes."""
        found = (one for one in self.rows if one.metric == metric and one.group == "all")
        return next(found, None)

    def change(self, scene: str, metric: str) -> float:
        """Adapter less base, so that more is better; NaN where one has none."""
        models = self.scenes[scene]
        if not {"base", "adapter"} <= models.keys():
            return math.nan
        change = float(getattr(models["adapter"], metric) - getattr(models["base"], metric))
        return -change if metric_info(metric).better == "lower" else change

    def ordered(self, metric: str, *, best_first: bool = False) -> list[str]:
        """Scenes by what the adapter changed: the worst first; those without a number last."""
        changes = {scene: self.change(scene, metric) for scene in self.scenes}
        sign = -1 if best_first else 1

        def rank(scene: str) -> tuple[bool, float, str]:
            change = changes[scene]
            unknown = math.isnan(change)
            return unknown, 0.0 if unknown else sign * change, scene

        return sorted(changes, key=rank)

    def path(self, name: str) -> Path | None:
        """A file of the evaluation; None for one outside its folder or absent."""
        root = self.folder.path.resolve()
        found = (root / name).resolve()
        return found if found.is_relative_to(root) and found.is_file() else None


def read_evaluation(folder: RunFolder) -> Evaluation:
    """As it is now; kept while its files stay as they are."""
    stamp = tuple(
        _stamp(folder.path / name) for name in ("rows.json", "scenes.parquet", "run.json")
    )
    return _read(folder, stamp)


@functools.lru_cache(maxsize=16)
def _read(folder: RunFolder, stamp: tuple[int, ...]) -> Evaluation:
    path = folder.path
    subjects = read_small(path / "subjects.json")
    records = from_parquet(_bytes(path / "scenes.parquet"), EvalScene, f"{path}/scenes.parquet")
    scenes: dict[str, dict[str, EvalScene]] = {}
    for one in records:
        if one.index == 0:
            scenes.setdefault(one.scene_id, {})[one.model] = one
    try:
        rows = metric_rows(json.loads(_bytes(path / "rows.json")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / 'rows.json'}: cannot be read ({error}); {AGAIN}") from error
    about = {name: dict(one) for name, one in (subjects.get("subjects") or {}).items()}
    return Evaluation(
        folder=folder,
        about=read_small(path / "run.json"),
        rows=rows,
        prompts=dict(subjects.get("prompts") or {}),
        references={name: tuple(one.get("pictures") or ()) for name, one in about.items()},
        scenes=scenes,
    )


def adapter_of(folder: RunFolder) -> Path | None:
    """The adapter that an evaluation was of."""
    told = read_small(folder.path / "run.json").get("adapter")
    return Path(told).resolve() if isinstance(told, str) and told else None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); {AGAIN}") from error


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
