"""What a recipe is, and how one runs: stages in turn, then weights, figures and card.

A root folder holds `NAME/STAGE/checkpoint.safetensors` of all recipes, and `weights/` with what
they made, where later recipes find what they start from.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import BaseModel
from torch import nn

from focusdpo.pocket.cards import Figure, write_card
from focusdpo.pocket.fitting.training import FREE_SETTINGS, Stage, Training, fit
from focusdpo.pocket.lineage import Lineage
from focusdpo.pocket.weightfiles import save_weights
from focusdpo.pocket.world.world import SCENE_SIZE

log = logging.getLogger(__name__)
Config = TypeVar("Config", bound=BaseModel)


@dataclass(frozen=True)
class Recipe(Generic[Config]):
    """From random weights to a shipped model. `weights` is the folder of models made before."""

    name: str
    config: type[Config]
    what: str
    """The model, for its card."""
    data: Callable[[Config], str]
    """What it is shown, for its card."""
    build: Callable[[Config, Path], nn.Module]
    """(config, weights) -> the model before training; torch's seed is set to `seed_of(config)`."""
    seed_of: Callable[[Config], int]
    stages: Callable[[Config, nn.Module, Path], list[Stage]]
    """(config, model, weights) -> trainings of parts of that model, in turn."""
    settings: Callable[[Config], dict[str, Any]]
    """What builds the model again, stored beside the weights."""
    measure: Callable[[Path], list[Figure]]
    """Figures of the weights in a folder on individuals that training never saw."""
    lineage: Callable[[Config], Lineage] | None = None


def run(recipe: Recipe[Config], config: Config, root: Path) -> list[Figure]:
    """Trains or goes on with a model under `root`; writes weights and card to `root/weights` and
    returns the held-out figures."""
    weights = root / "weights"
    torch.manual_seed(recipe.seed_of(config))
    model = recipe.build(config, weights)
    took = [
        fit(stage, root / recipe.name / stage.name)
        for stage in recipe.stages(config, model, weights)
    ]
    save_weights(recipe.name, model, recipe.settings(config), weights)
    figures = recipe.measure(weights)
    write_card(
        recipe.name,
        weights,
        what=recipe.what,
        data=recipe.data(config),
        seconds=sum(each.seconds for each in took),
        figures=figures,
        module=model,
        lineage=recipe.lineage(config) if recipe.lineage else None,
        size=SCENE_SIZE,
    )
    _done_path(recipe, root).write_text(_done_text(recipe, config, figures), encoding="utf-8")
    return figures


def is_done(recipe: Recipe[Config], config: Config, root: Path) -> bool:
    """Whether `run` has come to its end with these settings."""
    try:
        done = json.loads(_done_path(recipe, root).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return _decisive(done["config"]) == _decisive(config.model_dump(mode="json"))


def on_machine(config: Config, **settings: Any) -> Config:
    """The same recipe with some of what may change between two starts (FREE_SETTINGS) set in all
    its trainings."""
    trainings = {
        name: value.model_copy(update=settings)
        for name, value in config
        if isinstance(value, Training)
    }
    return config.model_copy(update=trainings)


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    """A dumped recipe without what does not decide its weights."""
    return {
        name: {k: v for k, v in value.items() if k not in FREE_SETTINGS}
        if isinstance(value, dict)
        else value
        for name, value in config.items()
    }


def _done_path(recipe: Recipe[Config], root: Path) -> Path:
    return root / recipe.name / "done.json"


def _done_text(recipe: Recipe[Config], config: Config, figures: list[Figure]) -> str:
    row = {
        "config": config.model_dump(mode="json"),
        "figures": {figure.name: figure.value for figure in figures},
    }
    return json.dumps(row, indent=1) + "\n"
