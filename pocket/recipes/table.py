"""All recipes, in the order in which they are run, and the driver that runs them all.

    focusdpo pocket train all --out ROOT   # or goes on where it stopped
    focusdpo pocket train NAME --out ROOT  # one of them

Each card says how long its model took. By far the longest is the generator's: on one AVX-512 core
of its own about 2 hours for the small pictures (50 samples a second) and 6 for the scenes (20).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.cards import Figure
from focusdpo.pocket.fitting.recipe import Recipe, is_done, on_machine, run

log = logging.getLogger(__name__)

NAMES = ("autoencoder", "generator", "segmenter", "identity", "judge", "clip")
"""The generator needs the autoencoder, the CLIP starts from the segmenter's region network."""


def recipe_of(name: str) -> Recipe[Any]:
    """A recipe by its model's name. UserError for an unknown one."""
    if name not in NAMES:
        raise UserError(f"pocket train {name}: there are {', '.join(NAMES)}, and all")
    recipe: Recipe[Any] = importlib.import_module(f"focusdpo.pocket.recipes.{name}_recipe").RECIPE
    return recipe


def train(name: str, config: Any, root: Path) -> list[Figure]:
    """Train or go on with one model; figures of what it reaches."""
    return run(recipe_of(name), config, root)


def train_all(root: Path, names: Sequence[str] = NAMES, **machine: Any) -> list[Figure]:
    """All models by their default settings, one after the other; what is done is passed over, so
    the same call goes on where the last one stopped. `machine` is what `on_machine` takes."""
    figures = []
    for name in names:
        recipe = recipe_of(name)
        config = on_machine(recipe.config(), **machine)
        if is_done(recipe, config, root):
            log.info("%s: done", name)
            continue
        figures += run(recipe, config, root)
    return figures
