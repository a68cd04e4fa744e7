"""DreamBench's measures (pure): whole pictures as the public protocols define them, and instances.

Whole pictures: DINO and CLIP-I are cosines to a subject's target photographs, averaged over these
and then over the scene's subjects; CLIP-T is the cosine to the prompt (DreamBooth, arXiv
2208.12242, section 4.2; for two subjects as UNO's released scorer does it). Instances: what the
segmenter finds for the class words, assigned to subjects by word and then by identity
(`pipeline.matching`), measured as `evaluation.metrics.identity_values`.

The 25 prompts and all seeds of one subject (or pair) are not independent of each other: what a
model does with a subject it does on every background. So a set's mean over all its pictures counts
once, as the public scorers average, and the bootstrap draws sets. Pairs that share a subject still
depend on each other a little.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from focusdpo.data_schemas.evaluations import EvalScene, WholeScores
from focusdpo.data_schemas.scenes import Scene
from focusdpo.evaluation.metrics import METRICS, Metric, judged_scene, thumb
from focusdpo.evaluation.protocols import EvaluateConfig
from focusdpo.pipeline.matching import NOBODY, Matrix, assign, similarity_matrix
from focusdpo.pipeline.parts import (
    Detection,
    IdentityEncoder,
    Image,
    Mask,
    Part,
    ReferenceImage,
    Segmenter,
    TextImageEncoder,
    Vectors,
)
from focusdpo.pipeline.segment import SegmentConfig, usable

BENCH_METRICS: dict[str, Metric] = {
    "dino": Metric(
        "DINO", "higher", "cosine",
        "Whole picture and whole target photographs of each subject, averaged.",
    ),
    "clip_i": Metric(
        "CLIP-I", "higher", "cosine",
        "Whole picture and whole target photographs of each subject, averaged.",
    ),
    "clip_t": Metric("CLIP-T", "higher", "cosine", "Whole picture and its prompt."),
    **{
        name: METRICS[name]
        for name in (
            "failed", "identity", "leakage_margin", "confusion", "missing", "duplicate",
            "scr_40", "scr_50", "scr_60", "copy_paste",
        )
    },
}  # fmt: skip
"""Every metric of a DreamBench table, in its order."""

log = logging.getLogger(__name__)
Item = TypeVar("Item")


class WholeEncoder(Part, Protocol):
    """An identity encoder that also takes whole pictures, background and all (DINO)."""

    def embed_whole(self, images: Sequence[Image]) -> Vectors:
        """(B, D), unit length."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchParts:
    """The models that measure."""

    whole: WholeEncoder | None
    """None: whole pictures are not compared."""
    identity: IdentityEncoder
    clip: TextImageEncoder
    segmenter: Segmenter


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSubject:
    """What is known of a subject from its T target photographs."""

    dino: Vectors
    """(T, D) whole photographs; (0, 0) when whole pictures are not compared."""
    clip: Vectors
    """(T, C) whole photographs, as `dino`."""
    identity: Vectors
    """(T, D) the subject in each."""
    thumbs: tuple[ReferenceImage, ...]
    masks: tuple[Mask, ...]
    """(H, W) each: where the subject is; everywhere where it was not found."""
    undetected: int
    """Photographs in which the segmenter did not find it: the whole counts as the subject."""


def know_subject(
    photographs: Sequence[Image],
    class_name: str,
    parts: BenchParts,
    config: EvaluateConfig,
    masks: Sequence[Mask] | None = None,
) -> KnownSubject:
    """Embed a subject's target photographs, of any sizes; `masks` (H, W) where they are known, else
    the segmenter finds the class word."""
    undetected = 0
    if masks is None:
        detected = detect(photographs, [(class_name,)] * len(photographs), parts.segmenter, config)
        masks = [
            detections[0].mask if detections else np.ones(image.shape[:2], np.bool_)
            for image, detections in zip(photographs, detected, strict=True)
        ]
        undetected = sum(not detections for detections in detected)
    if undetected:
        log.warning("%s: not found in %d of %d photographs", class_name, undetected, len(masks))
    none = np.zeros((0, 0), np.float32)
    whole = parts.whole
    return KnownSubject(
        dino=embed(whole.embed_whole, photographs, config.batch) if whole else none,
        clip=embed(parts.clip.embed_images, photographs, config.batch) if whole else none,
        identity=embed_masked(parts.identity, photographs, masks, config.batch),
        thumbs=tuple(thumb(image, mask) for image, mask in zip(photographs, masks, strict=True)),
        masks=tuple(masks),
        undetected=undetected,
    )


def measure_pictures(
    model: str,
    protocol: str,
    scenes: Sequence[Scene],
    indices: Sequence[int],
    names: Sequence[str],
    pictures: Sequence[Image],
    known: Mapping[str, KnownSubject],
    parts: BenchParts,
    config: EvaluateConfig,
) -> tuple[list[EvalScene], list[WholeScores]]:
    """One record of each kind per picture.

    `scenes[b]` is the scene of picture b, `indices[b]` its number in the scene and `names[b]` where
    it lies. The metrics of the pocket judge alone (class, hue, pattern) are NaN.
    """
    dino = embed(parts.whole.embed_whole, pictures, config.batch) if parts.whole else None
    clip = embed(parts.clip.embed_images, pictures, config.batch)
    texts = parts.clip.embed_texts([scene.prompt for scene in scenes])
    clip_t = np.sum(clip.astype(np.float64) * texts.astype(np.float64), axis=1)
    words = [tuple(dict.fromkeys(scene.class_names)) for scene in scenes]
    detected = detect(pictures, words, parts.segmenter, config)
    vectors = _instance_vectors(pictures, detected, parts.identity, config.batch)
    judged, whole = [], []
    for at, (scene, picture) in enumerate(zip(scenes, pictures, strict=True)):
        subjects = [known[name] for name in scene.subject_ids]
        similarity = similarity_matrix([subject.identity for subject in subjects], vectors[at])
        given = match(similarity, scene.class_names, detected[at], config.class_weight)
        judged.append(
            judged_scene(
                scene,
                picture,
                similarity,
                given,
                detected[at],
                [subject.thumbs for subject in subjects],
                claim=config.claim,
                least=config.least_identity,
                protocol=protocol,
                model=model,
                index=indices[at],
                image=names[at],
                held_out=False,
                class_recognition=np.nan,
                hue_error=np.nan,
                pattern_error=np.nan,
                clip_t=float(clip_t[at]),
            )
        )
        blank = (np.nan,) * len(subjects)
        dino_each = blank if dino is None else whole_cosines(dino[at], [o.dino for o in subjects])
        clip_each = blank if dino is None else whole_cosines(clip[at], [o.clip for o in subjects])
        whole.append(
            WholeScores(
                model=model,
                scene_id=scene.id,
                index=indices[at],
                dino=float(np.mean(dino_each)),
                clip_i=float(np.mean(clip_each)),
                dino_each=dino_each,
                clip_i_each=clip_each,
            )
        )
    return judged, whole


def whole_cosines(vector: Vectors, targets: Sequence[Vectors]) -> tuple[float, ...]:
    """Per subject the mean cosine of a picture (D,) and its target photographs (T, D)."""
    picture_vector = vector.astype(np.float64)
    return tuple(
        float((subject_vectors.astype(np.float64) @ picture_vector).mean())
        for subject_vectors in targets
    )


def match(
    similarity: Matrix,
    class_names: Sequence[str],
    detections: Sequence[Detection],
    class_weight: float,
) -> list[int]:
    """The instance of each subject: by the word it was found for, then by identity.

    Similarity (R, n) plus `class_weight` where the words agree is assigned (Hungarian); an instance
    of another word is nobody. With weight 0 looks alone decide.
    """
    if not class_weight:
        return assign(similarity)
    agree = np.array(
        [[detection.class_name == word for detection in detections] for word in class_names],
        dtype=np.bool_,
    ).reshape(similarity.shape)
    given = assign(similarity + class_weight * agree)
    return [k if k != NOBODY and agree[row, k] else NOBODY for row, k in enumerate(given)]


def detect(
    images: Sequence[Image],
    words: Sequence[tuple[str, ...]],
    segmenter: Segmenter,
    config: EvaluateConfig,
) -> list[list[Detection]]:
    """The instances that count in each image, of any sizes, most confident first."""
    limits = SegmentConfig(min_confidence=config.min_confidence, min_area=config.min_area)

    def instances(part: list[int]) -> list[list[Detection]]:
        made = segmenter.segment([images[at] for at in part], [words[at] for at in part])
        return [usable(detections, limits) for detections in made]

    return by_size(images, config.batch, instances)


def embed(
    encode: Callable[[Sequence[Image]], Vectors], images: Sequence[Image], batch: int
) -> Vectors:
    """(B, D) of images of any sizes, in calls of one size and at most `batch`."""
    return np.stack(by_size(images, batch, lambda part: encode([images[at] for at in part])))


def embed_masked(
    identity: IdentityEncoder, images: Sequence[Image], masks: Sequence[Mask], batch: int
) -> Vectors:
    """(B, D) of the masked subjects of images of any sizes; (0, 1) for none."""

    def subjects(part: list[int]) -> Vectors:
        return identity.embed([images[at] for at in part], [masks[at] for at in part])

    vectors = by_size(images, batch, subjects)
    return np.stack(vectors) if vectors else np.zeros((0, 1), np.float32)


def by_size(
    images: Sequence[Image], most: int, call: Callable[[list[int]], Iterable[Item]]
) -> list[Item]:
    """What `call` makes of each image, given the numbers of images of one size, at most so many at
    a time: a part may stack its input."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for at, image in enumerate(images):
        sizes.setdefault(image.shape, []).append(at)
    made: dict[int, Item] = {}
    for numbers in sizes.values():
        for start in range(0, len(numbers), most):
            part = numbers[start : start + most]
            made |= dict(zip(part, call(part), strict=True))
    return [made[at] for at in range(len(images))]


def _instance_vectors(
    pictures: Sequence[Image],
    detected: Sequence[Sequence[Detection]],
    identity: IdentityEncoder,
    batch: int,
) -> list[Vectors]:
    """(n, D) of each picture's instances, all in one go."""
    owners = [at for at, detections in enumerate(detected) for _ in detections]
    masks = [detection.mask for detections in detected for detection in detections]
    vectors = embed_masked(identity, [pictures[at] for at in owners], masks, batch)
    return [vectors[[n for n, at in enumerate(owners) if at == b]] for b in range(len(detected))]


@dataclass(frozen=True, slots=True)
class BenchPicture:
    """Both records of one picture, with the metrics and fields of either."""

    judged: EvalScene
    whole: WholeScores

    @property
    def scene_id(self) -> str:
        """What the bootstrap draws: the set of subjects."""
        return "+".join(sorted(self.judged.subject_ids))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole if name in ("dino", "clip_i") else self.judged, name)


def undetected(records: Sequence[EvalScene]) -> tuple[int, int]:
    """(subjects that were not found, subjects that were asked for) over all pictures."""
    lost = sum(not box for record in records for box in record.boxes)
    return lost, sum(len(record.boxes) for record in records)


def bench_pictures(judged: Sequence[EvalScene], whole: Sequence[WholeScores]) -> list[BenchPicture]:
    """Both records of each picture. ValueError when they are not of the same pictures."""
    pairs = list(zip(judged, whole, strict=True))
    odd = [a.scene_id for a, b in pairs if (a.scene_id, a.index) != (b.scene_id, b.index)]
    if odd:
        raise ValueError(f"records of different pictures: {odd[:3]}")
    return [BenchPicture(a, b) for a, b in pairs]
