"""DreamBench's table: means and paired differences with intervals over sets of subjects (pure).

The 25 prompts and all seeds of one subject (or pair) are not independent of each other: what a
model does with a subject it does on every background. So a set's mean over all its pictures counts
once, as the public scorers average, and the bootstrap draws sets. Pairs that share a subject still
depend on each other a little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.photographs import WholeScores
from focusdpo.data_schemas.runs import EvalRow
from focusdpo.pipeline.compare import GROUPS, intervals
from focusdpo.pipeline.dreambench_metrics import BENCH_METRICS
from focusdpo.pipeline.evaluate import EvaluateConfig


@dataclass(frozen=True, slots=True)
class BenchPicture:
    """Both records of one picture."""

    judged: EvalScene
    whole: WholeScores

    @property
    def scene_id(self) -> str:
        """What the bootstrap draws: the set of subjects."""
        return "+".join(sorted(self.judged.subject_ids))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole if name in ("dino", "clip_i") else self.judged, name)


Measured = tuple[Sequence[EvalScene], Sequence[WholeScores]]
"""What `measure_pictures` returns for one model."""


def bench_rows(measured: Mapping[str, Measured], config: EvaluateConfig) -> list[EvalRow]:
    """Every metric in every group that has scenes, for `base`, `adapter` (keys of `measured`) and
    their paired difference; `scenes` counts sets of subjects.

    ValueError when both kinds of records are not of the same pictures.
    """
    pictures = {model: _joined(*records) for model, records in measured.items()}
    everything = [one for own in pictures.values() for one in own]
    table = []
    for group, belongs in GROUPS.items():
        base, adapter = (
            [one for one in pictures.get(model, []) if belongs(one.judged)]
            for model in ("base", "adapter")
        )
        if not base and not adapter:
            continue
        for metric in BENCH_METRICS:
            table += [
                EvalRow(
                    protocol=everything[0].judged.protocol,
                    metric=metric,
                    group=group,
                    model=model,
                    mean=interval.mean,
                    low=interval.low,
                    high=interval.high,
                    scenes=interval.scenes,
                )
                for model, interval in intervals(metric, base, adapter, config).items()
                if interval.scenes
            ]
    return table


def undetected(records: Sequence[EvalScene]) -> tuple[int, int]:
    """(subjects that were not found, subjects that were asked for) over all pictures."""
    lost = sum(not box for one in records for box in one.boxes)
    return lost, sum(len(one.boxes) for one in records)


def _joined(judged: Sequence[EvalScene], whole: Sequence[WholeScores]) -> list[BenchPicture]:
    pairs = list(zip(judged, whole, strict=True))
    odd = [a.scene_id for a, b in pairs if (a.scene_id, a.index) != (b.scene_id, b.index)]
    if odd:
        raise ValueError(f"records of different pictures: {odd[:3]}")
    return [BenchPicture(a, b) for a, b in pairs]
