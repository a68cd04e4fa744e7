"""All recipes, in the order in which they are run, and the driver that runs them all."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.cards import Figure
from focusdpo.pocket.second.recipes.recipe import Recipe, is_done, run

log = logging.getLogger(__name__)

NAMES = ("autoencoder", "generator", "segmenter", "identity", "judge", "clip")
"""The generator needs the autoencoder, the CLIP starts from the segmenter's region network."""


def recipe_of(name: str) -> Recipe[Any]:
    """A recipe by its model's name. UserError for an unknown one."""
    if name not in NAMES:
        raise UserError(f"pocket train {name}: there are {', '.join(NAMES)}, and all")
    recipe: Recipe[Any] = importlib.import_module(f"focusdpo.pocket.second.recipes.{name}").RECIPE
    return recipe


def train(name: str, config: Any, root: Path) -> list[Figure]:
    """Train or go on with one model; figures of what it reaches."""
    return run(recipe_of(name), config, root)


def train_all(root: Path, names: Sequence[str] = NAMES) -> list[Figure]:
    """All models by their default settings, one after the other; what is done is passed over, so
    the same call goes on where the last one stopped."""
    figures = []
    for name in names:
        recipe = recipe_of(name)
        config = recipe.config()
        if is_done(recipe, config, root):
            log.info("%s: done", name)
            continue
        figures += run(recipe, config, root)
    return figures
