"""`focusdpo pocket`: the embedded models, their recipes and their world."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.commands.options import INCOMPLETE, JSON, SET, finish, say
from focusdpo.flows.progress import Bars
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


app = typer.Typer(
    help="The pocket suite: train its models, check them, see its world.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("train")
def train(
    name: Annotated[
        str,
        typer.Argument(
            help="autoencoder, generator, clip, identity, segmenter or judge.", metavar="NAME"
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for checkpoints and weights; default runs/pocket/NAME."),
    ] = None,
    set_: SET = [],  # noqa: B006
    json: JSON = False,
) -> None:
    """Train a pocket model from the rendered world; the same command again goes on."""

    # Recipes tell their progress as log lines: steps, loss, rate.
    logging.getLogger("focusdpo").setLevel(min(logging.INFO, logging.getLogger("focusdpo").level))
    folder = out or Path("runs") / "pocket" / name
    figures = train_recipe(name, folder, set_)
    for told in figures:
        say(told)
    say(f"weights: {folder}; copy {name}.safetensors and {name}.json into pocket/weights to use")
    finish({"command": "pocket train", "name": name, "out": str(folder), "figures": figures}, json)


@app.command("check")
def check(json: JSON = False) -> None:
    """Measure the packaged models on held-out individuals, against what each must reach."""
    from focusdpo.pocket.check import MODELS, check_all

    figures = []
    with Bars() as watch:
        for done, name in enumerate(MODELS):
            watch("measure", done, len(MODELS), {})
            figures += check_all([name])
        watch("measure", len(MODELS), len(MODELS), {})
    for figure in figures:
        wanted = f"  (wanted {figure.wanted})" if figure.wanted else ""
        mark = "ok  " if figure.ok else "LOW "
        say(f"{mark}{figure.model:<12}{figure.name:<44}{figure.value:>10.4f}{wanted}")
    told = [
        {"model": f.model, "name": f.name, "value": f.value, "wanted": f.wanted, "ok": f.ok}
        for f in figures
    ]
    finish({"command": "pocket check", "figures": told}, json)
    if not all(figure.ok for figure in figures):
        raise typer.Exit(INCOMPLETE)


@app.command("subjects")
def subjects(
    folder: Annotated[Path, typer.Argument(help="Folder to write, new or empty.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Individuals.")] = 16,
    references: Annotated[int, typer.Option("--references", min=1, help="Pictures of each.")] = 2,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which individuals.")] = 7,
    json: JSON = False,
) -> None:
    """Write individuals of the training split as a folder that --subjects takes."""
    from focusdpo.flows.world_subjects import WorldConfig, export

    config = WorldConfig(subjects=count, references=references, seed=seed)
    written = export(folder, config)
    say(f"{folder}: {written} subjects written" if written else f"{folder}: there already")
    finish({"command": "pocket subjects", "folder": str(folder), "written": written}, json)


@app.command("world-preview")
def world_preview(
    out: Annotated[Path, typer.Argument(help="The PNG to write.")],
    count: Annotated[int, typer.Option("--count", min=1, max=400, help="Scenes.")] = 32,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which scenes.")] = 0,
    json: JSON = False,
) -> None:
    """Render scenes of the world: what the models learned from."""
    from focusdpo.flows.world_subjects import scenes_of_world
    from focusdpo.reports.sheets import contact_sheet

    sheet = contact_sheet(scenes_of_world(count, seed), columns=8, scale=2)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: cannot be written ({error})") from error
    say(f"{out}: {count} scenes")
    finish({"command": "pocket world-preview", "out": str(out), "scenes": count}, json)
