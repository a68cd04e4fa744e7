"""What the pocket scorers reach on identities that no training saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from focusdpo.pipeline.parts import IdentityEncoder, Image, Mask, Segmenter, Vectors
from focusdpo.pocket.cards import Figure
from focusdpo.pocket.identities import Identity, class_names, sample_identities
from focusdpo.pocket.world import Scenes, render_references, render_scenes

GALLERY = 50


def to_images(images_BCHW: Tensor) -> list[Image]:
    """Pictures in [0, 1] as uint8 arrays (H, W, 3)."""
    return list((images_BCHW.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy())


def to_masks(masks_BHW: Tensor) -> list[Mask]:
    """Boolean masks as arrays."""
    return list(masks_BHW.numpy())


def gallery(
    classes: Sequence[str], count: int, seed: int
) -> tuple[list[Identity], list[Image], list[Mask], list[Image], list[Mask]]:
    """Held-out identities, their references, and each in a new scene of two."""
    identities = sample_identities("held_out", classes, count, seed)
    others = sample_identities("held_out", class_names("train"), count, seed + 1)
    pictures, bodies = render_references(identities, [seed * 1000 + i for i in range(count)])
    rows = [[one, other] for one, other in zip(identities, others, strict=True)]
    scenes = render_scenes(rows, [seed * 1000 + 500 + i for i in range(count)])
    return (
        identities,
        to_images(pictures),
        to_masks(bodies),
        to_images(scenes.images),
        to_masks(scenes.masks[:, 0]),
    )


def rank_one(queries_BD: Vectors, references_BD: Vectors) -> float:
    """Share of queries whose nearest reference is their own."""
    nearest = (queries_BD @ references_BD.T).argmax(1)
    return float((nearest == np.arange(len(nearest))).mean())


def identity_figures(
    part: IdentityEncoder, model: str = "identity", rounds: int = 8
) -> list[Figure]:
    """Rank-1 among 50 references: training classes, classes never trained on, and one class."""

    def mean(class_lists: Sequence[Sequence[str]], count: int) -> float:
        values = []
        for seed, classes in enumerate(class_lists):
            _, refs, bodies, scenes, masks = gallery(classes, count, 7000 + seed)
            values.append(rank_one(part.embed(scenes, masks), part.embed(refs, bodies)))
        return float(np.mean(values))

    known = class_names("train")
    new = class_names("val") + class_names("held_out")
    return [
        Figure(model, f"rank-1 among {GALLERY}", mean([known] * rounds, GALLERY), ">= 0.80"),
        Figure(model, f"rank-1 among {GALLERY}, new classes", mean([new] * rounds, GALLERY), ""),
        Figure(model, "rank-1 among 10 of one class", mean([[c] for c in known], 10), ""),
    ]


def held_out_scenes(
    count: int, subjects: int, seed: int, classes: Sequence[str] | None = None
) -> tuple[list[list[Identity]], Scenes]:
    """Scenes of held-out identities, all classes of a scene distinct."""
    rng = np.random.default_rng([seed, 0x4E])
    names = classes or class_names("train")
    rows = []
    for _ in range(count):
        chosen = rng.choice(len(names), subjects, replace=False)
        rows.append(
            [
                sample_identities("held_out", [names[i]], 1, int(rng.integers(2**31)))[0]
                for i in chosen
            ]
        )
    return rows, render_scenes(rows, [int(s) for s in rng.integers(2**31, size=count)])


def segmenter_figures(part: Segmenter, count: int = 60) -> list[Figure]:
    """IoU of a word's best detection with its subject, and how often it is the right one."""
    model = "segmenter"
    known, objects = _word_results(part, count, class_names("train"))
    _, new_objects = _word_results(part, count, class_names("val") + class_names("held_out"))
    overlaps = np.array(known)
    return [
        Figure(model, "mean IoU", float(overlaps.mean()), ">= 0.80"),
        Figure(model, "correct subject chosen", float((overlaps > 0.5).mean()), ">= 0.90"),
        Figure(model, "`object`: mean IoU", float(np.mean(objects)), ""),
        Figure(model, "`object`, new classes: mean IoU", float(np.mean(new_objects)), ""),
    ]


def _word_results(
    part: Segmenter, count: int, classes: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Per subject: IoU of its word's best detection; best IoU among `object` detections."""
    by_word, by_object = [], []
    for subjects in (1, 2, 3):
        rows, scenes = held_out_scenes(count, subjects, 7100 + subjects, classes)
        images = to_images(scenes.images)
        words = [[one.class_name for one in row] for row in rows]
        for b, found in enumerate(part.segment(images, words)):
            for r, word in enumerate(words[b]):
                truth = scenes.masks[b, r].numpy()
                best = next((d for d in found if d.class_name == word), None)
                by_word.append(iou(best.mask, truth) if best else 0.0)
        for b, found in enumerate(part.segment(images, [["object"]] * len(images))):
            for r in range(subjects):
                truth = scenes.masks[b, r].numpy()
                by_object.append(max((iou(d.mask, truth) for d in found), default=0.0))
    return by_word, by_object


def iou(first: Mask, second: Mask) -> float:
    """Intersection over union; 0 where both are empty."""
    union = (first | second).sum()
    return float((first & second).sum() / union) if union else 0.0
