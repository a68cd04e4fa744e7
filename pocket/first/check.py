"""`focusdpo pocket check`: what the packaged models reach on individuals that no training saw.

The generator is measured by the independent judge: in scenes of two subjects of different training
classes, painted once with references and once from the words alone, and beside it in scenes of one
and three subjects and of classes that it was never shown.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from focusdpo.pipeline.parts import Generator, Image, Judge, ReferenceImage, Seen
from focusdpo.pocket.cards import Figure
from focusdpo.pocket.first import figures, parts
from focusdpo.pocket.first.generator import REFERENCE_SIZE
from focusdpo.pocket.first.identities import Identity, class_names
from focusdpo.pocket.first.place import WEIGHTS
from focusdpo.pocket.first.world import prompt_for, render_references
from focusdpo.pocket.models.autoencoder import load_autoencoder

log = logging.getLogger(__name__)

MODELS = ("autoencoder", "segmenter", "identity", "clip", "judge", "generator")
BATCH = 32


def check_all(models: Sequence[str] = MODELS, *, scenes: int = 64) -> list[Figure]:
    """All figures of the packaged models; `scenes` is how many the generator paints."""
    measures: dict[str, Callable[[], list[Figure]]] = {
        "autoencoder": autoencoder_figures,
        "segmenter": lambda: figures.segmenter_figures(parts.build("segmenter")),
        "identity": lambda: figures.identity_figures(parts.build("identity")),
        "clip": lambda: figures.clip_figures(parts.build("clip")),
        "judge": lambda: figures.judge_figures(parts.build("judge")),
        "generator": lambda: generator_figures(
            parts.build("generator"), parts.build("judge"), scenes
        ),
    }
    out = []
    for name in models:
        log.info("measuring %s", name)
        out += measures[name]()
    return out


def autoencoder_figures(count: int = 64) -> list[Figure]:
    """PSNR of rebuilt scenes and references of held-out identities, mean over pictures."""
    codec = load_autoencoder(WEIGHTS)
    rows, scenes = figures.held_out_scenes(count, 2, 7500)
    flat = [one for row in rows for one in row]
    pictures, _ = render_references(flat, range(75_000, 75_000 + len(flat)), REFERENCE_SIZE)

    def psnr(images: Tensor) -> float:
        with torch.inference_mode():
            rebuilt = (codec.decode_latents(codec.encode_latents(images * 2 - 1)) + 1) / 2
        error = (rebuilt.clamp(0, 1) - images).square().mean((1, 2, 3))
        return float((-10 * error.log10()).mean())

    return [
        Figure("autoencoder", "PSNR of scenes in dB", psnr(scenes.images), ">= 30"),
        Figure("autoencoder", "PSNR of 32 px references in dB", psnr(pictures), ""),
    ]


@dataclass(frozen=True)
class Painted:
    """What the judge sees of the R subjects requested in each of B pictures. Hue in degrees."""

    recognised: NDArray[np.bool_]
    """(B, R): an instance of its own shows the requested class."""
    hue_error: NDArray[np.float32]
    """(B, R) between the instance and the reference; NaN where it was not recognised."""
    confused: NDArray[np.bool_]
    """(B,): a subject lacks or comes twice, or an instance is nearer to another's reference."""

    @property
    def share(self) -> float:
        """Subjects recognised."""
        return float(self.recognised.mean())


def generator_figures(generator: Generator, judge: Judge, count: int = 64) -> list[Figure]:
    """Classes recognised, hue error with and without references, share of confused scenes."""
    told, blind = _look(generator, judge, count, 2), _look(generator, judge, count, 2, bare=True)
    with_, without = float(np.nanmean(told.hue_error)), float(np.nanmean(blind.hue_error))
    new = class_names("val") + class_names("held_out")
    one, three = _look(generator, judge, count, 1), _look(generator, judge, count, 3)
    unseen = _look(generator, judge, count, 2, classes=new)
    return [
        Figure("generator", "class recognised", told.share, ">= 0.80"),
        Figure("generator", "class recognised, text alone", blind.share, ""),
        Figure("generator", "hue error in degrees", with_, ""),
        Figure("generator", "hue error in degrees, text alone", without, ""),
        Figure("generator", "hue error, with over without references", with_ / without, "< 0.50"),
        Figure("generator", "scenes with confused subjects", float(told.confused.mean()), ""),
        Figure("generator", "class recognised, one subject", one.share, ""),
        Figure("generator", "class recognised, three subjects", three.share, ""),
        Figure("generator", "class recognised, two of new classes", unseen.share, ""),
    ]


def _look(
    generator: Generator,
    judge: Judge,
    count: int,
    subjects: int,
    *,
    classes: Sequence[str] | None = None,
    bare: bool = False,
) -> Painted:
    """`count` painted scenes as the judge sees them; `bare` ones from their words alone."""
    rows, scenes = figures.held_out_scenes(count, subjects, 7600, classes)
    prompts = [
        prompt_for([one.class_name for one in row], background)
        for row, background in zip(rows, scenes.backgrounds, strict=True)
    ]
    references = _references(rows)
    shown = [[] for _ in rows] if bare else references
    painted = _paint(generator, prompts, shown, [76_000 + i for i in range(count)])
    return judge_scenes(judge, painted, rows, references)


def judge_scenes(
    judge: Judge,
    images: Sequence[Image],
    rows: Sequence[Sequence[Identity]],
    references: Sequence[Sequence[ReferenceImage]],
) -> Painted:
    """What the judge sees of the requested subjects, equally many in each picture."""
    subjects = len(rows[0])
    flat = [one for row in references for one in row]
    vectors = judge.embed_references([one.image for one in flat], [one.mask for one in flat])
    hues = judge.hue([one.image for one in flat], [one.mask for one in flat])
    recognised, errors, confused = [], [], []
    for b, seen in enumerate(judge.look(images)):
        wanted = [judge.class_names.index(one.class_name) for one in rows[b]]
        places = match_classes(seen, wanted)
        own = slice(subjects * b, subjects * (b + 1))
        recognised.append([place is not None for place in places])
        errors.append([
            np.nan if place is None else abs((seen[place].hue - hue + 180) % 360 - 180)
            for place, hue in zip(places, hues[own], strict=True)
        ])  # fmt: skip
        confused.append(len(seen) != subjects or is_confused(seen, places, vectors[own]))
    return Painted(np.array(recognised), np.array(errors, np.float32), np.array(confused))


def match_classes(seen: Sequence[Seen], wanted: Sequence[int]) -> list[int | None]:
    """For each wanted class an instance of its own whose best class it is; None where none is."""
    free = set(range(len(seen)))
    places: list[int | None] = []
    for name in wanted:
        fits = [k for k in sorted(free) if int(seen[k].class_scores.argmax()) == name]
        best = max(fits, key=lambda k: seen[k].class_scores[name], default=None)
        free.discard(-1 if best is None else best)
        places.append(best)
    return places


def is_confused(
    seen: Sequence[Seen], places: Sequence[int | None], vectors: NDArray[np.float32]
) -> bool:
    """Whether a subject lacks, or its instance looks more like the other's reference."""
    for own, place in enumerate(places):
        if place is None:
            return True
        likeness = vectors @ seen[place].embedding
        if likeness.argmax() != own:
            return True
    return False


def _references(rows: Sequence[Sequence[Identity]]) -> list[list[ReferenceImage]]:
    flat = [one for row in rows for one in row]
    pictures, bodies = render_references(flat, [77_000 + i for i in range(len(flat))])
    made = [
        ReferenceImage(image, mask)
        for image, mask in zip(figures.to_images(pictures), figures.to_masks(bodies), strict=True)
    ]
    subjects = len(rows[0])
    return [made[subjects * b : subjects * (b + 1)] for b in range(len(rows))]


def _paint(
    generator: Generator,
    prompts: Sequence[str],
    references: Sequence[Sequence[ReferenceImage]],
    seeds: Sequence[int],
) -> list[Image]:
    out: list[Image] = []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        out += generator.generate(prompts[part], references[part], seeds[part])
    return out
