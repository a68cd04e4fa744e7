"""Trains the segmenter: `python -m focusdpo.pocket.recipes.segmenter --out DIR`."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from focusdpo.pocket.cards import Figure, write_card
from focusdpo.pocket.figures import segmenter_figures
from focusdpo.pocket.identities import class_names
from focusdpo.pocket.recipes.fitting import FitConfig, fit
from focusdpo.pocket.recipes.running import run_recipe
from focusdpo.pocket.recipes.samples import SceneBatch, scene_batch
from focusdpo.pocket.segmenter import PocketSegmenter, SegmenterModelConfig, SegmenterNet
from focusdpo.pocket.weightfiles import save_weights


class SegmenterRecipe(BaseModel):
    """How the segmenter is made. Its words are the training classes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: SegmenterModelConfig = SegmenterModelConfig()
    fit: FitConfig = FitConfig(steps=600, batch=24, lr=2e-3, seed=31)
    word_weight: float = Field(0.5, description="of the word loss beside the mask loss", ge=0)


def train(config: SegmenterRecipe, out_dir: Path) -> list[Figure]:
    """Writes segmenter.safetensors, .json and .md to `out_dir`; returns the held-out figures."""
    torch.manual_seed(config.fit.seed)
    classes = class_names("train")
    model = config.model.model_copy(update={"words": classes})
    net = SegmenterNet(model)
    index = {word: i for i, word in enumerate(classes)}

    def loss_of_step(step: int) -> Tensor:
        batch = scene_batch(
            config.fit.seed * 1_000_000 + step, config.fit.batch, classes, "train"
        )
        foreground, words = net(batch.images)
        target, owner = dense_targets(batch, index)
        return mask_loss(foreground, target) + config.word_weight * F.cross_entropy(
            words, owner, ignore_index=-1
        )

    fitted = fit(net, loss_of_step, config.fit, out_dir)
    save_weights("segmenter", net, {"model": model.model_dump()}, out_dir)
    figures = segmenter_figures(PocketSegmenter(out_dir))
    write_card(
        "segmenter",
        out_dir,
        what="an LSeg-style segmenter (diffusers U-Net, one embedding per pixel and per word,"
        " a wordless foreground channel) that finds all instances of a class word",
        data=f"{config.fit.steps * config.fit.batch} scenes of the 32 training classes, four"
        " fifths spoilt like painted images",
        seconds=fitted.seconds,
        figures=figures,
        module=net,
    )
    return figures


def dense_targets(batch: SceneBatch, index: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Foreground (B, H, W) in {0, 1} and the word of each pixel (B, H, W), -1 on background."""
    masks = batch.masks
    words = torch.tensor([[index[i.class_name] for i in row] for row in batch.identities])
    owner = torch.where(masks, words[:, :, None, None], -1).amax(1)
    return masks.any(1).float(), owner


def mask_loss(logits_BHW: Tensor, target_BHW: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice."""
    probability = logits_BHW.sigmoid()
    overlap = (probability * target_BHW).sum((1, 2))
    total = probability.sum((1, 2)) + target_BHW.sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    return F.binary_cross_entropy_with_logits(logits_BHW, target_BHW) + dice.mean()


if __name__ == "__main__":
    run_recipe("segmenter", SegmenterRecipe, train)
