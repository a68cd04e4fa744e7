"""Protocol `pocket`: base against adapter on held-out identities, seen by an independent judge.

Both models paint the same scenes from the same seeds; a judge that the dataset never used finds
whatever instances there are, and each subject is matched to one of them. The tables give means
over scenes with bootstrap intervals, and the paired difference of the two models.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.scenes import Scene, candidate_seed
from focusdpo.evaluation.metrics import (
    circular_mean,
    copy_guard,
    hue_difference,
    identity_values,
    nan_mean,
    pattern_difference,
    thumb,
)
from focusdpo.pipeline.generate import paint
from focusdpo.pipeline.matching import NOBODY, Matrix, assign, similarity_matrix
from focusdpo.pipeline.parts import (
    Generator,
    Image,
    Judge,
    ReferenceImage,
    Seen,
    TextImageEncoder,
    Vectors,
)
from focusdpo.pipeline.stage import chunks

PROTOCOL = "pocket"

log = logging.getLogger(__name__)


class EvaluateConfig(BaseModel):
    """How pictures are painted, judged and counted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images_per_scene: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Pictures per scene and model; a scene counts their mean.",
    )
    min_confidence: float = Field(
        default=0.5, ge=0, le=1, description="Least confidence of an instance that counts."
    )
    min_area: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Least area of an instance, as a share of the picture.",
    )
    class_weight: float = Field(
        default=2.0,
        ge=0,
        description="Weight of the class probability beside identity when subjects are matched "
        "to instances. At 2 a sure class outweighs any looks; 0 matches by looks alone, which "
        "forgives two subjects that traded them.",
    )
    claim: float = Field(
        default=0.3,
        ge=-1,
        le=1,
        description="Least similarity with which an instance claims a subject.",
    )
    resamples: int = Field(default=2000, ge=100, description="Bootstrap resamples.")
    level: float = Field(default=0.95, gt=0, lt=1, description="Coverage of the intervals.")
    seed: int = Field(default=0, ge=0, description="Seed of the bootstrap.")
    batch: int = Field(default=32, ge=1, description="Most pictures in one call of a model.")


@dataclass(frozen=True, slots=True)
class _Known:
    """What the judge knows of a subject."""

    vectors: Vectors
    hue: float
    patterns: Vectors
    """(pictures, 2, S, S)."""
    thumbs: tuple[ReferenceImage, ...]


def paint_scenes(
    scenes: Sequence[Scene],
    references: Mapping[str, Sequence[ReferenceImage]],
    generator: Generator,
    config: EvaluateConfig,
) -> list[Image]:
    """`images_per_scene` pictures of each scene, scene by scene, from the scenes' own seeds.

    The generator sees each subject's first reference; base and adapter get the same noise.
    """
    wanted = [(scene, index) for scene in scenes for index in range(config.images_per_scene)]
    return paint(
        [scene.prompt for scene, _ in wanted],
        [[references[name][0] for name in scene.subject_ids] for scene, _ in wanted],
        [candidate_seed(scene.seed, index) for scene, index in wanted],
        generator,
        batch=config.batch,
    )


def measure(
    model: str,
    scenes: Sequence[Scene],
    pictures: Sequence[Image],
    references: Mapping[str, Sequence[ReferenceImage]],
    judge: Judge,
    config: EvaluateConfig,
    *,
    held_out_classes: Collection[str] = (),
    clip: TextImageEncoder | None = None,
    names: Sequence[str] | None = None,
    protocol: str = PROTOCOL,
) -> list[EvalScene]:
    """One record per picture, in the order of `paint_scenes`.

    `references` holds all pictures of each subject: the judge compares with every one. `names`
    says where each picture lies. Without `clip` there is no prompt fit.
    """
    per_scene = config.images_per_scene
    if len(pictures) != per_scene * len(scenes):
        raise ValueError(
            f"{len(pictures)} pictures, expected {per_scene * len(scenes)}: "
            f"{per_scene} for each of {len(scenes)} scenes"
        )
    wanted = {name for scene in scenes for name in scene.subject_ids}
    known = _know({name: references[name] for name in sorted(wanted)}, judge)
    fits = _prompt_fits(scenes, pictures, clip, config)
    looks = [seen for part in chunks(pictures, config.batch) for seen in judge.look(part)]
    records = []
    for at, (picture, seen) in enumerate(zip(pictures, looks, strict=True)):
        scene = scenes[at // per_scene]
        counted = _counted(seen, config)
        similarity, given = _match(scene, counted, known, judge, config)
        hits = [counted[k] if k != NOBODY else None for k in given]
        own = [known[name] for name in scene.subject_ids]
        records.append(
            EvalScene(
                protocol=protocol,
                model=model,
                scene_id=scene.id,
                index=at % per_scene,
                image=names[at] if names else "",
                subject_ids=scene.subject_ids,
                class_names=scene.class_names,
                held_out=any(name in held_out_classes for name in scene.class_names),
                seen=len(counted),
                boxes=tuple(hit.box if hit else () for hit in hits),
                matched=tuple(
                    float(similarity[i, k]) if k != NOBODY else 0.0 for i, k in enumerate(given)
                ),
                class_recognition=_recognised(scene, hits, judge.class_names),
                hue_error=_hue_error(hits, own),
                pattern_error=_pattern_error(picture, hits, own, judge),
                clip_t=fits[at],
                copy_paste=copy_guard(
                    picture,
                    [hit.mask if hit else None for hit in hits],
                    [one.thumbs for one in own],
                ),
                **identity_values(similarity, given, claim=config.claim),
            )
        )
    log.info("evaluate %s: %d pictures of %d scenes", model, len(records), len(scenes))
    return records


def _prompt_fits(
    scenes: Sequence[Scene],
    pictures: Sequence[Image],
    clip: TextImageEncoder | None,
    config: EvaluateConfig,
) -> list[float]:
    """CLIP-T of each picture; NaN without a CLIP."""
    if clip is None:
        return [np.nan] * len(pictures)
    prompts = sorted({scene.prompt for scene in scenes})
    texts = np.asarray(clip.embed_texts(prompts), dtype=np.float64)
    shown = np.concatenate([clip.embed_images(part) for part in chunks(pictures, config.batch)])
    rows = [prompts.index(scenes[at // config.images_per_scene].prompt) for at in range(len(shown))]
    return [float(a @ texts[row]) for a, row in zip(shown.astype(np.float64), rows, strict=True)]


def _know(references: Mapping[str, Sequence[ReferenceImage]], judge: Judge) -> dict[str, _Known]:
    known = {}
    for name, pictures in references.items():
        images, masks = [p.image for p in pictures], [p.mask for p in pictures]
        known[name] = _Known(
            vectors=judge.embed_references(images, masks),
            hue=circular_mean(judge.hue(images, masks).astype(np.float64)),
            patterns=judge.pattern(images, masks),
            thumbs=tuple(thumb(p.image, p.mask) for p in pictures),
        )
    return known


def _counted(seen: Sequence[Seen], config: EvaluateConfig) -> list[Seen]:
    return [
        one
        for one in seen
        if one.confidence >= config.min_confidence and one.mask.mean() >= config.min_area
    ]


def _match(
    scene: Scene,
    seen: Sequence[Seen],
    known: Mapping[str, _Known],
    judge: Judge,
    config: EvaluateConfig,
) -> tuple[Matrix, list[int]]:
    """S (R, n) of identity, and the instance of each subject by identity and class together."""
    vectors = np.stack([s.embedding for s in seen]) if seen else np.zeros((0, 1), np.float32)
    similarity = similarity_matrix([known[name].vectors for name in scene.subject_ids], vectors)
    evidence = similarity.copy()
    for row, word in enumerate(scene.class_names):
        if word in judge.class_names:
            column = judge.class_names.index(word)
            evidence[row] += [config.class_weight * float(s.class_scores[column]) for s in seen]
    return similarity, assign(evidence)


def _recognised(scene: Scene, hits: Sequence[Seen | None], words: tuple[str, ...]) -> float:
    """Share of found subjects whose likeliest class is right; classes unknown to the judge are
    left out."""
    right = [
        float(words[int(hit.class_scores.argmax())] == word)
        for word, hit in zip(scene.class_names, hits, strict=True)
        if hit is not None and word in words
    ]
    return nan_mean(np.array(right))


def _hue_error(hits: Sequence[Seen | None], own: Sequence[_Known]) -> float:
    errors = [
        hue_difference(hit.hue, known.hue)
        for hit, known in zip(hits, own, strict=True)
        if hit is not None
    ]
    return nan_mean(np.array(errors))


def _pattern_error(
    picture: Image, hits: Sequence[Seen | None], own: Sequence[_Known], judge: Judge
) -> float:
    found = [(hit, known) for hit, known in zip(hits, own, strict=True) if hit is not None]
    seen = judge.pattern([picture] * len(found), [hit.mask for hit, _ in found])
    errors = [
        pattern_difference(one, list(known.patterns))
        for one, (_, known) in zip(seen, found, strict=True)
    ]
    return nan_mean(np.array(errors))
