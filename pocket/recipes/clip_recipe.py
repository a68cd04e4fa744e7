"""The CLIP's recipe: scenes with their prompts, and bodies with `a CLASS`.

Every scene also meets its own prompt with one class exchanged and with another background, and the
words of all classes, of which it shows some.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.prompts import article
from focusdpo.pocket.cards import Figure
from focusdpo.pocket.classes import BACKGROUNDS, class_names
from focusdpo.pocket.figures import clip_figures
from focusdpo.pocket.fitting.recipe import Recipe
from focusdpo.pocket.fitting.training import Stage, Training
from focusdpo.pocket.lineage import STEP_SEEDS, Lineage, stream
from focusdpo.pocket.models.clip import ClipModelConfig, ClipNet, PocketClip
from focusdpo.pocket.recipes.scorer_samples import SceneBatch, body_crops, scene_batch
from focusdpo.pocket.weightfiles import load_tensors
from focusdpo.pocket.world.grammar import draw_prompt
from focusdpo.pocket.world.world import OVERLAP


class ClipRecipe(BaseModel):
    """How the CLIP is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ClipModelConfig = ClipModelConfig(size=96)
    pairs: Training = Training(steps=900, batch=72, lr=1.5e-3, warmup=30, seed=41)
    margin: float = Field(0.1, description="largest border of a crop, share of its side", ge=0)


@dataclass(frozen=True)
class ClipBatch:
    """B scenes, then crops of bodies."""

    images: Tensor
    """Scenes and crops together, (B + crops, 3, S, S)."""
    texts: list[str]
    """The scenes' prompts, then false ones."""
    fits: Tensor
    """(B, texts) bool: which texts fit which scene."""
    shown: Tensor
    """(B, classes) bool: which classes a scene shows."""
    names: Tensor
    """(crops,) the classes of the crops."""


def build(config: ClipRecipe, weights: Path) -> ClipNet:
    """The image tower starts from the segmenter's region network, which knows shapes already:
    both are the same RegNet. From nothing, the tower learned backgrounds and no class."""
    net = ClipNet(config.model)
    prefix = "regions."
    tensors = {
        name.removeprefix(prefix): value
        for name, value in load_tensors("segmenter", weights).items()
        if name.startswith(prefix) and ".fc." not in name
    }
    trunk: nn.Module = net.towers.visual.trunk
    left = trunk.load_state_dict(tensors, strict=False)
    if left.unexpected_keys or left.missing_keys:
        raise UserError(
            f"{weights}: the segmenter's region network does not fit the CLIP tower"
            f" {net.config.tower!r} ({[*left.missing_keys, *left.unexpected_keys][:3]});"
            " train the segmenter with the same network first"
        )
    return net


def stages(config: ClipRecipe, model: nn.Module, weights: Path) -> list[Stage]:
    """One."""
    assert isinstance(model, ClipNet)
    classes = class_names("train")
    words = [article(name) for name in classes]

    def draw(step: int) -> ClipBatch:
        seed = config.pairs.seed * STEP_SEEDS + step
        count = config.pairs.batch * 2 // 3
        margin = config.margin * (step % 5) / 4
        batch = scene_batch(seed, count, classes, "train", OVERLAP)
        crops, names = body_crops(
            batch, config.model.size, config.pairs.batch - count, seed, margin
        )
        texts, fits = scene_texts(batch, seed)
        shown = [[name in {s.class_name for s in cast} for name in classes] for cast in batch.casts]
        return ClipBatch(
            images=torch.cat([batch.images, crops]),
            texts=texts,
            fits=fits,
            shown=torch.tensor(shown),
            names=torch.tensor([classes.index(name) for name in names]),
        )

    def loss(batch: ClipBatch) -> Tensor:
        count = len(batch.fits)
        images = model.images(batch.images)
        vectors = model.texts([*batch.texts, *words])
        logits = model.towers.logit_scale.exp().clamp_max(100) * images @ vectors.T
        by_prompt, by_class = logits.split([len(batch.texts), len(words)], 1)
        return (
            scene_loss(by_prompt[:count], batch.fits)
            + F.cross_entropy(by_class[:count], batch.shown / batch.shown.sum(1, keepdim=True))
            + F.cross_entropy(by_class[count:], batch.names)
        )

    return [Stage("pairs", model, draw, loss, config.pairs)]


def scene_texts(batch: SceneBatch, seed: int) -> tuple[list[str], Tensor]:
    """Prompts followed by two false ones each; (B, texts) bool: which texts fit which scene."""
    rng = np.random.default_rng([seed, 0xC2])
    truths = [
        (tuple(sorted(subject.class_name for subject in cast)), background)
        for cast, background in zip(batch.casts, batch.backgrounds, strict=True)
    ]
    texts, claims = list(batch.prompts), list(truths)
    for names, background in truths:
        others = [name for name in class_names("train") if name not in names]
        changed = list(names)
        changed[int(rng.integers(len(names)))] = str(rng.choice(others))
        elsewhere = str(rng.choice([each for each in BACKGROUNDS if each != background]))
        for wrong, ground in ((changed, background), (list(names), elsewhere)):
            texts.append(draw_prompt(wrong, ground, rng))
            claims.append((tuple(sorted(wrong)), ground))
    return texts, torch.tensor([[claim == truth for claim in claims] for truth in truths])


def scene_loss(logits_BT: Tensor, fits_BT: Tensor) -> Tensor:
    """Contrastive loss both ways; texts that say the same are all right (as in UniCL, arXiv
    2204.03610). False prompts count as texts to tell apart, not as queries."""
    target = fits_BT.float() / fits_BT.sum(1, keepdim=True)
    by_image = F.cross_entropy(logits_BT, target)
    real = fits_BT.shape[0]
    back = fits_BT[:, :real].float().T
    by_text = F.cross_entropy(logits_BT[:, :real].T, back / back.sum(1, keepdim=True))
    return (by_image + by_text) / 2


def lineage(config: ClipRecipe) -> Lineage:
    """What the CLIP is made from."""
    pairs = config.pairs
    return Lineage(
        name="clip",
        architecture=("open_clip CLIP (timm RegNet, text transformer)",),
        init_seed=pairs.seed,
        starts_from="segmenter",
        streams=(
            stream("pairs", pairs.seed, pairs.batches, plan="scenes",
                   per_batch=pairs.batch * 2 // 3, items=pairs.steps * (pairs.batch * 2 // 3),
                   items_are="scenes with prompts, and half as many bodies cut from them",
                   classes="train"),
        ),
    )  # fmt: skip


def settings(config: ClipRecipe) -> dict[str, Any]:
    """What `PocketClip` reads."""
    return {"model": config.model.model_dump(mode="json")}


def measure(weights: Path) -> list[Figure]:
    """On held-out individuals."""
    return clip_figures(PocketClip(weights))


RECIPE = Recipe(
    name="clip",
    config=ClipRecipe,
    what="an open_clip model (RegNet, text transformer, own words) that compares pictures with"
    " prompts",
    data=lambda config: (
        f"{config.pairs.steps * config.pairs.batch * 2 // 3} scenes with prompts and half as many"
        " bodies of the 32 training classes, four fifths spoilt like painted images; the image"
        " tower starts from the segmenter's region network"
    ),
    build=build,
    seed_of=lambda config: config.pairs.seed,
    stages=stages,
    settings=settings,
    measure=measure,
    lineage=lineage,
)
