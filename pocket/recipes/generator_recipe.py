"""The generator's recipe: flow matching on latents of rendered scenes with references.

First small pictures of a subject each, cut to its size: a third of the tokens, and every one of
them of use. Then whole scenes, most of a single subject, as the field's generators are tuned. Then
scenes of which more hold several, at places that follow the order of the references, so that shapes
are learned before the question which reference belongs where; then the same, upright, in half of
the scenes in any order, and last, for a short while, in any order in all of them: then order tells
nothing, and which reference belongs where is decided from noise. The last three have a second
task: a layer in the middle tells what stands on each token and where in it the token lies.
As with features of a pretrained encoder (REPA, arXiv 2410.06940) shapes become whole sooner; here
the renderer knows the truth. Letters: B scenes, N target tokens, C channels, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focusdpo.model.tokens import text_ids
from focusdpo.pocket.cards import Figure
from focusdpo.pocket.classes import class_names, class_table
from focusdpo.pocket.fitting.recipe import Recipe
from focusdpo.pocket.fitting.training import Stage, Training
from focusdpo.pocket.models.autoencoder import load_autoencoder
from focusdpo.pocket.models.generator import ARCHITECTURE, SAMPLING, build_generator
from focusdpo.pocket.models.vocabulary import LENGTH, OBJECT, words
from focusdpo.pocket.recipes.flow_batches import FlowBatch, FlowConfig, draw_batch
from focusdpo.pocket.recipes.gallery import save_gallery
from focusdpo.pocket.weightfiles import save_weights
from focusdpo.pocket.world.world import SlotConfig

UPRIGHT = SlotConfig(jitter=3, tilt=6, mirrored=False, alone=True, any_order=0.5)


class GeneratorRecipe(BaseModel):
    """How the generator is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: dict[str, Any] = Field(ARCHITECTURE, description="of FluxTransformer2DModel")
    small: FlowConfig = FlowConfig(size=48, sides=(28, 46), subjects=(1.0, 0.0, 0.0, 0.0))
    small_training: Training = Training(
        steps=5000, batch=64, lr=2e-3, warmup=200, cooldown=0.0, optimizer="muon",
        weight_decay=0.01, ema=0.998, seed=100, save_minutes=4,
    )  # fmt: skip
    scenes: FlowConfig = FlowConfig()
    scenes_training: Training = Training(
        steps=5000, batch=32, lr=1.2e-3, warmup=100, cooldown=0.35, optimizer="muon",
        weight_decay=0.01, ema=0.999, seed=101, save_minutes=4,
    )  # fmt: skip
    ordered: FlowConfig = FlowConfig(
        subjects=(0.35, 0.4, 0.15, 0.1), slots=SlotConfig(), sigma_mean=1.0
    )
    ordered_training: Training = Training(
        steps=2000, batch=32, lr=1.2e-3, warmup=100, cooldown=0.0, optimizer="muon",
        weight_decay=0.01, ema=0.999, seed=103, save_minutes=4,
    )  # fmt: skip
    mixed: FlowConfig = FlowConfig(subjects=(0.4, 0.4, 0.12, 0.08), slots=UPRIGHT, sigma_mean=1.0)
    mixed_training: Training = Training(
        steps=3200, batch=32, lr=1.2e-3, warmup=100, cooldown=0.65, optimizer="muon",
        weight_decay=0.01, ema=0.999, seed=104, save_minutes=4,
    )  # fmt: skip
    unordered: FlowConfig = FlowConfig(
        subjects=(0.3, 0.5, 0.12, 0.08),
        slots=UPRIGHT.model_copy(update={"any_order": 1.0}),
        sigma_mean=1.0,
    )
    unordered_training: Training = Training(
        steps=700, batch=32, lr=6e-4, warmup=30, cooldown=0.8, optimizer="muon",
        weight_decay=0.01, ema=0.99, seed=105, save_minutes=4,
    )  # fmt: skip
    layout_weight: float = Field(
        0.3, description="of the error in telling what stands on a token, in the last stages", ge=0
    )
    layout_block: int = Field(2, description="single block whose output tells it", ge=0)


def build(config: GeneratorRecipe, weights: Path) -> nn.ModuleDict:
    """Random weights."""
    return build_generator(config.architecture)


def stages(config: GeneratorRecipe, model: nn.Module, weights: Path) -> list[Stage]:
    """Small pictures, scenes, in order, half in any, all in any. The autoencoder must lie in
    `weights`."""
    assert isinstance(model, nn.ModuleDict)
    codec = load_autoencoder(weights)
    if config.small_training.compile:
        transformer: Any = model["transformer"]
        transformer.compile_repeated_blocks(dynamic=True)

    with_head = nn.ModuleDict({**dict(model.items()), "layout": LayoutHead(config)})

    def stage(name: str, flow: FlowConfig, training: Training, weight: float = 0.0) -> Stage:
        def draw(step: int) -> FlowBatch:
            return draw_batch(codec, flow, training.batch, training.seed, step)

        def loss(batch: FlowBatch) -> Tensor:
            with training.autocast(), seen_at(model, config.layout_block) as seen:
                velocity = forward(model, batch)
                if not weight:
                    return flow_loss(velocity, batch)
                logits = with_head["layout"](seen[0][:, : velocity.shape[1]])
            return flow_loss(velocity, batch) + weight * layout_loss(logits, batch)

        def publish(state: dict[str, Tensor]) -> None:
            averaged = build_generator(config.architecture)
            names = averaged.state_dict()  # the head stays behind
            averaged.load_state_dict({name: state[name] for name in names})  # from whatever device
            name_unseen_classes(averaged)
            save_weights("generator", averaged, settings(config), weights)

        return Stage(name, with_head if weight else model, draw, loss, training, publish)

    return [
        stage("small", config.small, config.small_training),
        stage("scenes", config.scenes, config.scenes_training),
        stage("ordered", config.ordered, config.ordered_training, config.layout_weight),
        stage("mixed", config.mixed, config.mixed_training, config.layout_weight),
        stage("unordered", config.unordered, config.unordered_training, config.layout_weight),
    ]


class LayoutHead(nn.Module):
    """Tells the class and the offset of each token: (B, N, D) -> (B, N, 1 + classes + 2)."""

    def __init__(self, config: GeneratorRecipe) -> None:
        super().__init__()
        shape = config.architecture
        width = shape["attention_head_dim"] * shape["num_attention_heads"]
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.tell = nn.Linear(width, 1 + len(class_names("train")) + 2)

    def forward(self, hidden_BND: Tensor) -> Tensor:
        predicted: Tensor = self.tell(self.norm(hidden_BND))
        return predicted


@contextmanager
def seen_at(model: nn.ModuleDict, block: int) -> Iterator[list[Tensor]]:
    """The image tokens (B, N, D) behind a single block, of each forward pass."""
    seen: list[Tensor] = []
    blocks: Any = model["transformer"].single_transformer_blocks
    handle = blocks[block].register_forward_hook(lambda _, __, output: seen.append(output[1]))
    try:
        yield seen
    finally:
        handle.remove()


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


def layout_loss(predicted_BNK: Tensor, batch: FlowBatch) -> Tensor:
    """Cross-entropy of the classes, and the offsets' absolute error on subjects; weighted as the
    velocity's error."""
    layout, predicted = batch.layout, predicted_BNK.float()
    kind = F.cross_entropy(predicted[..., :-2].transpose(1, 2), layout.kind, reduction="none")
    apart = (predicted[..., -2:] - layout.offset).abs().mean(-1) * (layout.kind > 0)
    return (batch.weight * (kind + apart)).mean()


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
    small = config.small_training
    later = ", ".join(
        f"{training.steps * training.batch} scenes of 1, 2, 3 and 4 subjects"
        f" ({', '.join(f'{share:.0%}' for share in flow.subjects)})"
        f"{_at_slots(flow.slots)}"
        for flow, training in (
            (config.scenes, config.scenes_training),
            (config.ordered, config.ordered_training),
            (config.mixed, config.mixed_training),
            (config.unordered, config.unordered_training),
        )
    )
    return (
        f"{small.steps * small.batch} small pictures ({config.small.size} px) of one subject, then"
        f" {later}, each with its references and a prompt, of the 32 training classes"
    )


def _at_slots(slots: SlotConfig | None) -> str:
    """Words for the card."""
    if slots is None:
        return ""
    mixed = f", {slots.any_order:.0%} in any" if slots.any_order else ""
    return f"{'' if slots.mirrored else ' upright'} at places in their order{mixed}"


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
