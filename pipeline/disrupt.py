"""Stage disrupt: sampled + instances -> the same picture with subjects repainted (DIP).

A few subjects are repainted without their own reference inside a dilated mask, and pasted back
with a feather that lies wholly inside that mask: every pixel outside it is the parent's, to the
bit. The prior of a pair is therefore known by construction (method 3.3, step 1). Three modes:
all subjects, a random subset, or a swap, where each place is painted from another subject's
reference under its own class word: the hardest leakage negatives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import ndimage

from focusdpo.data_schemas.candidates import Described, Disrupted, DisruptMode, Sampled
from focusdpo.data_schemas.scenes import Scene, stable_hash, stable_id
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.data_schemas.subjects import Subject
from focusdpo.pipeline.parts import Image, Inpainter, Mask, ReferenceImage, guided
from focusdpo.pipeline.stage import (
    ImageReader,
    ReferenceChoice,
    StageOutput,
    chunks,
    image_key,
    mask_image,
    member,
    read_mask,
    read_references,
)

Inpaint = Callable[..., list[Image]]
"""`parts.Inpainter.inpaint`, its guidance settled."""


def grow(mask: Mask, pixels: int, keep: Mask) -> Mask:
    """`mask` and all within `pixels` (Euclidean) of it, less `keep`; `mask` itself stays whole."""
    if not mask.any():
        return mask.copy()
    near = ndimage.distance_transform_edt(~mask) <= pixels
    return mask | (near & ~keep)


def feather_alpha(region: Mask, solid: Mask, pixels: int) -> NDArray[np.float32]:
    """Opacity (H, W): 0 outside `region`, a ramp of `pixels` steps, 1 beyond it and on `solid`.

    Above 0 everywhere in `region`, so that `region` is exactly what is repainted.
    """
    if region.all():
        return np.ones(region.shape, dtype=np.float32)
    # The picture's own border is no edge: pad so that distances ignore it.
    depth = ndimage.distance_transform_edt(np.pad(region, pixels + 1, mode="edge"))
    inner = depth[pixels + 1 : -pixels - 1, pixels + 1 : -pixels - 1]
    alpha = np.clip(inner / (pixels + 1), 0, 1).astype(np.float32)
    alpha[solid & region] = 1
    return alpha


def blend(new: Image, old: Image, alpha: NDArray[np.float32]) -> Image:
    """`new` over `old` with opacity alpha (H, W) in [0, 1]; exactly `old` where alpha is 0."""
    mixed = np.rint(alpha[..., None] * new + (1 - alpha[..., None]) * old.astype(np.float32))
    pasted: Image = np.where(alpha[..., None] > 0, mixed, old).astype(np.uint8)
    return pasted


VERSION = 1

log = logging.getLogger(__name__)


class DisruptConfig(StrictModel):
    """What is repainted, how often, and how it is pasted back."""

    attempts: int = Field(
        default=1, ge=1, description="Disrupted candidates per sampled candidate."
    )
    weight_all: float = Field(default=0.4, ge=0, description="Share of repainting every subject.")
    weight_subset: float = Field(
        default=0.3, ge=0, description="Share of repainting some subjects; needs two or more."
    )
    weight_swap: float = Field(
        default=0.3, ge=0, description="Share of swapping identities; needs two or more subjects."
    )
    dilate: int = Field(default=3, ge=0, description="Pixels by which a subject's mask grows.")
    feather: int = Field(
        default=2, ge=0, description="Width in pixels of the soft edge, inside the grown mask."
    )
    batch: int = Field(default=64, ge=1, description="Most images in one call of the inpainter.")

    @model_validator(mode="after")
    def _consistent(self) -> DisruptConfig:
        if self.feather > self.dilate:
            raise ValueError(f"feather is {self.feather} px, at most dilate ({self.dilate} px)")
        if self.weight_all <= 0:
            raise ValueError("weight_all must be > 0: a scene of one subject has no other mode")
        return self

    def weights(self, subjects: int) -> dict[DisruptMode, float]:
        """The modes that a scene of so many subjects allows, with their shares."""
        if subjects < 2:
            return {"all": 1.0}
        return {"all": self.weight_all, "subset": self.weight_subset, "swap": self.weight_swap}


@dataclass(frozen=True, slots=True)
class _Job:
    """One disrupted candidate in the making."""

    record: Disrupted
    scene: Scene
    captions: tuple[str, ...]
    masks: tuple[Mask, ...]
    """The instance mask of each subject, in scene order."""
    places: tuple[int, ...]
    """Which subjects are repainted, ascending."""
    picture: Image
    """The parent at first; each repaint replaces it."""
    touched: Mask
    """What was repainted so far."""


def disrupt(
    scenes: Sequence[Scene],
    subjects: Mapping[str, Subject],
    sampled: Sequence[Sampled],
    described: Sequence[Described],
    images: ImageReader,
    inpainter: Inpainter,
    config: DisruptConfig,
    prefix: str,
    *,
    reference: ReferenceChoice,
    guidance: float | None = None,
) -> StageOutput[Disrupted]:
    """`attempts` disruptions of each sampled candidate in which every subject was found once.

    `reference` and `guidance` are those of the generate stage: a swap paints from the same
    pictures, and a loser differs from its winner in its subjects, not in how it was sampled. New
    pictures are named "<id>" and "<id>-prior".
    """
    by_id = {scene.id: scene for scene in scenes}
    jobs = [
        _plan(by_id[candidate.scene_id], candidate, whole, attempt, images, config, prefix)
        for candidate in sampled
        if (whole := _complete(by_id[candidate.scene_id], candidate, described)) is not None
        for attempt in range(config.attempts)
    ]
    inpaint = partial(inpainter.inpaint, **guided(guidance))
    plain = [job for job in jobs if job.record.mode != "swap"]
    done = _repaint_from_text(plain, inpaint, config)
    swaps = [job for job in jobs if job.record.mode == "swap"]
    pictures = {
        scene.id: read_references(images, scene, subjects, reference)
        for scene in {job.scene.id: job.scene for job in swaps}.values()
    }
    done += _swap(swaps, pictures, inpaint, config)
    output: StageOutput[Disrupted] = StageOutput([job.record for job in jobs])
    finished = {job.record.id: job for job in done}
    for job in jobs:
        output.images[member(job.record.id)] = finished[job.record.id].picture
        output.images[member(f"{job.record.id}-prior")] = mask_image(
            finished[job.record.id].touched
        )
    log.info("disrupt %s: %d sampled, %d disrupted", prefix, len(sampled), len(jobs))
    return output


def choose_mode(name: str, weights: Mapping[DisruptMode, float]) -> DisruptMode:
    """A mode by hash of the disrupted candidate's id, in proportion to the weights."""
    modes = [mode for mode, weight in weights.items() if weight > 0]
    edges = np.cumsum([weights[mode] for mode in modes])
    at = stable_hash("mode", name) / 2**64 * edges[-1]
    return modes[int(np.searchsorted(edges[:-1], at, side="right"))]


def choose_subset(name: str, count: int) -> tuple[int, ...]:
    """Some but not all of `count` >= 2 places, every such set equally likely."""
    bits = 1 + stable_hash("subset", name) % (2**count - 2)
    return tuple(place for place in range(count) if bits >> place & 1)


def choose_swap(name: str, count: int) -> tuple[int, ...]:
    """Whose reference each of `count` >= 2 places gets: a rotation, so never its own."""
    shift = 1 + stable_hash("rotation", name) % (count - 1)
    return tuple((place + shift) % count for place in range(count))


def repaint_prompt(scene: Scene, captions: Sequence[str]) -> str:
    """The scene's prompt with each class name replaced by its caption.

    Captions that are the class names give the prompt itself; a class name that the prompt does
    not hold is left out.
    """
    prompt, start = scene.prompt, 0
    for name, caption in zip(scene.class_names, captions, strict=True):
        at = prompt.find(name, start)
        if at >= 0:
            prompt = prompt[:at] + caption + prompt[at + len(name) :]
            start = at + len(caption)
    return prompt


def _complete(
    scene: Scene, candidate: Sampled, described: Sequence[Described]
) -> tuple[Described, ...] | None:
    """The description of each subject in scene order, if each was found exactly once."""
    by_subject = {
        d.instance.subject_id: d for d in described if d.instance.candidate_id == candidate.id
    }
    descriptions = [by_subject.get(name) for name in scene.subject_ids]
    whole = tuple(d for d in descriptions if d is not None and d.instance.found == "one")
    return whole if len(whole) == len(descriptions) else None


def _plan(
    scene: Scene,
    candidate: Sampled,
    descriptions: Sequence[Described],
    attempt: int,
    images: ImageReader,
    config: DisruptConfig,
    prefix: str,
) -> _Job:
    count = len(descriptions)
    name = stable_id("disrupted", candidate.id, attempt)
    mode = choose_mode(name, config.weights(count))
    places = choose_subset(name, count) if mode == "subset" else tuple(range(count))
    record = Disrupted(
        id=name,
        scene_id=scene.id,
        parent_id=candidate.id,
        mode=mode,
        subject_ids=tuple(scene.subject_ids[place] for place in places),
        seed=stable_hash("disrupt", candidate.seed, attempt) % 2**31,
        image=image_key(prefix, name),
        prior=image_key(prefix, f"{name}-prior"),
    )
    masks = tuple(
        read_mask(images, d.instance.mask) for d in descriptions if d.instance.mask is not None
    )
    return _Job(
        record=record,
        scene=scene,
        captions=tuple(d.caption for d in descriptions),
        masks=masks,
        places=places,
        picture=images(candidate.image),
        touched=np.zeros(masks[0].shape, dtype=bool),
    )


def _repaint_from_text(jobs: Sequence[_Job], inpaint: Inpaint, config: DisruptConfig) -> list[_Job]:
    """All places of each job at once, from words alone."""
    done: list[_Job] = []
    for part in chunks(jobs, config.batch):
        done += _repaint(
            part,
            [job.places for job in part],
            [[] for _ in part],
            [job.record.seed for job in part],
            inpaint,
            config,
        )
    return done


def _swap(
    jobs: Sequence[_Job],
    pictures: Mapping[str, Sequence[ReferenceImage]],
    inpaint: Inpaint,
    config: DisruptConfig,
) -> list[_Job]:
    """Place after place, each from another subject's reference under its own class word.

    One place at a time, and the references listed are those of what stands there by then, so
    that the model finds its request in the picture and has only the hole to fill.
    """
    done: list[_Job] = []
    for part in chunks(jobs, config.batch):
        current = list(part)
        shown = [list(pictures[job.scene.id]) for job in part]
        donors = [choose_swap(job.record.id, len(job.places)) for job in part]
        for place in part[0].places:
            for at, job in enumerate(part):
                shown[at][place] = pictures[job.scene.id][donors[at][place]]
            seeds = [stable_hash("swap", job.record.seed, place) % 2**31 for job in part]
            current = _repaint(current, [(place,) for _ in part], shown, seeds, inpaint, config)
        done += current
    return done


def _repaint(
    jobs: Sequence[_Job],
    places: Sequence[tuple[int, ...]],
    references: Sequence[Sequence[ReferenceImage]],
    seeds: Sequence[int],
    inpaint: Inpaint,
    config: DisruptConfig,
) -> list[_Job]:
    """One call of the inpainter and the paste-back of each job's `places`."""
    solids = [
        _union([job.masks[p] for p in job_places])
        for job, job_places in zip(jobs, places, strict=True)
    ]
    regions = []
    for job, job_places, solid in zip(jobs, places, solids, strict=True):
        others = [m for p, m in enumerate(job.masks) if p not in job_places]
        keep = _union(others) if others else np.zeros_like(solid)
        regions.append(grow(solid, config.dilate, keep))
    painted = inpaint(
        [job.picture for job in jobs],
        regions,
        [repaint_prompt(job.scene, job.captions) for job in jobs],
        references,
        seeds,
    )
    done = []
    for job, solid, region, new in zip(jobs, solids, regions, painted, strict=True):
        alpha = feather_alpha(region, solid, config.feather)
        picture = blend(new, job.picture, alpha)
        done.append(replace(job, picture=picture, touched=job.touched | (alpha > 0)))
    return done


def _union(masks: Sequence[Mask]) -> Mask:
    return np.logical_or.reduce(masks)
