"""Stage segment: sampled candidate -> one instance per subject, with missing and duplicates.

The segmenter answers words; subjects that share a word are told apart by the identity encoder
with a Hungarian assignment.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from focusdpo.data_schemas.candidates import Found, Instance, Sampled
from focusdpo.data_schemas.scenes import Scene
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.data_schemas.subjects import ImageKey, Subject
from focusdpo.pipeline.matching import NOBODY, Matrix, assign, similarity_matrix
from focusdpo.pipeline.parts import (
    Detection,
    IdentityEncoder,
    Image,
    Mask,
    ReferenceImage,
    Segmenter,
    Vectors,
)
from focusdpo.pipeline.stage import (
    ImageReader,
    StageOutput,
    chunks,
    image_key,
    mask_image,
    member,
    read_reference,
)

VERSION = 1

log = logging.getLogger(__name__)


class SegmentConfig(StrictModel):
    """When a detection counts as an instance."""

    min_confidence: float = Field(
        default=0.5, ge=0, le=1, description="Least confidence of an instance."
    )
    min_area: float = Field(
        default=0.01, ge=0, le=1, description="Least area of an instance, as a share of the image."
    )
    max_overlap: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Detections that share more than this of the smaller one are the same thing; "
        "the more confident is kept, whatever its word.",
    )
    batch: int = Field(default=64, ge=1, description="Most images in one call of a model.")


@dataclass(frozen=True, slots=True)
class _Word:
    """The detections of one word in one candidate and the subjects that answer to it."""

    candidate: int
    subjects: tuple[int, ...]
    detections: tuple[Detection, ...]


def segment(
    scenes: Sequence[Scene],
    subjects: Mapping[str, Subject],
    sampled: Sequence[Sampled],
    images: ImageReader,
    segmenter: Segmenter,
    identity: IdentityEncoder,
    config: SegmentConfig,
    prefix: str,
    *,
    extras: bool = False,
) -> StageOutput[Instance]:
    """An `Instance` for every (candidate, subject), in that order; found or not.

    New pictures are the instance masks, named "<candidate id>-<place of the subject>", and with
    `extras` beside it where further instances of a duplicate stand (`extra_key`).
    """
    by_id = {scene.id: scene for scene in scenes}
    pixels = [images(s.image) for s in sampled]
    words = [_words(by_id[s.scene_id]) for s in sampled]
    detected: list[list[Detection]] = []
    for part in chunks(range(len(sampled)), config.batch):
        detected += segmenter.segment(
            [pixels[at] for at in part], [tuple(words[at]) for at in part]
        )
    kept = [usable(detections, config) for detections in detected]
    claims = [
        _Word(at, places, tuple(d for d in kept[at] if d.class_name == word))
        for at in range(len(sampled))
        for word, places in words[at].items()
    ]
    references = embed_references(subjects, images, identity)
    tables = _similarities(claims, by_id, sampled, pixels, references, identity, config.batch)
    output: StageOutput[Instance] = StageOutput([])
    made: dict[tuple[int, int], _Found] = {}
    for claim, table in zip(claims, tables, strict=True):
        scene = by_id[sampled[claim.candidate].scene_id]
        for place, sighting in _instances(claim, table, sampled, scene, prefix):
            made[claim.candidate, place] = sighting
    for (at, place), sighting in sorted(made.items(), key=lambda item: item[0]):
        output.records.append(sighting.instance)
        if sighting.mask is not None:
            output.images[member(_mask_name(sampled[at], place))] = mask_image(sighting.mask)
        if extras and sighting.others:
            others = np.logical_or.reduce(sighting.others)
            output.images[member(f"{_mask_name(sampled[at], place)}{_EXTRA}")] = mask_image(others)
    bad = sum(i.found != "one" for i in output.records)
    log.info("segment %s: %d instances, %d not found once", prefix, len(output.records), bad)
    return output


def usable(detections: Sequence[Detection], config: SegmentConfig) -> list[Detection]:
    """Detections over the thresholds, most confident first, without those of the same thing."""
    kept: list[Detection] = []
    for detection in sorted(detections, key=lambda d: (-d.confidence, d.box, d.class_name)):
        area = np.count_nonzero(detection.mask) / detection.mask.size
        big_enough = area >= max(config.min_area, 1 / detection.mask.size)
        if detection.confidence < config.min_confidence or not big_enough:
            continue
        if all(overlap(detection.mask, other.mask) <= config.max_overlap for other in kept):
            kept.append(detection)
    return kept


def overlap(a: Mask, b: Mask) -> float:
    """Shared area over the smaller of the two areas; 0 when one is empty."""
    smaller = min(np.count_nonzero(a), np.count_nonzero(b))
    return np.count_nonzero(a & b) / smaller if smaller else 0.0


def embed_references(
    subjects: Mapping[str, Subject], images: ImageReader, identity: IdentityEncoder
) -> dict[str, Vectors]:
    """Each subject's pictures as (pictures, D) identity vectors, in one batch."""
    names, pictures = all_pictures(subjects, images)
    vectors = identity.embed([p.image for p in pictures], [p.mask for p in pictures])
    return {name: vectors[names == name] for name in subjects}


def all_pictures(
    subjects: Mapping[str, Subject], images: ImageReader
) -> tuple[NDArray[np.str_], list[ReferenceImage]]:
    """All pictures of all subjects, and whose each is."""
    owners = [(name, r) for name in sorted(subjects) for r in subjects[name].references]
    return np.array([name for name, _ in owners]), [read_reference(images, r) for _, r in owners]


def embed_in_chunks(
    images: Sequence[Image], masks: Sequence[Mask], identity: IdentityEncoder, batch: int
) -> Vectors:
    """`identity.embed` in calls of at most `batch`; (0, 0) for nothing."""
    parts = [
        identity.embed([images[at] for at in part], [masks[at] for at in part])
        for part in chunks(range(len(images)), batch)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)


def _words(scene: Scene) -> dict[str, tuple[int, ...]]:
    """Distinct class names in order, with the places of the subjects that share each."""
    places: dict[str, tuple[int, ...]] = {}
    for place, word in enumerate(scene.class_names):
        places[word] = (*places.get(word, ()), place)
    return places


def _similarities(
    claims: Sequence[_Word],
    scenes: Mapping[str, Scene],
    sampled: Sequence[Sampled],
    pixels: Sequence[Image],
    references: Mapping[str, Vectors],
    identity: IdentityEncoder,
    batch: int,
) -> list[Matrix]:
    """Subjects by detections for each word, all crops in one go."""
    crops = [(c.candidate, d.mask) for c in claims for d in c.detections]
    vectors = embed_in_chunks(
        [pixels[at] for at, _ in crops], [mask for _, mask in crops], identity, batch
    )
    tables = []
    start = 0
    for claim in claims:
        names = scenes[sampled[claim.candidate].scene_id].subject_ids
        reference_vectors = [references[names[place]] for place in claim.subjects]
        tables.append(
            similarity_matrix(reference_vectors, vectors[start : start + len(claim.detections)])
        )
        start += len(claim.detections)
    return tables


_EXTRA = "-extra"


def extra_key(mask: ImageKey) -> ImageKey:
    """Where the further instances of a duplicate lie, from its mask's key."""
    return f"{mask.removesuffix('.png')}{_EXTRA}.png"


@dataclass(frozen=True, slots=True)
class _Found:
    """A subject in a candidate."""

    instance: Instance
    mask: Mask | None
    others: tuple[Mask, ...]
    """Of the further instances that look most like it."""


def _instances(
    claim: _Word, table: Matrix, sampled: Sequence[Sampled], scene: Scene, prefix: str
) -> list[tuple[int, _Found]]:
    """The instance of each subject of a word; detections left over count as duplicates."""
    # One subject: its best detection by confidence. Several: who looks like whom decides.
    alone = [0 if claim.detections else NOBODY]
    given = assign(table) if len(claim.subjects) > 1 else alone
    others: list[list[Mask]] = [[] for _ in given]
    for k in sorted(set(range(len(claim.detections))) - set(given)):
        others[int(table[:, k].argmax())].append(claim.detections[k].mask)
    candidate = sampled[claim.candidate]
    made = []
    for row, place in enumerate(claim.subjects):
        hit = claim.detections[given[row]] if given[row] != NOBODY else None
        outcome: Found = "missing" if hit is None else "duplicate" if others[row] else "one"
        instance = Instance(
            candidate_id=candidate.id,
            scene_id=scene.id,
            subject_id=scene.subject_ids[place],
            class_name=scene.class_names[place],
            found=outcome,
            box=hit.box if hit else None,
            mask=image_key(prefix, _mask_name(candidate, place)) if hit else None,
            confidence=float(hit.confidence) if hit else 0.0,
            extra=len(others[row]),
        )
        made.append((place, _Found(instance, hit.mask if hit else None, tuple(others[row]))))
    return made


def _mask_name(candidate: Sampled, place: int) -> str:
    return f"{candidate.id}-{place}"
