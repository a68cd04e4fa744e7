"""The preference scorer's view of judged pictures, and whether it agrees with the judge.

Pairs are chosen by segmenter and identity encoder; an adapter that learned to please these alone
gains by the scorer and not by the judge. Both are therefore shown the same pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from focusdpo.data_schemas.candidates import Instance, Sampled
from focusdpo.data_schemas.evaluations import AgreementRow, EvalScene, ScorerView
from focusdpo.data_schemas.scenes import Scene
from focusdpo.data_schemas.subjects import Reference, Subject
from focusdpo.evaluation.comparison import intervals, scene_means
from focusdpo.evaluation.metrics import Values
from focusdpo.evaluation.protocols import ADAPTER, BASE, DIFFERENCE, EvaluateConfig
from focusdpo.pipeline.matching import leakage_margins
from focusdpo.pipeline.parts import (
    IdentityEncoder,
    Image,
    ReferenceImage,
    Segmenter,
)
from focusdpo.pipeline.score import ScoreConfig, identity_tables
from focusdpo.pipeline.segment import SegmentConfig, embed_references, segment
from focusdpo.pipeline.stage import mask_image, read_mask

AGREEMENT_METRICS = ("identity", "leakage_margin")
"""What scorer and judge both measure."""
TAUGHT = "taught classes"
FEWEST = 3
"""Pictures below which ranks say nothing."""
_PREFIX = "pictures"

Key = TypeVar("Key", bound=tuple[str, int] | str)
View = TypeVar("View", EvalScene, ScorerView)


def owners_of(pictures: Sequence[Image], scenes: Sequence[Scene], per_scene: int) -> list[Scene]:
    """The scene of each picture, scene by scene. ValueError for another number of pictures."""
    if len(pictures) != per_scene * len(scenes):
        raise ValueError(
            f"{len(pictures)} pictures, expected {per_scene * len(scenes)}: "
            f"{per_scene} for each of {len(scenes)} scenes"
        )
    return [scene for scene in scenes for _ in range(per_scene)]


def scorer_values(
    scenes: Sequence[Scene],
    pictures: Sequence[Image],
    references: Mapping[str, Sequence[ReferenceImage]],
    segmenter: Segmenter,
    identity: IdentityEncoder,
    *,
    model: str = "",
    per_scene: int = 1,
    segment_config: SegmentConfig | None = None,
    score_config: ScoreConfig | None = None,
) -> list[ScorerView]:
    """One record per picture, in the order of `paint_scenes`: the stages segment and score on
    pictures that no pair was made of.

    Unlike the score stage, and as the judge does, a subject that is not found has similarity 0 and
    a scene of one has no leakage margin: the two columns are then of one kind.
    """
    owners = owners_of(pictures, scenes, per_scene)
    settings = score_config or ScoreConfig()
    sampled = [
        Sampled(
            id=f"{scene.id}-{at % per_scene}",
            scene_id=scene.id,
            index=at % per_scene,
            seed=scene.seed,
            image=f"{at}",
        )
        for at, scene in enumerate(owners)
    ]
    subjects, stored = _shelve(owners, references)
    stored |= {f"{at}": picture for at, picture in enumerate(pictures)}
    segmented = segment(
        scenes,
        subjects,
        sampled,
        stored.__getitem__,
        segmenter,
        identity,
        segment_config or SegmentConfig(),
        _PREFIX,
    )
    stored |= {f"{_PREFIX}/{name}": image for name, image in segmented.images.items()}
    instances = _by_picture(segmented.records, sampled, owners)
    tables = identity_tables(
        [scene.subject_ids for scene in owners],
        pictures,
        [
            [
                read_mask(stored.__getitem__, instance.mask) if instance.mask else None
                for instance in row
            ]
            for row in instances
        ],
        embed_references(subjects, stored.__getitem__, identity),
        identity,
        settings.batch,
        absent=0.0,
    )
    return [
        ScorerView(
            model=model,
            scene_id=candidate.scene_id,
            index=candidate.index,
            complete=all(instance.found == "one" for instance in row),
            identity=float(np.diag(table).mean()),
            leakage_margin=float(leakage_margins(table).mean()) if len(table) > 1 else np.nan,
        )
        for candidate, row, table in zip(sampled, instances, tables, strict=True)
    ]


def rank_agreement(
    judge_records: Sequence[EvalScene], scorer_records: Sequence[ScorerView], metric: str
) -> tuple[float, int]:
    """Spearman's rank correlation of a metric by judge and by scorer over the pictures of one
    model, and over how many; NaN where ranks say nothing.

    ValueError when the two saw different pictures.
    """
    judged, scored = (
        {(record.scene_id, record.index): float(getattr(record, metric)) for record in records}
        for records in (judge_records, scorer_records)
    )
    return _spearman(judged, scored)


def agreement(
    judged: Mapping[str, Sequence[EvalScene]],
    scored: Mapping[str, Sequence[ScorerView]],
    config: EvaluateConfig,
) -> list[AgreementRow]:
    """A row per metric, group and model, and for the paired difference; keys are `base` and
    `adapter`, of which one may be absent.

    A scorer finds few instances of words that it was never taught, and no pair is made of such:
    the group "taught classes" is without them.
    """
    new = {record.scene_id for records in judged.values() for record in records if record.held_out}
    groups = {"all": frozenset[str](), TAUGHT: frozenset(new)}
    return [
        row
        for group, without in groups.items()
        for metric in AGREEMENT_METRICS
        for row in _rows(metric, group, _leave(judged, without), _leave(scored, without), config)
        if group == "all" or new
    ]


def _rows(
    metric: str,
    group: str,
    judged: Mapping[str, Sequence[EvalScene]],
    scored: Mapping[str, Sequence[ScorerView]],
    config: EvaluateConfig,
) -> list[AgreementRow]:
    models = [model for model in (BASE, ADAPTER) if model in judged]
    ranks = {model: rank_agreement(judged[model], scored[model], metric) for model in models}
    if len(models) == 2:
        ranks[DIFFERENCE] = _spearman(_changes(judged, metric), _changes(scored, metric))
    by_judge, by_scorer = (
        intervals(metric, view.get(BASE, ()), view.get(ADAPTER, ()), config)
        for view in (judged, scored)
    )
    return [
        AgreementRow(
            metric=metric,
            group=group,
            model=model,
            spearman=spearman if np.isfinite(spearman) else None,
            count=count,
            scenes=by_judge[model].scenes,
            **{
                f"{who}_{end}": getattr(values[model], end)
                for who, values in (("scorer", by_scorer), ("judge", by_judge))
                for end in ("mean", "low", "high")
            },
        )
        for model, (spearman, count) in ranks.items()
        if count
    ]


def _leave(views: Mapping[str, Sequence[View]], without: frozenset[str]) -> dict[str, list[View]]:
    """The views without the records of some scenes."""
    return {
        model: [record for record in records if record.scene_id not in without]
        for model, records in views.items()
    }


def _changes(
    views: Mapping[str, Sequence[EvalScene]] | Mapping[str, Sequence[ScorerView]], metric: str
) -> dict[str, float]:
    """Scene id -> adapter less base."""
    base, adapter = (scene_means(views[model], metric) for model in (BASE, ADAPTER))
    return {scene: adapter[scene] - base[scene] for scene in base}


def _spearman(first: Mapping[Key, float], second: Mapping[Key, float]) -> tuple[float, int]:
    if set(first) != set(second):
        odd = sorted(map(str, set(first) ^ set(second)))[:3]
        raise ValueError(f"judge and scorer saw different pictures: {odd}")
    both: Values = np.array([(first[key], second[key]) for key in first]).reshape(-1, 2)
    both = both[np.isfinite(both).all(axis=1)]
    if len(both) < FEWEST or (both == both[0]).all(axis=0).any():
        return float("nan"), len(both)
    return float(spearmanr(both[:, 0], both[:, 1]).statistic), len(both)


def _shelve(
    scenes: Sequence[Scene], references: Mapping[str, Sequence[ReferenceImage]]
) -> tuple[dict[str, Subject], dict[str, NDArray[np.uint8]]]:
    """The scenes' subjects as stages know them, and their pictures by key."""
    subjects: dict[str, Subject] = {}
    stored: dict[str, NDArray[np.uint8]] = {}
    words = {
        name: word
        for scene in scenes
        for name, word in zip(scene.subject_ids, scene.class_names, strict=True)
    }
    for name, word in words.items():
        keys = []
        for at, shown in enumerate(references[name]):
            key = Reference(image=f"{name}/{at}", mask=f"{name}/{at}-mask")
            stored |= {key.image: shown.image, key.mask: mask_image(shown.mask)}
            keys.append(key)
        subjects[name] = Subject(
            id=name, class_name=word, references=tuple(keys), licence="", digest=""
        )
    return subjects, stored


def _by_picture(
    instances: Sequence[Instance], sampled: Sequence[Sampled], scenes: Sequence[Scene]
) -> list[list[Instance]]:
    """The instances of each picture in the order of its scene's subjects."""
    by_key = {(instance.candidate_id, instance.subject_id): instance for instance in instances}
    return [
        [by_key[candidate.id, name] for name in scene.subject_ids]
        for candidate, scene in zip(sampled, scenes, strict=True)
    ]
