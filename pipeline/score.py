"""Stage score: candidate -> identity, leakage, CLIP scores and background distance.

A disrupted candidate is measured at its parent's places: the masks of the sampled candidate say
where each subject belongs, whatever the repaint put there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from focusdpo.data_schemas.candidates import (
    Disrupted,
    Instance,
    Kind,
    Sampled,
    Scored,
    Screened,
)
from focusdpo.data_schemas.pairs import Reject
from focusdpo.data_schemas.scenes import Scene
from focusdpo.data_schemas.strict import Later, StrictModel
from focusdpo.data_schemas.subjects import Subject
from focusdpo.pipeline.matching import Matrix, leakage_margins, similarity_matrix
from focusdpo.pipeline.parts import (
    IdentityEncoder,
    Image,
    Mask,
    SafetyFilter,
    Segmenter,
    TextImageEncoder,
    Vectors,
)
from focusdpo.pipeline.segment import (
    SegmentConfig,
    all_pictures,
    embed_in_chunks,
    embed_references,
    overlap,
    usable,
)
from focusdpo.pipeline.stage import ImageReader, StageOutput, chunks, read_mask

VERSION = 1
SCREENED = "screened"
"""The table of what the filter of unsafe pictures said."""
ABSENT = -1.0
"""The similarity of every reference to an instance that is not there."""
SHARED = 0.3
"""Least overlap of an object with the place that was repainted, by the smaller of the two."""

log = logging.getLogger(__name__)


class ScoreConfig(StrictModel):
    """How crops are cut and batched."""

    crop_margin: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="White border of a CLIP crop, as a share of the box's side.",
    )
    batch: int = Field(default=128, ge=1, description="Most images in one call of an encoder.")
    find_repaints: Annotated[bool, Later()] = Field(
        default=False,
        description="Whether the segmenter looks for an object of the subject's class in each "
        "repainted place; a repaint that left one empty teaches absence and makes no pair. For "
        "inpainters that may fill a hole with background, as a generator's own.",
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A sampled or disrupted candidate as the scorers see it."""

    id: str
    scene: Scene
    kind: Kind
    picture: Image
    masks: tuple[Mask | None, ...]
    """Where each subject stands, None when it was not found."""
    complete: bool
    background: float


def score(
    scenes: Sequence[Scene],
    subjects: Mapping[str, Subject],
    sampled: Sequence[Sampled],
    disrupted: Sequence[Disrupted],
    instances: Sequence[Instance],
    images: ImageReader,
    identity: IdentityEncoder,
    clip: TextImageEncoder,
    config: ScoreConfig,
    safety: SafetyFilter | None = None,
) -> StageOutput[Scored]:
    """A `Scored` for every candidate, sampled first, in the orders given; no new pictures. With a
    filter also the table `SCREENED`, a `Screened` for each."""
    candidates = _gather(scenes, sampled, disrupted, instances, images)
    tables = identity_tables(
        [candidate.scene.subject_ids for candidate in candidates],
        [candidate.picture for candidate in candidates],
        [candidate.masks for candidate in candidates],
        embed_references(subjects, images, identity),
        identity,
        config.batch,
    )
    clip_i = _clip_i(candidates, subjects, images, clip, config)
    clip_t = _clip_t(candidates, clip, config.batch)
    records = []
    for candidate, table, cosines, words in zip(candidates, tables, clip_i, clip_t, strict=True):
        records.append(
            Scored(
                candidate_id=candidate.id,
                scene_id=candidate.scene.id,
                kind=candidate.kind,
                similarity=tuple(_floats(row) for row in table),
                identity=_floats(np.diag(table)),
                leakage_margin=_floats(leakage_margins(table)),
                clip_i=_floats(cosines),
                clip_t=float(words),
                background=candidate.background,
                complete=candidate.complete,
            )
        )
    log.info("score: %d candidates", len(records))
    output = StageOutput(records)
    if safety is not None:
        output.more[SCREENED] = (Screened, _screened(candidates, safety, config.batch))
    return output


def _screened(candidates: Sequence[_Candidate], safety: SafetyFilter, batch: int) -> list[Screened]:
    """What the filter says of each whole picture."""
    limit = float(safety.threshold)
    records = []
    for part in chunks(candidates, batch):
        shares = safety.unsafe([candidate.picture for candidate in part])
        records += [
            Screened(
                candidate_id=candidate.id,
                scene_id=candidate.scene.id,
                unsafe=float(share),
                threshold=limit,
                refused=bool(share >= limit),
            )
            for candidate, share in zip(part, shares, strict=True)
        ]
    log.info("score: %d of %d refused as unsafe", sum(r.refused for r in records), len(records))
    return records


def empty_repaints(
    scenes: Sequence[Scene],
    disrupted: Sequence[Disrupted],
    instances: Sequence[Instance],
    images: ImageReader,
    segmenter: Segmenter,
    config: SegmentConfig,
) -> list[Reject]:
    """The disrupted candidates in which a repainted place shows nothing of its subject's class, by
    the rules of stage segment."""
    by_id = {scene.id: scene for scene in scenes}
    masks = {(i.candidate_id, i.subject_id): i.mask for i in instances}
    rejects = []
    for part in chunks(disrupted, config.batch):
        words = [tuple(dict.fromkeys(by_id[candidate.scene_id].class_names)) for candidate in part]
        seen = segmenter.segment([images(candidate.image) for candidate in part], words)
        for candidate, detections in zip(part, seen, strict=True):
            scene, there = by_id[candidate.scene_id], usable(detections, config)
            empty = []
            for name in candidate.subject_ids:
                word = scene.class_names[scene.subject_ids.index(name)]
                key = masks[candidate.parent_id, name]
                place = read_mask(images, key) if key else None
                if place is not None and not any(
                    other.class_name == word and overlap(other.mask, place) >= SHARED
                    for other in there
                ):
                    empty.append(f"no {word} where {name} stood")
            if empty:
                detail = f"{len(empty)} of {len(candidate.subject_ids)}: {', '.join(empty)}"
                rejects.append(
                    Reject(
                        scene_id=scene.id,
                        candidate_id=candidate.id,
                        source="disrupt",
                        reason="empty_repaint",
                        detail=detail,
                    )
                )
    return rejects


def crop_on_white(image: Image, mask: Mask, margin: float) -> Image:
    """The masked subject on white in a square crop around its box, as a reference shows it.

    `image` is (H, W, 3) or (H, W), and so is the crop. `margin` is the border as a share of the
    box's longer side. An empty mask gives the whole picture white.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return np.full_like(image, 255)
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
    side = max(height, width)
    side += 2 * round(margin * side)
    channels = image.shape[2:]
    square = np.full((side, side, *channels), 255, dtype=np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    box = np.s_[top : top + height, left : left + width]
    # Whole rows at once: numpy takes five times as long to spread a mask over a last axis of 3.
    hidden = np.repeat(~mask[box], int(np.prod(channels)), axis=1) * np.uint8(255)
    square[y : y + height, x : x + width] = image[box] | hidden.reshape(height, width, *channels)
    return square


def background_distance(image: Image, parent: Image, prior: Mask) -> float:
    """Mean absolute difference outside `prior`, in [0, 1]; 0 when the prior is everything."""
    outside = ~prior
    if not outside.any():
        return 0.0
    change = np.abs(image[outside].astype(np.int64) - parent[outside].astype(np.int64))
    return float(change.mean() / 255)


def _gather(
    scenes: Sequence[Scene],
    sampled: Sequence[Sampled],
    disrupted: Sequence[Disrupted],
    instances: Sequence[Instance],
    images: ImageReader,
) -> list[_Candidate]:
    by_id = {scene.id: scene for scene in scenes}
    instances_of: dict[str, dict[str, Instance]] = {}
    for instance in instances:
        instances_of.setdefault(instance.candidate_id, {})[instance.subject_id] = instance
    gathered = {}
    for candidate in sampled:
        scene, by_subject = by_id[candidate.scene_id], instances_of.get(candidate.id, {})
        looked = [by_subject.get(name) for name in scene.subject_ids]
        keys = [i.mask if i is not None else None for i in looked]
        gathered[candidate.id] = _Candidate(
            id=candidate.id,
            scene=scene,
            kind="sampled",
            picture=images(candidate.image),
            masks=tuple(read_mask(images, key) if key else None for key in keys),
            complete=all(i is not None and i.found == "one" for i in looked),
            background=0.0,
        )
    for other in disrupted:
        parent = gathered[other.parent_id]
        picture = images(other.image)
        gathered[other.id] = _Candidate(
            id=other.id,
            scene=parent.scene,
            kind="disrupted",
            picture=picture,
            masks=parent.masks,
            complete=parent.complete,
            background=background_distance(picture, parent.picture, read_mask(images, other.prior)),
        )
    return list(gathered.values())


def identity_tables(
    names: Sequence[Sequence[str]],
    pictures: Sequence[Image],
    masks: Sequence[Sequence[Mask | None]],
    references: Mapping[str, Vectors],
    identity: IdentityEncoder,
    batch: int,
    absent: float = ABSENT,
) -> list[Matrix]:
    """S (R, R) of each picture: column j is the instance at the place of subject `names[.][j]`,
    `absent` where its mask is None. `references` are vectors (pictures, D) of each subject."""
    crops = _crops(pictures, masks)
    vectors = embed_in_chunks([c[2] for c in crops], [c[3] for c in crops], identity, batch)
    tables = [np.full((len(subject_ids),) * 2, absent) for subject_ids in names]
    for (at, place, _, _), vector in zip(crops, vectors, strict=True):
        reference_vectors = [references[name] for name in names[at]]
        tables[at][:, place] = similarity_matrix(reference_vectors, vector[None])[:, 0]
    return tables


def _crops(
    pictures: Sequence[Image], masks: Sequence[Sequence[Mask | None]]
) -> list[tuple[int, int, Image, Mask]]:
    """(number of the picture, place, picture, mask) of every instance there is."""
    return [
        (at, place, picture, mask)
        for at, (picture, picture_masks) in enumerate(zip(pictures, masks, strict=True))
        for place, mask in enumerate(picture_masks)
        if mask is not None
    ]


def _clip_i(
    candidates: Sequence[_Candidate],
    subjects: Mapping[str, Subject],
    images: ImageReader,
    clip: TextImageEncoder,
    config: ScoreConfig,
) -> list[NDArray[np.float64]]:
    """CLIP-I per subject: mean over its pictures of their cosine to the crop."""
    names, pictures = all_pictures(subjects, images)
    shown = _embed_images(
        [crop_on_white(p.image, p.mask, config.crop_margin) for p in pictures], clip, config.batch
    )
    crops = _crops(
        [candidate.picture for candidate in candidates],
        [candidate.masks for candidate in candidates],
    )
    cut = [crop_on_white(picture, mask, config.crop_margin) for _, _, picture, mask in crops]
    values = [np.full(len(candidate.masks), ABSENT) for candidate in candidates]
    for (at, place, _, _), vector in zip(
        crops, _embed_images(cut, clip, config.batch), strict=True
    ):
        reference_vectors = shown[names == candidates[at].scene.subject_ids[place]]
        values[at][place] = similarity_matrix([reference_vectors], vector[None])[0, 0]
    return values


def _clip_t(
    candidates: Sequence[_Candidate], clip: TextImageEncoder, batch: int
) -> NDArray[np.float64]:
    """Cosine of each whole picture and its scene's prompt."""
    prompts = sorted({candidate.scene.prompt for candidate in candidates})
    if not prompts:
        return np.zeros(0)
    texts = np.asarray(clip.embed_texts(prompts), dtype=np.float64)
    whole = _embed_images([candidate.picture for candidate in candidates], clip, batch).astype(
        np.float64
    )
    rows = [prompts.index(candidate.scene.prompt) for candidate in candidates]
    cosine: NDArray[np.float64] = (whole * texts[rows]).sum(axis=1)
    return cosine


def _embed_images(images: Sequence[Image], clip: TextImageEncoder, batch: int) -> Vectors:
    parts = [clip.embed_images(part) for part in chunks(images, batch)]
    return np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
