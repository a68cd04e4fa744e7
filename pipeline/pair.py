"""Stage pair: scores -> preference pairs, and for everything dropped the reason with its numbers.

A refusal of `pipeline.pairing.gates` becomes a `Reject`.

Three sources. `disrupt`: a sampled candidate against its own disruption, the same picture outside
the prior. `rank`: the best against the worst sampled candidate of a scene, where identity decides
by a margin and the other scorers must not disagree (one scorer alone is easily gamed). `failure`:
the generator's own failures: a candidate that shows every subject right against one of the same
scene in which a subject lacks, comes twice or has another's looks; and mixed pairs, in which each
shows right what the other fails at, a sign per subject.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from focusdpo.data_schemas.candidates import (
    Described,
    Disrupted,
    Instance,
    Sampled,
    Scored,
    Screened,
)
from focusdpo.data_schemas.pairs import SIGNS, Pair, PairSource, Reject
from focusdpo.data_schemas.scenes import Scene, stable_id
from focusdpo.data_schemas.subjects import ImageKey, Subject
from focusdpo.pipeline.pairing.gates import (
    PairConfig,
    Why,
    incomplete,
    judge_disrupted,
    judge_failed,
    judge_ranked,
    mean,
    shown,
    sign,
)
from focusdpo.pipeline.parts import Mask
from focusdpo.pipeline.segment import extra_key
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
    rejected: Mapping[str, Reject]
    """Disrupted candidates that an earlier stage rejected."""


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
    screened: Sequence[Screened] = (),
    rejected: Sequence[Reject] = (),
) -> StageOutput[Pair]:
    """The pairs of one partition by scene (disrupt first), and the rejects.

    What the filter of unsafe pictures refused is in no pair, nor is what was made from it.

    `reference` is the generate stage's choice; `rejected` are disrupted candidates that an earlier
    stage rejected. New pictures are the union masks of rank and failure
    pairs, named "<pair id>-<place of the subject>", and the priors of failures, "<pair id>-prior".
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
        rejected={reject.candidate_id: reject for reject in rejected},
    )
    output: StageOutput[Pair] = StageOutput([])
    refused = {verdict.candidate_id: verdict for verdict in screened if verdict.refused}
    output.rejects.extend(_unsafe(verdict, config) for verdict in refused.values())
    for scene in scenes:
        candidates = [c for c in sampled if c.scene_id == scene.id and c.id not in refused]
        if config.max_disrupt_per_scene:
            repaints = [
                d
                for d in disrupted
                if d.scene_id == scene.id and not {d.id, d.parent_id} & refused.keys()
            ]
            _disrupt_pairs(candidates, repaints, context, output)
        if config.max_rank_per_scene:
            _rank_pairs(scene, candidates, context, output)
        if config.keeps_failures:
            _failure_pairs(scene, candidates, context, output)
    log.info("pair %s: %d pairs, %d rejects", prefix, len(output.records), len(output.rejects))
    return output


def _unsafe(screened: Screened, config: PairConfig) -> Reject:
    """Of the first source that would have used the candidate."""
    source: PairSource = "failure"
    if config.max_disrupt_per_scene:
        source = "disrupt"
    elif config.max_rank_per_scene:
        source = "rank"
    detail = f"unsafe by {screened.unsafe:.3f} > {screened.threshold:.3f}"
    why: Why = ("unsafe_picture", detail)
    return _reject(screened.scene_id, screened.candidate_id, source, why)


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
        if other.id in context.rejected:
            output.rejects.append(context.rejected[other.id])
            continue
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


def _failure_pairs(
    scene: Scene, sampled: Sequence[Sampled], context: _Context, output: StageOutput[Pair]
) -> None:
    """Every failed candidate with a right one in turn, and every mixed pair."""
    config = context.config
    states = {
        candidate.id: shown(context.scored[candidate.id], context.found[candidate.id], config)
        for candidate in sampled
    }
    right = sorted(
        (name for name, how in states.items() if min(how) == 1),
        key=lambda name: (-mean(context.scored[name].identity), name),
    )
    failed = sorted(name for name, how in states.items() if min(how) == -1)
    first = sampled[0].id if sampled else ""
    if config.max_failure_per_scene and not (right and failed):
        why: Why = (
            ("no_failed_candidate", f"none of {len(sampled)} candidates fails at a subject")
            if right
            else ("no_right_candidate", f"none of {len(sampled)} candidates shows all right")
        )
        output.rejects.append(_reject(scene.id, first, "failure", why))
    made: list[_Made] = []
    for at, name in enumerate(failed if right and config.max_failure_per_scene else []):
        win, lose = context.scored[right[at % len(right)]], context.scored[name]
        refused = judge_failed(win, lose, config)
        if refused is not None:
            output.rejects.append(_reject(scene.id, name, "failure", refused))
            continue
        made.append(_failure_pair(context, win, lose, states))
    mixed = [
        _failure_pair(context, context.scored[a], context.scored[b], states)
        for a, b in combinations(states if config.max_mixed_per_scene else (), 2)
        if {"win", "lose"} <= set(map(sign, states[a], states[b]))
    ]
    _keep_best([record for record, _ in made], config.max_failure_per_scene, output)
    _keep_best([record for record, _ in mixed], config.max_mixed_per_scene, output)
    kept = {pair.id for pair in output.records}
    for pair, masks in (*made, *mixed):
        if pair.id in kept:
            output.images.update({member(name): mask_image(mask) for name, mask in masks.items()})


_Made = tuple[Pair, dict[str, Mask]]
"""A pair with its masks by name."""


def _failure_pair(
    context: _Context, win: Scored, lose: Scored, states: Mapping[str, tuple[int, ...]]
) -> _Made:
    """The record, whose prior is where the subjects with a sign stand in either picture."""
    win, lose = (_seen(scored, context.found[scored.candidate_id]) for scored in (win, lose))
    words = tuple(map(sign, states[win.candidate_id], states[lose.candidate_id]))
    places = [place for place, word in enumerate(words) if SIGNS[word]]
    name = _pair_id("failure", win.candidate_id, lose.candidate_id)
    unions = _union_masks(context, win, lose)
    masks = {f"{name}-{place}": mask for place, mask in enumerate(unions)}
    keys = tuple(image_key(context.prefix, mask) for mask in masks)
    plain = _pair(context, win.candidate_id, lose, places, keys, None, win=win)
    pair = replace(
        plain,
        id=name,
        source="failure",
        mode=" ".join(words),
        prior=image_key(context.prefix, f"{name}-prior"),
        margin=mean([SIGNS[words[p]] * (win.identity[p] - lose.identity[p]) for p in places]),
        reason=f"{_what_failed(context, plain, words)}; {plain.reason}",
    )
    masks[f"{name}-prior"] = np.logical_or.reduce([unions[place] for place in places])
    return pair, masks


def _what_failed(context: _Context, pair: Pair, words: Sequence[str]) -> str:
    """Each failed subject, how, and in which of the two pictures."""
    failures = []
    for place, word in enumerate(words):
        if SIGNS[word]:
            side, at = ("loser", pair.lose_id) if word == "win" else ("winner", pair.win_id)
            failures.append(
                f"{pair.subject_ids[place]} {_how(context.found[at][place])} in the {side}"
            )
    return "; ".join(failures)


def _how(instance: Instance) -> str:
    """In what way a failed subject failed."""
    if instance.found == "one":
        return "has another's looks"
    if instance.found == "missing":
        return "is missing"
    return f"stands there {1 + instance.extra} times"


def _seen(scored: Scored, instances: Sequence[Instance]) -> Scored:
    """With the identity that evaluations count: 0 of what is missing."""
    values = zip(scored.identity, instances, strict=True)
    identity = tuple(0.0 if instance.found == "missing" else value for value, instance in values)
    return replace(scored, identity=identity)


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
    *,
    win: Scored | None = None,
) -> Pair:
    """The record; `repaint` is the loser when the source is disrupt, None for rank. `win`: the
    winner's scores, where they are not as they were scored."""
    win = win or context.scored[win_id]
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
        captions=tuple(
            context.captions.get((win_id, name), word)
            for name, word in zip(scene.subject_ids, scene.class_names, strict=True)
        ),
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
    """Per subject, where it stands in either candidate, its duplicates included; one that is in
    neither has an empty mask."""
    subject_masks = []
    both = zip(context.found[win.candidate_id], context.found[lose.candidate_id], strict=True)
    for two in both:
        keys = [instance.mask for instance in two if instance.mask is not None]
        keys += [extra_key(i.mask) for i in two if i.mask is not None and i.found == "duplicate"]
        subject_masks.append([read_mask(context.images, key) for key in keys])
    nowhere = np.zeros_like(next(mask for masks in subject_masks for mask in masks))
    return [np.logical_or.reduce([nowhere, *masks]) for masks in subject_masks]


def _reject(scene_id: str, candidate: str, source: PairSource, why: Why) -> Reject:
    reason, detail = why
    return Reject(
        scene_id=scene_id, candidate_id=candidate, source=source, reason=reason, detail=detail
    )


def _pair_id(source: PairSource, win_id: str, lose_id: str) -> str:
    return stable_id("pair", source, win_id, lose_id)


def _at(scored: Scored, places: Sequence[int]) -> float:
    return float(np.mean([scored.identity[p] for p in places]))
