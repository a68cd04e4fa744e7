"""Trains the pocket CLIP: `python -m focusdpo.pocket.first.recipes.clip --out DIR`.

Two thirds of a batch are scenes with their prompts, one third instance crops with "a CLASS". Every
scene also meets its own prompt with one class exchanged and with another background, and the words
of all classes, of which it shows some.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.cards import Figure, write_card
from focusdpo.pocket.first.clip import ClipModelConfig, ClipNet, PocketClip
from focusdpo.pocket.first.figures import clip_figures
from focusdpo.pocket.first.identities import class_names
from focusdpo.pocket.first.place import WEIGHTS
from focusdpo.pocket.first.recipes.fitting import FitConfig, fit
from focusdpo.pocket.first.recipes.running import run_recipe
from focusdpo.pocket.first.recipes.samples import SceneBatch, scene_batch
from focusdpo.pocket.first.recipes.segmenter import body_crops
from focusdpo.pocket.first.world import BACKGROUNDS, prompt_for
from focusdpo.pocket.lineage import STEP_SEEDS, Lineage, stream
from focusdpo.pocket.weightfiles import load_tensors, save_weights


class ClipRecipe(BaseModel):
    """How the CLIP is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ClipModelConfig = ClipModelConfig()
    fit: FitConfig = FitConfig(steps=500, batch=72, lr=1.5e-3, warmup=30, seed=41)
    start: Path | None = Field(
        None,
        description="folder of a segmenter whose region network the image tower starts from;"
        " default: the packaged one",
    )
    margin: float = Field(0.1, description="largest border of a crop, share of its side", ge=0)


def train(config: ClipRecipe, out_dir: Path) -> list[Figure]:
    """Writes clip.safetensors, .json and .md to `out_dir`; returns the held-out figures."""
    torch.manual_seed(config.fit.seed)
    net = ClipNet(config.model)
    start_from_regions(net, config.start or WEIGHTS)
    classes = class_names("train")

    def loss_of_step(step: int) -> Tensor:
        seed = config.fit.seed * STEP_SEEDS + step
        count = config.fit.batch * 2 // 3
        margin = config.margin * (step % 5) / 4
        batch = scene_batch(seed, count, classes, "train", crowd=0.0)
        crops, names = body_crops(batch, config.model.size, config.fit.batch - count, seed, margin)
        texts, pairs = scene_texts(batch, seed)
        images = net.images(torch.cat([batch.images, crops]))
        words = net.texts([*texts, *(f"a {name}" for name in classes)])
        logits = net.towers.logit_scale.exp().clamp_max(100) * images @ words.T
        by_prompt, by_class = logits[:, : len(texts)], logits[:, len(texts) :]
        target = torch.tensor([classes.index(name) for name in names])
        shown = torch.tensor(
            [[name in {one.class_name for one in row} for name in classes]
             for row in batch.identities]
        )  # fmt: skip
        return (
            scene_loss(by_prompt[:count], pairs)
            + F.cross_entropy(by_class[:count], shown.float() / shown.sum(1, keepdim=True))
            + F.cross_entropy(by_class[count:], target)
        )

    fitted = fit(net, loss_of_step, config.fit, out_dir)
    save_weights("clip", net, {"model": config.model.model_dump()}, out_dir)
    figures = clip_figures(PocketClip(out_dir))
    write_card(
        "clip",
        out_dir,
        what="an open_clip model (RegNet, text transformer, own words) that compares pictures with"
        " prompts",
        data=f"{config.fit.steps * config.fit.batch * 2 // 3} scenes with prompts and half as many"
        " instance crops of the 32 training classes, four fifths spoilt like painted images; the"
        " image tower starts from the segmenter's region network",
        seconds=fitted.seconds,
        figures=figures,
        module=net,
        lineage=lineage(config),
    )
    return figures


def lineage(config: ClipRecipe) -> Lineage:
    """What the CLIP is made from."""
    fitted = config.fit
    return Lineage(
        name="clip",
        architecture=("open_clip CLIP (timm RegNet, text transformer)",),
        init_seed=fitted.seed,
        starts_from="segmenter",
        streams=(
            stream("prompts", fitted.seed, fitted.batches, plan="scenes",
                   per_batch=fitted.batch * 2 // 3,
                   items=fitted.steps * (fitted.batch * 2 // 3),
                   items_are="scenes with prompts, and half as many bodies cut from them",
                   classes="train"),
        ),
    )  # fmt: skip


def start_from_regions(net: ClipNet, folder: Path) -> None:
    """Copies the segmenter's region network into the image tower: both are the same RegNet, and it
    knows shapes already. From nothing, the tower learned backgrounds and no class."""
    prefix = "regions."
    tensors = {
        name.removeprefix(prefix): value
        for name, value in load_tensors("segmenter", folder).items()
        if name.startswith(prefix) and ".fc." not in name
    }
    trunk: torch.nn.Module = net.towers.visual.trunk
    left = trunk.load_state_dict(tensors, strict=False)
    if left.unexpected_keys or left.missing_keys:
        raise UserError(
            f"{folder}: the segmenter's region network does not fit the CLIP tower"
            f" {net.config.tower!r} ({[*left.missing_keys, *left.unexpected_keys][:3]});"
            " train the segmenter with the same network first"
        )


def scene_texts(batch: SceneBatch, seed: int) -> tuple[list[str], Tensor]:
    """Prompts followed by two false ones each; (B, texts) bool: which texts fit which scene."""
    rng = np.random.default_rng([seed, 0xC2])
    false: list[str] = []
    for row, prompt in zip(batch.identities, batch.prompts, strict=True):
        names = [one.class_name for one in row]
        background = prompt.rsplit(" on ", 1)[1]
        others = [name for name in class_names("train") if name not in names]
        changed = list(names)
        changed[int(rng.integers(len(names)))] = str(rng.choice(others))
        elsewhere = [ground for ground in BACKGROUNDS if ground != background]
        false += [prompt_for(changed, background), prompt_for(names, str(rng.choice(elsewhere)))]
    texts = [*batch.prompts, *false]
    fits = [[text == prompt for text in texts] for prompt in batch.prompts]
    return texts, torch.tensor(fits)


def scene_loss(logits_BT: Tensor, fits_BT: Tensor) -> Tensor:
    """Contrastive loss both ways; equal prompts are all right (as in UniCL, arXiv 2204.03610).
    False prompts count as texts to tell apart, not as queries."""
    target = fits_BT.float() / fits_BT.sum(1, keepdim=True)
    by_image = F.cross_entropy(logits_BT, target)
    real = fits_BT.shape[0]
    back = fits_BT[:, :real].float().T
    by_text = F.cross_entropy(logits_BT[:, :real].T, back / back.sum(1, keepdim=True))
    return (by_image + by_text) / 2


if __name__ == "__main__":
    run_recipe("clip", ClipRecipe, train)
