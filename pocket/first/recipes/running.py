"""How a recipe runs as a program."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.cards import Figure

log = logging.getLogger(__name__)
Config = TypeVar("Config", bound=BaseModel)


def run_recipe(
    name: str, recipe: type[Config], train: Callable[[Config, Path], list[Figure]]
) -> None:
    """Reads --out and --set, trains, and logs the figures."""
    parser = argparse.ArgumentParser(description=f"Train the pocket model {name!r}.")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and weights")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="e.g. fit.steps=200"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for figure in train(with_overrides(recipe, options.set), options.out):
        log.info("%s", figure)


def with_overrides(recipe: type[Config], settings: list[str]) -> Config:
    """The recipe's defaults with dotted fields replaced. Raises UserError for a wrong field."""
    tree: dict[str, Any] = recipe().model_dump()
    for setting in settings:
        dotted, _, text = setting.partition("=")
        *parents, last = dotted.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = yaml.safe_load(text)
    try:
        return recipe.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"recipe settings {settings}: {error}") from error
