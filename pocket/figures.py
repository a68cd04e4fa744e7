"""What the pocket scorers reach on individuals that no training saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from focusdpo.data_schemas.prompts import article
from focusdpo.pipeline.parts import (
    IdentityEncoder,
    Image,
    Mask,
    Segmenter,
    TextImageEncoder,
    Vectors,
)
from focusdpo.pocket.cards import Figure
from focusdpo.pocket.classes import BACKGROUNDS, PATTERNS, Split, class_names
from focusdpo.pocket.crops import crop_subjects
from focusdpo.pocket.models.autoencoder import load_autoencoder
from focusdpo.pocket.models.generator import frame_references
from focusdpo.pocket.world.casting import draw_cast
from focusdpo.pocket.world.grammar import prompt_for
from focusdpo.pocket.world.identities import Identity, sample_identities
from focusdpo.pocket.world.world import Scenes, render_references, render_scenes

if TYPE_CHECKING:
    from focusdpo.pocket.models.judge import PocketJudge

GALLERY = 50
COUNTS = (1, 2, 3, 4)
"""Subjects per scene that bodies are looked for in."""


AUTOENCODER_SEED = 2 * 10**6
"""First batch seed of what the autoencoder is measured on; its training has step numbers."""


def new_classes() -> tuple[str, ...]:
    """Classes that no generator and no scorer was trained on."""
    return class_names("val") + class_names("held_out")


def to_images(images_BCHW: Tensor) -> list[Image]:
    """Pictures in [0, 1] as uint8 arrays (H, W, 3)."""
    return list((images_BCHW.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy())


def to_masks(masks_BHW: Tensor) -> list[Mask]:
    """Boolean masks as arrays."""
    return list(masks_BHW.numpy())


@dataclass(frozen=True)
class Gallery:
    """Individuals, each in a reference and in a scene of two."""

    identities: list[Identity]
    references: tuple[list[Image], list[Mask]]
    scenes: tuple[list[Image], list[Mask]]

    @classmethod
    def draw(cls, classes: Sequence[str], count: int, seed: int) -> Gallery:
        """`count` held-out individuals."""
        identities = sample_identities("held_out", classes, count, seed)
        others = sample_identities("held_out", class_names("train"), count, seed + 1)
        pictures, bodies = render_references(identities, [seed * 1000 + i for i in range(count)])
        casts = list(zip(identities, others, strict=True))
        scenes = render_scenes(casts, [seed * 1000 + 500 + i for i in range(count)])
        return cls(
            identities,
            (to_images(pictures), to_masks(bodies)),
            (to_images(scenes.images), to_masks(scenes.masks[:, 0])),
        )


def rank_one(queries_BD: Vectors, references_BD: Vectors) -> float:
    """Share of queries whose nearest reference is their own."""
    nearest = (queries_BD @ references_BD.T).argmax(1)
    return float((nearest == np.arange(len(nearest))).mean())


def held_out_scenes(
    count: int, subjects: int, seed: int, classes: Sequence[str], *, distinct: bool = True
) -> tuple[list[list[Identity]], Scenes]:
    """Scenes of held-out individuals, with `distinct` of different classes."""
    rng = np.random.default_rng([seed, 0x4E])
    casts: list[list[Identity]] = []
    while len(casts) < count:
        cast = draw_cast("held_out", classes, subjects, rng)
        if not distinct or len({subject.class_name for subject in cast}) == subjects:
            casts.append(cast)
    return casts, render_scenes(casts, rng.integers(2**31, size=count).tolist())


def autoencoder_pictures(split: Split, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Half scenes (count / 2, 3, 96, 96), half framed references (count / 2, 3, 40, 40), in
    [-1, 1]."""
    rng = np.random.default_rng([seed, 0xAE])
    half, classes = count // 2, class_names(split)
    casts = [draw_cast(split, classes, 1 + seed % 3, rng) for _ in range(half)]
    scenes = render_scenes(casts, rng.integers(2**31, size=half).tolist())
    alone = [cast[0] for cast in casts]
    pictures, masks = render_references(alone, rng.integers(2**31, size=half).tolist())
    framed, _ = frame_references(pictures * 2 - 1, masks.float())
    return scenes.images * 2 - 1, framed


@torch.no_grad()
def autoencoder_figures(weights: Path) -> list[Figure]:
    """PSNR of held-out individuals of held-out classes, mean over pictures."""
    model = load_autoencoder(weights)
    batches = [autoencoder_pictures("held_out", 64, AUTOENCODER_SEED + i) for i in range(3)]
    values = []
    for images in zip(*batches, strict=True):
        target = torch.cat(images)
        values.append(psnr(model.decode_latents(model.encode_latents(target)), target))
    return [
        Figure("autoencoder", "PSNR of scenes in dB", values[0], ">= 32"),
        Figure("autoencoder", "PSNR of framed references in dB", values[1], ""),
    ]


def psnr(output: Tensor, target: Tensor) -> float:
    """Mean over images in [-1, 1], in dB."""
    error = ((output.clamp(-1, 1) - target) / 2).square().flatten(1).mean(1)
    return float((-10 * error.log10()).mean())


def identity_figures(
    part: IdentityEncoder, model: str = "identity", rounds: int = 4
) -> list[Figure]:
    """Rank-1 among 50 references: training classes, classes never trained on, and one class."""

    def mean(class_lists: Sequence[Sequence[str]], count: int) -> float:
        values = []
        for seed, classes in enumerate(class_lists):
            drawn = Gallery.draw(classes, count, 7000 + seed)
            values.append(rank_one(part.embed(*drawn.scenes), part.embed(*drawn.references)))
        return float(np.mean(values))

    known = class_names("train")
    return [
        Figure(model, f"rank-1 among {GALLERY}", mean([known] * rounds, GALLERY), ">= 0.80"),
        Figure(
            model,
            f"rank-1 among {GALLERY}, new classes",
            mean([new_classes()] * rounds, GALLERY),
            "",
        ),
        Figure(model, "rank-1 among 10 of one class", mean([[c] for c in known[::4]], 10), ""),
    ]


def segmenter_figures(part: Segmenter, count: int = 200) -> list[Figure]:
    """IoU of a word's best detection with its subject, and how often it is the right one."""
    model = "segmenter"
    overlaps, objects, rivals = (
        np.array(v) for v in _word_results(part, count, class_names("train"))
    )
    _, new_objects, _ = _word_results(part, count, new_classes())
    return [
        Figure(model, "mean IoU", float(overlaps.mean()), ">= 0.80"),
        Figure(model, "correct subject chosen", float((overlaps > 0.5).mean()), ">= 0.90"),
        Figure(model, "`object` takes a known word's place", float(rivals.mean()), "< 0.02"),
        Figure(model, "`object`: mean IoU", float(objects.mean()), ""),
        Figure(model, "`object`, new classes: mean IoU", float(np.mean(new_objects)), ""),
    ]  # fmt: skip


def _word_results(
    part: Segmenter, count: int, classes: Sequence[str]
) -> tuple[list[float], list[float], list[bool]]:
    """Per subject: IoU of its word's best detection; best IoU among `object` detections. Per
    scene: whether `object`, asked beside the first subject's word, gets that subject's body."""
    by_word, by_object, rivals = [], [], []
    for subjects in COUNTS:
        casts, scenes = held_out_scenes(count, subjects, 7100 + subjects, classes)
        images = to_images(scenes.images)
        words = [[subject.class_name for subject in cast] for cast in casts]
        for b, detections in enumerate(part.segment(images, words)):
            for r, word in enumerate(words[b]):
                best = next((d for d in detections if d.class_name == word), None)
                truth = scenes.masks[b, r].numpy()
                by_word.append(iou(best.mask, truth) if best else 0.0)
        for b, detections in enumerate(part.segment(images, [["object"]] * len(images))):
            for r in range(subjects):
                truth = scenes.masks[b, r].numpy()
                by_object.append(max((iou(d.mask, truth) for d in detections), default=0.0))
        beside = part.segment(images, [[row[0], "object"] for row in words])
        for b, detections in enumerate(beside):
            taken = [d.mask for d in detections if d.class_name == "object"]
            truth = scenes.masks[b, 0].numpy()
            rivals.append(any(iou(mask, truth) > 0.5 for mask in taken))
    return by_word, by_object, rivals


def iou(first: Mask, second: Mask) -> float:
    """Intersection over union; 0 where both are empty."""
    union = (first | second).sum()
    return float((first & second).sum() / union) if union else 0.0


def clip_figures(part: TextImageEncoder, count: int = 120) -> list[Figure]:
    """Zero-shot class of instance crops; the right prompt among those with one class changed."""
    classes = class_names("train")
    casts, scenes = held_out_scenes(count, 2, 7201, classes)
    crops = crop_subjects(scenes.images.repeat_interleave(2, 0), scenes.masks.flatten(0, 1), 64)
    words = part.embed_texts([article(name) for name in classes])
    guess = (part.embed_images(to_images(crops)) @ words.T).argmax(1)
    names = [subject.class_name for cast in casts for subject in cast]
    right = np.array([classes[g] == name for g, name in zip(guess, names, strict=True)])
    pictures = part.embed_images(to_images(scenes.images))
    grounds, changed = [], []
    for picture, cast, background in zip(pictures, casts, scenes.backgrounds, strict=True):
        pair = [subject.class_name for subject in cast]
        texts = part.embed_texts([prompt_for(pair, ground) for ground in BACKGROUNDS])
        grounds.append(BACKGROUNDS[int((texts @ picture).argmax())] == background)
        others = [pair[1], *(name for name in classes if name not in pair)]
        texts = part.embed_texts([prompt_for([pair[0], name], background) for name in others])
        changed.append(int((texts @ picture).argmax()) == 0)
    return [
        Figure("clip", "zero-shot class of an instance", float(right.mean()), ">= 0.80"),
        Figure("clip", "prompt above all with one class changed", float(np.mean(changed)), ""),
        Figure("clip", "zero-shot background", float(np.mean(grounds)), ""),
    ]


def judge_figures(part: PocketJudge, count: int = 45) -> list[Figure]:
    """How well the judge finds bodies and tells class, individual, pattern and hue."""
    seen, false, hits = _bodies_seen(part, count, class_names("train"))
    seen_new, false_new, new_hits = _bodies_seen(part, count, new_classes())
    drawn = Gallery.draw(class_names("train"), 200, 7400)
    pattern = [PATTERNS[k] for k in part.patterns(*drawn.scenes).argmax(1)]
    named = np.mean(
        [a == subject.pattern for a, subject in zip(pattern, drawn.identities, strict=True)]
    )
    miss = np.abs((part.hue(*drawn.scenes) - part.hue(*drawn.references) + 180) % 360 - 180)
    galleries = [Gallery.draw(class_names("train"), GALLERY, 7000 + seed) for seed in range(4)]
    ranks = [
        rank_one(part.embed_references(*g.scenes), part.embed_references(*g.references))
        for g in galleries
    ]
    scenes = 2 * count * len(COUNTS)
    return [
        Figure("judge", "bodies found", float(np.mean(seen + seen_new)), ">= 0.97"),
        Figure("judge", "false bodies per scene", (false + false_new) / scenes, "< 0.03"),
        Figure("judge", "class of an instance", float(np.mean(hits)), ">= 0.90"),
        Figure("judge", "class of an instance, classes new to the scorers",
               float(np.mean(new_hits)), ">= 0.90"),
        Figure("judge", f"rank-1 among {GALLERY}", float(np.mean(ranks)), ">= 0.80"),
        Figure("judge", "pattern", float(named), ""),
        Figure("judge", "hue of an instance against its reference, degrees",
               float(np.nanmedian(miss)), "< 10"),
    ]  # fmt: skip


def _bodies_seen(
    part: PocketJudge, count: int, classes: Sequence[str]
) -> tuple[list[bool], int, list[bool]]:
    """Per subject whether it is found, how many bodies too many, and per found subject whether
    its class is right."""
    seen_rows: list[bool] = []
    hits: list[bool] = []
    false = 0
    for subjects in COUNTS:
        casts, scenes = held_out_scenes(count, subjects, 7300 + subjects, classes)
        for b, seen in enumerate(part.look(to_images(scenes.images))):
            false += max(0, len(seen) - subjects)
            for r, subject in enumerate(casts[b]):
                truth = scenes.masks[b, r].numpy()
                best = max(seen, key=lambda s: iou(s.mask, truth), default=None)
                hit = best is not None and iou(best.mask, truth) > 0.5
                seen_rows.append(hit)
                if best is not None and hit:
                    hits.append(
                        part.class_names[int(best.class_scores.argmax())] == subject.class_name
                    )
    return seen_rows, false, hits
