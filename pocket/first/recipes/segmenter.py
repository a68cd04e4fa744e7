"""Trains the segmenter: `python -m focusdpo.pocket.first.recipes.segmenter --out DIR`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from focusdpo.pocket.cards import Figure, write_card
from focusdpo.pocket.crops import crop_subjects
from focusdpo.pocket.first.figures import segmenter_figures
from focusdpo.pocket.first.identities import class_names
from focusdpo.pocket.first.recipes.bodies import body_loss
from focusdpo.pocket.first.recipes.fitting import FitConfig, fit
from focusdpo.pocket.first.recipes.running import run_recipe
from focusdpo.pocket.first.recipes.samples import SceneBatch, ragged, scene_batch
from focusdpo.pocket.first.segmenter import PocketSegmenter, SegmenterModelConfig, SegmenterNet
from focusdpo.pocket.lineage import STEP_SEEDS, Lineage, stream
from focusdpo.pocket.weightfiles import save_weights


class SegmenterRecipe(BaseModel):
    """How the segmenter is made. Its words are the training classes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: SegmenterModelConfig = SegmenterModelConfig()
    proposals: FitConfig = FitConfig(steps=500, batch=24, lr=3e-3, seed=31)
    words: FitConfig = FitConfig(steps=500, batch=64, lr=2e-3, seed=32)
    offset_weight: float = Field(1.0, description="of the centre offsets", ge=0)


def train(config: SegmenterRecipe, out_dir: Path) -> list[Figure]:
    """Writes segmenter.safetensors, .json and .md to `out_dir`; returns the held-out figures."""
    torch.manual_seed(config.proposals.seed)
    classes = class_names("train")
    model = config.model.model_copy(update={"words": classes})
    net = SegmenterNet(model)

    def proposal_loss(step: int) -> Tensor:
        seed = config.proposals.seed * STEP_SEEDS + step
        batch = scene_batch(seed, config.proposals.batch, classes, "train")
        return body_loss(*net.bodies(batch.images), batch.masks, config.offset_weight)

    def word_loss(step: int) -> Tensor:
        seed = config.words.seed * STEP_SEEDS + step
        batch = scene_batch(seed, config.words.batch // 2, classes, "train")
        crops, names = body_crops(batch, model.size, config.words.batch, seed)
        target = torch.tensor([classes.index(name) for name in names])
        return F.cross_entropy(net.match(crops), target, label_smoothing=0.05)

    first = fit(net.proposals, proposal_loss, config.proposals, out_dir / "proposals")
    both = torch.nn.ModuleList([net.regions, net.words])
    second = fit(both, word_loss, config.words, out_dir / "words")
    save_weights("segmenter", net, {"model": model.model_dump()}, out_dir)
    figures = segmenter_figures(PocketSegmenter(out_dir))
    write_card(
        "segmenter",
        out_dir,
        what="a text-prompted segmenter: a SegFormer (transformers) proposes bodies of any class,"
        " a RegNet (timm) compares each with the words",
        data=f"{config.proposals.steps * config.proposals.batch} scenes for the proposals and"
        f" {config.words.steps * config.words.batch} bodies for the words, of the 32 training"
        " classes, four fifths spoilt like painted images",
        seconds=first.seconds + second.seconds,
        figures=figures,
        module=net,
        lineage=lineage(config),
    )
    return figures


def lineage(config: SegmenterRecipe) -> Lineage:
    """What the segmenter is made from."""
    first, second = config.proposals, config.words
    return Lineage(
        name="segmenter",
        architecture=("transformers SegformerForSemanticSegmentation", "timm RegNet"),
        init_seed=first.seed,
        streams=(
            stream("proposals", first.seed, first.batches, plan="scenes", per_batch=first.batch,
                   items=first.steps * first.batch, items_are="scenes", classes="train"),
            stream("words", second.seed, second.batches, plan="scenes",
                   per_batch=second.batch // 2, items=second.steps * second.batch,
                   items_are="bodies cut from half as many scenes", classes="train"),
        ),
    )  # fmt: skip


def body_crops(
    batch: SceneBatch, size: int, count: int, seed: int, margin: float = 0.06
) -> tuple[Tensor, list[str]]:
    """`count` visible subjects cut out of the scenes, on white, and their classes."""
    rng = np.random.default_rng([seed, 0xC1])
    visible = np.argwhere(batch.masks.sum((2, 3)).numpy() > 60)
    chosen = visible[rng.integers(len(visible), size=count)]
    scene, place = torch.from_numpy(chosen).unbind(1)
    masks = ragged(batch.masks[scene, place], seed)
    crops = crop_subjects(batch.images[scene], masks, size, margin)
    return crops, [batch.identities[b][r].class_name for b, r in chosen.tolist()]


if __name__ == "__main__":
    run_recipe("segmenter", SegmenterRecipe, train)
