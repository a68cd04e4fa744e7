"""The generator's recipe: flow matching on latents of rendered scenes with references.

First small pictures of a subject each, cut to its size: a third of the tokens, and every one of
them of use. Then whole scenes, most of a single subject, as the field's generators are tuned.
Letters: B scenes, N target tokens, C channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focusdpo.model.tokens import text_ids
from focusdpo.pocket.cards import Figure
from focusdpo.pocket.classes import class_names, class_table
from focusdpo.pocket.fitting.recipe import Recipe
from focusdpo.pocket.fitting.training import Stage, Training
from focusdpo.pocket.models.autoencoder import load_autoencoder
from focusdpo.pocket.models.generator import ARCHITECTURE, SAMPLING, build_generator, load_model
from focusdpo.pocket.models.vocabulary import LENGTH, OBJECT, words
from focusdpo.pocket.recipes.flow_batches import FlowBatch, FlowConfig, draw_batch
from focusdpo.pocket.recipes.gallery import save_gallery
from focusdpo.pocket.weightfiles import save_weights


class GeneratorRecipe(BaseModel):
    """How the generator is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: dict[str, Any] = Field(ARCHITECTURE, description="of FluxTransformer2DModel")
    start: Path | None = Field(
        None,
        description="folder of a generator that the scenes go on from, without the small pictures:"
        " for what was stopped and whose checkpoints are gone",
    )
    small: FlowConfig = FlowConfig(size=48, sides=(28, 46), subjects=(1.0, 0.0, 0.0, 0.0))
    small_training: Training = Training(
        steps=5000, batch=64, lr=2e-3, warmup=200, cooldown=0.0, optimizer="muon",
        weight_decay=0.01, ema=0.998, seed=100, save_minutes=4,
    )  # fmt: skip
    scenes: FlowConfig = FlowConfig()
    scenes_training: Training = Training(
        steps=12_000, batch=32, lr=1.2e-3, warmup=100, cooldown=0.35, optimizer="muon",
        weight_decay=0.01, ema=0.999, seed=101, save_minutes=4,
    )  # fmt: skip


def build(config: GeneratorRecipe, weights: Path) -> nn.ModuleDict:
    """Random weights, or those to go on from."""
    return load_model(config.start) if config.start else build_generator(config.architecture)


def stages(config: GeneratorRecipe, model: nn.Module, weights: Path) -> list[Stage]:
    """Small pictures, then scenes. The autoencoder must lie in `weights`."""
    assert isinstance(model, nn.ModuleDict)
    codec = load_autoencoder(weights)
    if config.small_training.compile:
        transformer: Any = model["transformer"]
        transformer.compile_repeated_blocks(dynamic=True)

    def stage(name: str, flow: FlowConfig, training: Training) -> Stage:
        def draw(step: int) -> FlowBatch:
            return draw_batch(codec, flow, training.batch, training.seed, step)

        def loss(batch: FlowBatch) -> Tensor:
            with training.autocast():
                velocity = forward(model, batch)
            return flow_loss(velocity, batch)

        def publish(state: dict[str, Tensor]) -> None:
            averaged = build_generator(config.architecture)
            averaged.load_state_dict(state)  # from whatever device
            name_unseen_classes(averaged)
            save_weights("generator", averaged, settings(config), weights)

        return Stage(name, model, draw, loss, training, publish)

    scenes = stage("scenes", config.scenes, config.scenes_training)
    if config.start:
        return [scenes]
    return [stage("small", config.small, config.small_training), scenes]


def forward(model: nn.ModuleDict, batch: FlowBatch) -> Tensor:
    """Velocity of the target tokens (B, N, C)."""
    count = batch.target.shape[1]
    sigma = batch.sigma[:, None, None]
    tokens = (1 - sigma) * batch.target + sigma * batch.noise
    if batch.references is not None:
        tokens = torch.cat([tokens, batch.references], 1)
    embeds, pooled = model["prompts"](batch.tokens)
    output = model["transformer"](
        hidden_states=tokens,
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        timestep=batch.sigma,
        img_ids=batch.places,
        txt_ids=text_ids(LENGTH).to(tokens.device),
        return_dict=False,
    )[0]
    return output[:, :count]


def flow_loss(velocity_BNC: Tensor, batch: FlowBatch) -> Tensor:
    """Weighted squared error to the velocity noise - target."""
    error = (velocity_BNC.float() - (batch.noise - batch.target)).square().mean(-1)
    return (batch.weight * error).mean()


@torch.no_grad()
def name_unseen_classes(model: nn.ModuleDict) -> None:
    """Class words that training never showed get the vector of `object`, which it did show in
    place of class words."""
    embedding = model["prompts"].get_parameter("word.weight")
    unseen = sorted(set(class_table()) - set(class_names("train")))
    rows = [words().index(word) for word in unseen]
    embedding[rows] = embedding[words().index(OBJECT)].clone()


def settings(config: GeneratorRecipe) -> dict[str, Any]:
    """What `load_generator` reads."""
    return {
        "transformer": config.architecture,
        "words": list(words()),
        "sampling": SAMPLING.model_dump(),
    }


def measure(weights: Path) -> list[Figure]:
    """Paints the sample grid; the judge's figures are `focusdpo pocket check`'s."""
    save_gallery(weights, weights / "generator_samples.png")
    return []


def shown(config: GeneratorRecipe) -> str:
    """What the generator saw, for its card."""
    small, scenes = config.small_training, config.scenes_training
    shares = ", ".join(f"{share:.0%}" for share in config.scenes.subjects)
    before = (
        "what the weights that it starts from have seen"
        if config.start
        else f"{small.steps * small.batch} small pictures ({config.small.size} px) of one subject"
    )
    return (
        f"{before}, then"
        f" {scenes.steps * scenes.batch} scenes of 1, 2, 3 and 4 subjects ({shares}), each with"
        " its references and a prompt, of the 32 training classes"
    )


RECIPE = Recipe(
    name="generator",
    config=GeneratorRecipe,
    what="a FluxTransformer2DModel (diffusers) with references as further image tokens, and the"
    " word embeddings that are its prompt encoder",
    data=shown,
    build=build,
    seed_of=lambda config: config.small_training.seed,
    stages=stages,
    settings=settings,
    measure=measure,
)
