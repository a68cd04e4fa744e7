"""What the pocket scorers reach on identities that no training saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from focusdpo.pipeline.parts import (
    IdentityEncoder,
    Image,
    Mask,
    Segmenter,
    TextImageEncoder,
    Vectors,
)
from focusdpo.pocket.cards import Figure
from focusdpo.pocket.crops import crop_subjects
from focusdpo.pocket.first.identities import PATTERNS, Identity, class_names, sample_identities
from focusdpo.pocket.first.world import (
    BACKGROUNDS,
    Scenes,
    prompt_for,
    render_references,
    render_scenes,
)

if TYPE_CHECKING:
    from focusdpo.pocket.first.judge import PocketJudge

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
    part: IdentityEncoder, model: str = "identity", rounds: int = 4
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
        Figure(model, "rank-1 among 10 of one class", mean([[c] for c in known[::4]], 10), ""),
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


def clip_figures(part: TextImageEncoder, count: int = 120) -> list[Figure]:
    """Zero-shot class of instance crops; the right prompt among those with one class changed."""
    classes = class_names("train")
    rows, scenes = held_out_scenes(count, 2, 7201)
    crops = crop_subjects(scenes.images.repeat_interleave(2, 0), scenes.masks.flatten(0, 1), 40)
    words = part.embed_texts([f"a {name}" for name in classes])
    guess = (part.embed_images(to_images(crops)) @ words.T).argmax(1)
    names = [one.class_name for row in rows for one in row]
    right = np.array([classes[g] == name for g, name in zip(guess, names, strict=True)])
    pictures = part.embed_images(to_images(scenes.images))
    grounds = [
        [prompt_for([one.class_name for one in row], ground) for ground in BACKGROUNDS]
        for row in rows
    ]
    ground = [
        BACKGROUNDS[int((part.embed_texts(texts) @ picture).argmax())]
        for texts, picture in zip(grounds, pictures, strict=True)
    ]
    told = [
        _tells_classes(part, picture, row, name)
        for picture, row, name in zip(pictures, rows, scenes.backgrounds, strict=True)
    ]
    named = np.mean([a == b for a, b in zip(ground, scenes.backgrounds, strict=True)])
    return [
        Figure("clip", "zero-shot class of an instance", float(right.mean()), ">= 0.80"),
        Figure("clip", "prompt above all with one class changed", float(np.mean(told)), ""),
        Figure("clip", "zero-shot background", float(named), ""),
    ]


def _tells_classes(
    part: TextImageEncoder, picture: Vectors, row: list[Identity], background: str
) -> bool:
    """Whether a scene of two is nearer to its prompt than to each with its second class changed."""
    first, second = (one.class_name for one in row)
    others = [name for name in class_names("train") if name not in (first, second)]
    texts = [prompt_for([first, name], background) for name in (second, *others)]
    return bool((part.embed_texts(texts) @ picture).argmax() == 0)


def judge_figures(part: PocketJudge, count: int = 60) -> list[Figure]:
    """How well the judge finds bodies and tells class, individual, pattern and hue."""
    known, new = class_names("train"), class_names("val") + class_names("held_out")
    found: list[bool] = []
    hits: list[bool] = []
    new_hits: list[bool] = []
    false = 0
    for subjects in (1, 2, 3):
        for classes, right in ((known, hits), (new, new_hits)):
            rows, scenes = held_out_scenes(count, subjects, 7300 + subjects, classes)
            for b, seen in enumerate(part.look(to_images(scenes.images))):
                false += max(0, len(seen) - subjects)
                for r, one in enumerate(rows[b]):
                    truth = scenes.masks[b, r].numpy()
                    best = max(seen, key=lambda s: iou(s.mask, truth), default=None)
                    hit = best is not None and iou(best.mask, truth) > 0.5
                    found.append(bool(hit))
                    if best is not None and hit:
                        guess = part.class_names[int(best.class_scores.argmax())]
                        right.append(guess == one.class_name)
    identities, refs, bodies, pictures, masks = gallery(known, 200, 7400)
    hue = np.array([one.hue * 360 for one in identities])
    miss = np.abs((part.hue(pictures, masks) - hue + 180) % 360 - 180)
    pattern = [PATTERNS[k] for k in part.patterns(pictures, masks).argmax(1)]
    named = np.mean([a == one.pattern for a, one in zip(pattern, identities, strict=True)])
    ranks = [
        rank_one(part.embed_references(s, m), part.embed_references(r, b))
        for _, r, b, s, m in (gallery(known, GALLERY, 7000 + seed) for seed in range(4))
    ]
    return [
        Figure("judge", "bodies found", float(np.mean(found)), ">= 0.95"),
        Figure("judge", "false bodies per scene", false / (count * 6), ""),
        Figure("judge", "class of an instance", float(np.mean(hits)), ">= 0.90"),
        Figure("judge", "class of an instance, classes new to the scorers",
               float(np.mean(new_hits)), ">= 0.90"),
        Figure("judge", f"rank-1 among {GALLERY}", float(np.mean(ranks)), ">= 0.80"),
        Figure("judge", "pattern", float(named), ""),
        Figure("judge", "hue error in degrees", float(np.nanmean(miss)), "< 10"),
    ]  # fmt: skip
