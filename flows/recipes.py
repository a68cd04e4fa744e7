"""Names of the pocket models -> the recipes that train them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.settings import parse_overrides, resolve

RECIPES = {
    "autoencoder": ("focusdpo.pocket.recipes.autoencoder", "AutoencoderConfig"),
    "generator": ("focusdpo.pocket.recipes.generator", "GeneratorConfig"),
    "clip": ("focusdpo.pocket.recipes.clip", "ClipRecipe"),
    "identity": ("focusdpo.pocket.recipes.identity", "IdentityRecipe"),
    "segmenter": ("focusdpo.pocket.recipes.segmenter", "SegmenterRecipe"),
    "judge": ("focusdpo.pocket.recipes.judge", "JudgeRecipe"),
}
"""Model -> module with `train(config, out_dir)`, and the name of its config class."""


def train_recipe(name: str, out: Path, overrides: Sequence[str]) -> list[str]:
    """Train a model into `out`; its held-out figures in words.

    UserError for an unknown name or setting.
    """
    if name not in RECIPES:
        raise UserError(f"pocket train {name}: there are {', '.join(RECIPES)}")
    module_name, config_name = RECIPES[name]
    module = importlib.import_module(module_name)
    config = resolve(getattr(module, config_name), parse_overrides(overrides))
    figures = module.train(config, out)
    if isinstance(figures, dict):
        return [f"{name}: {figure} {value:.4g}" for figure, value in figures.items()]
    return [
        f"{one.model}: {one.name} {one.value:.4g}"
        + (f" (wanted {one.wanted})" if one.wanted else "")
        for one in figures or ()
    ]
