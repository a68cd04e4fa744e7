"""Stage pair: scores -> preference pairs, and for everything dropped the reason with its numbers.

A gate answers None (accepted) or a reason with its numbers; stage pair turns it into a `Reject`.

Two sources. `disrupt`: a sampled candidate against its own disruption, the same picture outside
the prior. `rank`: the best against the worst sampled candidate of a scene, where identity decides
by a margin and the other scorers must not disagree (one scorer alone is easily gamed).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from focusdpo.data_schemas.candidates import Described, Disrupted, Instance, Sampled, Scored
from focusdpo.data_schemas.pairs import Pair, PairSource, Reason, Reject
from focusdpo.data_schemas.scenes import Scene, stable_id
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.data_schemas.subjects import ImageKey, Subject
from focusdpo.pipeline.parts import Mask
from focusdpo.pipeline.stage import (
    ImageReader,
    ReferenceChoice,
    StageOutput,
    image_key,
    mask_image,
    member,
    read_mask,
    scene_references,
)

Why = tuple[Reason, str]
"""Reason and its numbers in words."""


class PairConfig(StrictModel):
    """When two candidates make a pair. Identity and CLIP-T are cosines."""

    min_winner_identity: float = Field(
        default=0.5, ge=-1, le=1, description="Least identity of the winner's worst subject."
    )
    min_winner_margin: float = Field(
        default=0.0,
        ge=-2,
        le=2,
        description="Least leakage margin of the winner's worst subject: below 0 its "
        "reference fits another subject's place better. Scenes of one subject always pass.",
    )
    min_drop: float = Field(
        default=0.08,
        ge=0,
        le=2,
        description="disrupt: least mean loss of identity over the repainted subjects.",
    )
    min_drop_each: float = Field(
        default=0.0,
        ge=-2,
        le=2,
        description="disrupt: least loss of identity of any one repainted subject.",
    )
    clip_t_tolerance: float = Field(
        default=0.05, ge=0, le=2, description="Most difference of CLIP-T between winner and loser."
    )
    background_tolerance: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="disrupt: most mean change of a pixel outside the prior, in [0, 1].",
    )
    rank_margin: float = Field(
        default=0.08,
        ge=0,
        le=2,
        description="rank: least gap of mean identity between best and worst.",
    )
    rank_tolerance: float = Field(
        default=0.02,
        ge=0,
        le=2,
        description="rank: by how much leakage margin and CLIP-I of the best may stand below those "
        "of the worst.",
    )
    max_disrupt_per_scene: int = Field(
        default=4, ge=0, description="Most disrupt pairs of a scene."
    )
    max_rank_per_scene: int = Field(default=1, ge=0, description="Most rank pairs of a scene.")


def incomplete(instances: Sequence[Instance]) -> Why | None:
    """Why a sampled candidate cannot win, if a subject was not found exactly once."""
    missing = [i for i in instances if i.found == "missing"]
    if missing:
        names = ", ".join(i.subject_id for i in missing)
        return "missing_subject", f"{len(missing)} of {len(instances)} subjects not found: {names}"
    twice = [i for i in instances if i.found == "duplicate"]
    if twice:
        names = ", ".join(f"{i.subject_id} {1 + i.extra} times" for i in twice)
        return "duplicate_subject", f"found more than once: {names}"
    return None


def _weak(win: Scored, config: PairConfig) -> Why | None:
    """Why a complete candidate is no winner: a subject has lost its looks, or traded them."""
    worst = min(win.identity)
    if worst < config.min_winner_identity:
        return "weak_winner", f"least identity {worst:.3f} < {config.min_winner_identity:.3f}"
    margin = min(win.leakage_margin)
    if len(win.identity) > 1 and margin < config.min_winner_margin:
        return "weak_winner", f"least leakage margin {margin:.3f} < {config.min_winner_margin:.3f}"
    return None


def judge_disrupted(
    win: Scored, lose: Scored, places: Sequence[int], config: PairConfig
) -> Why | None:
    """Why winner and its disruption make no pair; None when they do.

    `places` are the repainted subjects: identity is compared there alone.
    """
    weak = _weak(win, config)
    if weak is not None:
        return weak
    drops = [win.identity[p] - lose.identity[p] for p in places]
    mean = float(np.mean(drops))
    if mean < config.min_drop:
        return "no_identity_drop", f"mean drop {mean:.3f} < {config.min_drop:.3f}"
    if min(drops) < config.min_drop_each:
        return "no_identity_drop", f"least drop {min(drops):.3f} < {config.min_drop_each:.3f}"
    if lose.background > config.background_tolerance:
        return (
            "background_changed",
            f"change {lose.background:.5f} > {config.background_tolerance:.5f}",
        )
    return _meaning(win, lose, config)


def judge_ranked(win: Scored, lose: Scored, config: PairConfig) -> Why | None:
    """Why best and worst of a scene make no pair; None when they do."""
    weak = _weak(win, config)
    if weak is not None:
        return weak
    gap = mean(win.identity) - mean(lose.identity)
    if gap < config.rank_margin:
        return "small_margin", f"identity gap {gap:.3f} < {config.rank_margin:.3f}"
    for name, best, other in (
        ("leakage margin", win.leakage_margin, lose.leakage_margin),
        ("CLIP-I", win.clip_i, lose.clip_i),
    ):
        gap = mean(best) - mean(other)
        if gap < -config.rank_tolerance:
            return "small_margin", f"{name} disagrees: {gap:.3f} < -{config.rank_tolerance:.3f}"
    return _meaning(win, lose, config)


def _meaning(win: Scored, lose: Scored, config: PairConfig) -> Why | None:
    shift = abs(win.clip_t - lose.clip_t)
    if shift > config.clip_t_tolerance:
        return (
            "meaning_changed",
            f"CLIP-T {win.clip_t:.3f} against {lose.clip_t:.3f}: "
            f"{shift:.3f} > {config.clip_t_tolerance:.3f}",
        )
    return None


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


VERSION = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Context:
    """One partition's records, by id."""

    scenes: Mapping[str, Scene]
    subjects: Mapping[str, Subject]
    sampled: Mapping[str, Sampled]
    found: Mapping[str, tuple[Instance, ...]]
    """Instances of a sampled candidate, in scene order."""
    captions: Mapping[tuple[str, str], str]
    """(candidate id, subject id) -> caption."""
    scored: Mapping[str, Scored]
    images: ImageReader
    config: PairConfig
    prefix: str
    reference: ReferenceChoice


def pair(
    scenes: Sequence[Scene],
    subjects: Mapping[str, Subject],
    sampled: Sequence[Sampled],
    disrupted: Sequence[Disrupted],
    instances: Sequence[Instance],
    described: Sequence[Described],
    scored: Sequence[Scored],
    images: ImageReader,
    config: PairConfig,
    prefix: str,
    *,
    reference: ReferenceChoice,
) -> StageOutput[Pair]:
    """The pairs of one partition by scene (disrupt first), and the rejects.

    `reference` is the generate stage's choice. New pictures are the union masks of rank pairs,
    named "<pair id>-<place of the subject>".
    """
    context = _Context(
        scenes={scene.id: scene for scene in scenes},
        subjects=subjects,
        sampled={candidate.id: candidate for candidate in sampled},
        found=_found(scenes, sampled, instances),
        captions={(d.instance.candidate_id, d.instance.subject_id): d.caption for d in described},
        scored={s.candidate_id: s for s in scored},
        images=images,
        config=config,
        prefix=prefix,
        reference=reference,
    )
    output: StageOutput[Pair] = StageOutput([])
    for scene in scenes:
        own = [candidate for candidate in sampled if candidate.scene_id == scene.id]
        if config.max_disrupt_per_scene:
            repaints = [d for d in disrupted if d.scene_id == scene.id]
            _disrupt_pairs(own, repaints, context, output)
        if config.max_rank_per_scene:
            _rank_pairs(scene, own, context, output)
    log.info("pair %s: %d pairs, %d rejects", prefix, len(output.records), len(output.rejects))
    return output


def _disrupt_pairs(
    sampled: Sequence[Sampled],
    disrupted: Sequence[Disrupted],
    context: _Context,
    output: StageOutput[Pair],
) -> None:
    for candidate in sampled:
        why = incomplete(context.found[candidate.id])
        if why is not None:
            output.rejects.append(_reject(candidate.scene_id, candidate.id, "disrupt", why))
    made = []
    for other in disrupted:
        win, lose = context.scored[other.parent_id], context.scored[other.id]
        scene = context.scenes[other.scene_id]
        places = [scene.subject_ids.index(name) for name in other.subject_ids]
        why = judge_disrupted(win, lose, places, context.config)
        if why is not None:
            output.rejects.append(_reject(scene.id, other.id, "disrupt", why))
            continue
        masks = tuple(i.mask for i in context.found[other.parent_id] if i.mask is not None)
        made.append(_pair(context, other.parent_id, lose, places, masks, other))
    _keep_best(made, context.config.max_disrupt_per_scene, output)


def _rank_pairs(
    scene: Scene, sampled: Sequence[Sampled], context: _Context, output: StageOutput[Pair]
) -> None:
    usable = [
        context.scored[candidate.id]
        for candidate in sampled
        if context.scored[candidate.id].complete
    ]
    if len(usable) < 2:
        detail = f"{len(usable)} of {len(sampled)} candidates show every subject once"
        first = sampled[0].id if sampled else ""
        output.rejects.append(_reject(scene.id, first, "rank", ("too_few_candidates", detail)))
        return
    order = sorted(usable, key=lambda s: (-mean(s.identity), s.candidate_id))
    made = []
    for at in range(min(len(order) // 2, context.config.max_rank_per_scene)):
        win, lose = order[at], order[-1 - at]
        why = judge_ranked(win, lose, context.config)
        if why is not None:
            output.rejects.append(_reject(scene.id, lose.candidate_id, "rank", why))
            continue
        places = list(range(len(scene.subject_ids)))
        name = _pair_id("rank", win.candidate_id, lose.candidate_id)
        masks = []
        for place, mask in enumerate(_union_masks(context, win, lose)):
            output.images[member(f"{name}-{place}")] = mask_image(mask)
            masks.append(image_key(context.prefix, f"{name}-{place}"))
        made.append(_pair(context, win.candidate_id, lose, places, tuple(masks), None))
    output.records.extend(made)


def _keep_best(made: Sequence[Pair], quota: int, output: StageOutput[Pair]) -> None:
    """The `quota` pairs of widest margin, in the order they were made; the others are surplus."""
    ranked = sorted(made, key=lambda p: (-p.margin, p.id))
    kept = {p.id for p in ranked[:quota]}
    for pair in made:
        if pair.id in kept:
            output.records.append(pair)
        else:
            detail = f"margin {pair.margin:.3f} is not among the {quota} widest of {len(made)}"
            why: Why = ("surplus", detail)
            output.rejects.append(_reject(pair.scene_id, pair.lose_id, pair.source, why))


def _pair(
    context: _Context,
    win_id: str,
    lose: Scored,
    places: Sequence[int],
    masks: tuple[ImageKey, ...],
    repaint: Disrupted | None,
) -> Pair:
    """The record; `repaint` is the loser when the source is disrupt, None for rank."""
    win = context.scored[win_id]
    scene = context.scenes[win.scene_id]
    source: PairSource = "rank" if repaint is None else "disrupt"
    margin = float(np.mean([win.identity[p] - lose.identity[p] for p in places]))
    shift = abs(win.clip_t - lose.clip_t)
    changed = "" if repaint is None else f", background change {lose.background:.5f}"
    return Pair(
        id=_pair_id(source, win_id, lose.candidate_id),
        scene_id=scene.id,
        partition=scene.partition,
        source=source,
        mode="rank" if repaint is None else repaint.mode,
        prompt=scene.prompt,
        subject_ids=scene.subject_ids,
        class_names=scene.class_names,
        captions=tuple(context.captions[win_id, name] for name in scene.subject_ids),
        win_id=win_id,
        lose_id=lose.candidate_id,
        win_image=context.sampled[win_id].image,
        lose_image=repaint.image if repaint else context.sampled[lose.candidate_id].image,
        masks=masks,
        prior=repaint.prior if repaint else None,
        references=scene_references(scene, context.subjects, context.reference),
        win_identity=win.identity,
        lose_identity=lose.identity,
        win_leakage_margin=win.leakage_margin,
        lose_leakage_margin=lose.leakage_margin,
        win_clip_t=win.clip_t,
        lose_clip_t=lose.clip_t,
        margin=margin,
        reason=f"identity {_at(win, places):.3f} against {_at(lose, places):.3f} "
        f"(margin {margin:.3f}), CLIP-T apart by {shift:.3f}{changed}",
    )


def _found(
    scenes: Sequence[Scene], sampled: Sequence[Sampled], instances: Sequence[Instance]
) -> dict[str, tuple[Instance, ...]]:
    by_id = {scene.id: scene for scene in scenes}
    by_place = {(i.candidate_id, i.subject_id): i for i in instances}
    return {
        candidate.id: tuple(
            by_place[candidate.id, name] for name in by_id[candidate.scene_id].subject_ids
        )
        for candidate in sampled
    }


def _union_masks(context: _Context, win: Scored, lose: Scored) -> list[Mask]:
    """Per subject, where it stands in either candidate; both are complete."""
    unions = []
    both = zip(context.found[win.candidate_id], context.found[lose.candidate_id], strict=True)
    for a, b in both:
        masks = [read_mask(context.images, i.mask) for i in (a, b) if i.mask is not None]
        unions.append(np.logical_or.reduce(masks))
    return unions


def _reject(scene_id: str, candidate: str, source: PairSource, why: Why) -> Reject:
    reason, detail = why
    return Reject(
        scene_id=scene_id, candidate_id=candidate, source=source, reason=reason, detail=detail
    )


def _pair_id(source: PairSource, win_id: str, lose_id: str) -> str:
    return stable_id("pair", source, win_id, lose_id)


def _at(scored: Scored, places: Sequence[int]) -> float:
    return float(np.mean([scored.identity[p] for p in places]))
