"""Trains the independent judge: `python -m focusdpo.pocket.first.recipes.judge --out DIR`.

Its seeds are its own, so it shares neither weights nor samples with the scorers; it knows the
words of all classes, also of those that no other pocket model was trained on.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from focusdpo.pocket.cards import Figure, write_card
from focusdpo.pocket.first.figures import judge_figures
from focusdpo.pocket.first.identities import PATTERNS, class_names
from focusdpo.pocket.first.judge import JudgeModelConfig, JudgeNet, PocketJudge
from focusdpo.pocket.first.recipes.bodies import body_loss
from focusdpo.pocket.first.recipes.fitting import FitConfig, fit
from focusdpo.pocket.first.recipes.identity import contrastive_loss, two_views
from focusdpo.pocket.first.recipes.running import run_recipe
from focusdpo.pocket.first.recipes.samples import lookalikes, scene_batch
from focusdpo.pocket.lineage import STEP_SEEDS, Lineage, stream
from focusdpo.pocket.weightfiles import save_weights


class JudgeRecipe(BaseModel):
    """How the judge is made: first it learns to find bodies, then to tell them apart."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: JudgeModelConfig = JudgeModelConfig()
    sight: FitConfig = FitConfig(steps=350, batch=24, lr=2e-3, seed=910)
    look: FitConfig = FitConfig(steps=500, batch=64, lr=2e-3, seed=920)
    temperature: float = Field(0.07, description="of the contrastive loss", gt=0)
    offset_weight: float = Field(1.0, description="of the centre offsets", ge=0)


def train(config: JudgeRecipe, out_dir: Path) -> list[Figure]:
    """Writes judge.safetensors, .json and .md to `out_dir`; returns the held-out figures."""
    torch.manual_seed(config.sight.seed)
    classes = class_names()
    model = config.model.model_copy(update={"classes": classes})
    net = JudgeNet(model)

    def sight_loss(step: int) -> Tensor:
        seed = config.sight.seed * STEP_SEEDS + step
        batch = scene_batch(seed, config.sight.batch, classes, "train")
        return body_loss(*net.bodies(batch.images), batch.masks, config.offset_weight)

    def look_loss(step: int) -> Tensor:
        seed = config.look.seed * STEP_SEEDS + step
        identities = lookalikes(classes, "train", config.look.batch // 4, seed)
        views = torch.cat(two_views(identities, model.size, seed))
        names, vectors, patterns = net.describe(views)
        here, there = vectors.chunk(2)
        name = torch.tensor([classes.index(one.class_name) for one in identities]).repeat(2)
        pattern = torch.tensor([PATTERNS.index(one.pattern) for one in identities]).repeat(2)
        return (
            F.cross_entropy(names, name)
            + 0.5 * F.cross_entropy(patterns, pattern)
            + contrastive_loss(here, there, config.temperature)
        )

    sight = fit(net.sight, sight_loss, config.sight, out_dir / "sight")
    looks = torch.nn.ModuleList([net.look, net.class_head, net.identity_head, net.pattern_head])
    look = fit(looks, look_loss, config.look, out_dir / "look")
    save_weights("judge", net, {"model": model.model_dump()}, out_dir)
    figures = judge_figures(PocketJudge(out_dir))
    write_card(
        "judge",
        out_dir,
        what="an independent judge: a U-Net (diffusers) that finds bodies of any class, and"
        " a MobileNetV3 (torchvision) that tells class, pattern and individual",
        data=f"{config.sight.steps * config.sight.batch} scenes and"
        f" {config.look.steps * config.look.batch} identities of all 48 classes, from seeds that no"
        " other pocket model has",
        seconds=sight.seconds + look.seconds,
        figures=figures,
        module=net,
        lineage=lineage(config),
    )
    return figures


def lineage(config: JudgeRecipe) -> Lineage:
    """What the judge is made from."""
    sight, look = config.sight, config.look
    return Lineage(
        name="judge",
        architecture=("diffusers UNet2DModel", "torchvision MobileNetV3"),
        init_seed=sight.seed,
        streams=(
            stream("sight", sight.seed, sight.batches, plan="scenes", per_batch=sight.batch,
                   items=sight.steps * sight.batch, items_are="scenes", classes="all"),
            stream("look", look.seed, look.batches, plan="views", per_batch=look.batch,
                   items=look.steps * look.batch,
                   items_are="individuals, each in a scene and in a reference", classes="all"),
        ),
    )  # fmt: skip


if __name__ == "__main__":
    run_recipe("judge", JudgeRecipe, train)
