"""Is the judge fit for these subjects? Faults planted into composites of them, and what it finds.

A fault counts as found when the judge says of the picture that some subject failed, or that there
are more instances than subjects; of a picture without fault the same is a false alarm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.evaluations import EvalScene, ForeignScores
from focusdpo.data_schemas.runs import Watch
from focusdpo.data_schemas.scenes import Scene, stable_id
from focusdpo.evaluation.measure.composites import (
    FAULTS,
    TRUE,
    Composite,
    Fault,
    composite,
    possible_faults,
)
from focusdpo.evaluation.measure.config import MeasureConfig
from focusdpo.evaluation.measure.judging import Known, ToJudge, judge_pictures, know
from focusdpo.evaluation.measure.picture_rows import spoken
from focusdpo.evaluation.measure.sight import Sight
from focusdpo.evaluation.protocols import EvaluateConfig
from focusdpo.pipeline.parts import ReferenceImage
from focusdpo.pipeline.stage import chunks

SIDE = 512
"""Pixels a side of a composite, for judges of any size."""
FOUND, FALSE = 0.9, 0.05
"""Least share of faults that a fit judge finds, and most false alarms."""


@dataclass(frozen=True, slots=True)
class FaultFound:
    """Composites with one fault, and the share of them of which the judge says so."""

    fault: Fault
    pictures: int
    found: float
    missing: float
    doubled: float
    confused: float
    unlike: float
    extra: float

    @property
    def ok(self) -> bool:
        """Whether that is good enough to believe the judge."""
        return self.found <= FALSE if self.fault in TRUE else self.found >= FOUND


@dataclass(frozen=True, slots=True)
class _Verdict:
    missing: bool
    doubled: bool
    confused: bool
    unlike: bool
    extra: bool


def check_sight(
    sight: Sight,
    casts: Sequence[tuple[str, ...]],
    references: Mapping[str, Sequence[ReferenceImage]],
    words: Mapping[str, str],
    config: EvaluateConfig,
    measure_config: MeasureConfig,
    watch: Watch,
) -> tuple[FaultFound, ...]:
    """A row for each fault that can be planted. `casts` are the sets of subjects that pictures ask
    for, taken in turn; `references` and `words` of all subjects, strangers too. UserError where no
    cast has references."""
    if not casts:
        raise UserError("--check: no subject has a usable reference, so nothing can be planted")
    known = {name: know(list(pictures), sight) for name, pictures in references.items()}
    planted = list(_plant(sight, casts, references, measure_config))
    verdicts: list[_Verdict] = []
    for part in chunks(planted, config.batch):
        items = [_to_judge(case, known, words) for case in part]
        verdicts += [
            _verdict(judged, scores, config)
            for judged, scores in judge_pictures(items, sight, config, measure_config)
        ]
        watch("check the judge", len(verdicts), len(planted), {})
    return tuple(
        _row(fault, [v for case, v in zip(planted, verdicts, strict=True) if case.fault == fault])
        for fault in FAULTS
        if any(case.fault == fault for case in planted)
    )


def _plant(
    sight: Sight,
    casts: Sequence[tuple[str, ...]],
    references: Mapping[str, Sequence[ReferenceImage]],
    measure_config: MeasureConfig,
) -> list[Composite]:
    composites = []
    for fault in FAULTS:
        able = [
            cast
            for cast in casts
            if fault in possible_faults(len(cast), len(references) - len(cast))
        ]
        composites += [
            composite(
                fault,
                able[number % len(able)],
                references,
                number,
                side=sight.side or SIDE,
                seed=measure_config.seed,
            )
            for number in range(measure_config.composites if able else 0)
        ]
    return composites


def _to_judge(case: Composite, known: Mapping[str, Known], words: Mapping[str, str]) -> ToJudge:
    class_names = tuple(words[name] for name in case.subjects)
    known_subjects = [
        known[name] if picture < 0 else known[name].without(picture)
        for name, picture in zip(case.subjects, case.held_back, strict=True)
    ]
    scene = Scene(
        id=stable_id("composite", case.fault, *case.subjects),
        partition="",
        subject_ids=case.subjects,
        class_names=class_names,
        prompt=spoken(class_names),
        variant=0,
        seed=0,
    )
    return ToJudge(scene, case.image, known_subjects, case.boxes, source="", line=0, seed=None)


def _verdict(judged: EvalScene, scores: ForeignScores, config: EvaluateConfig) -> _Verdict:
    there = [value for value, box in zip(judged.matched, judged.boxes, strict=True) if box]
    return _Verdict(
        missing=judged.missing > 0,
        doubled=judged.duplicate > 0,
        confused=bool(judged.confusion > 0),
        unlike=any(value < config.least_identity for value in there),
        extra=scores.extra > 0,
    )


def _row(fault: Fault, verdicts: Sequence[_Verdict]) -> FaultFound:
    names = [field.name for field in fields(_Verdict)]
    table = np.array([[getattr(verdict, name) for name in names] for verdict in verdicts])
    shares = dict(zip(names, table.mean(axis=0).tolist(), strict=True))
    return FaultFound(fault, len(verdicts), float(table.any(axis=1).mean()), **shares)


def check_lines(rows: Sequence[FaultFound]) -> list[str]:
    """The table for a terminal."""
    lines = [f"{'planted':<12}{'pictures':>9}{'found':>9}  by"]
    for row in rows:
        names = ("missing", "doubled", "confused", "unlike", "extra")
        reasons = [f"{name} {getattr(row, name):.0%}" for name in names if getattr(row, name) > 0]
        mark = "" if row.ok else "  LOW" if row.fault not in TRUE else "  FALSE ALARMS"
        lines.append(
            f"{row.fault:<12}{row.pictures:>9}{row.found:>9.1%}  {', '.join(reasons) or '-'}{mark}"
        )
    return lines


def fit(rows: Sequence[FaultFound]) -> bool:
    """Whether all is good enough."""
    return all(row.ok for row in rows)
