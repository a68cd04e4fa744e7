"""`focusdpo pocket`: the embedded models and their world."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.flows.commands.options import INCOMPLETE, JSON, SET, finish, say
from focusdpo.flows.console import Bars, working
from focusdpo.pocket.classes import Split
from focusdpo.pocket.weightfiles import WEIGHTS, weight_path

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
            help="autoencoder, generator, clip, identity, segmenter or judge; all: each in turn.",
            metavar="NAME",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for checkpoints and weights.")] = Path(
        "runs/pocket"
    ),
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Processes that render ahead.")
    ] = 0,
    set_: SET = [],  # noqa: B006
    json: JSON = False,
) -> None:
    """Train a pocket model from the rendered world; the same command again goes on."""
    from focusdpo.flows import pocket_recipes

    # Recipes tell their progress as log lines: steps, loss, rate.
    logging.getLogger("focusdpo").setLevel(min(logging.INFO, logging.getLogger("focusdpo").level))
    figures = pocket_recipes.train(name, out, set_, device=device, workers=workers)
    for line in figures:
        say(line)
    say(f"weights: {out / 'weights'}; copy them into pocket/weights to use them")
    finish({"command": "pocket train", "name": name, "out": str(out), "figures": figures}, json)


@app.command("check")
def check(
    name: Annotated[
        str,
        typer.Argument(
            help="judge, put to true renders and planted faults; generator, whose pictures it looks"
            " at; or all models.",
            metavar="[judge|generator|all]",
        ),
    ] = "all",
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Folder of weights; default: the packaged.")
    ] = None,
    scenes: Annotated[
        int, typer.Option("--scenes", min=1, help="Of each kind (and planted fault).")
    ] = 200,
    split: Annotated[
        Split, typer.Option("--split", help="Of the individuals that the judge is put to.")
    ] = "held_out",
    like: Annotated[
        float | None,
        typer.Option("--like", help="Least identity of what the judge calls alike."),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="Of the generator's sampling.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Of the generator's sampling.")
    ] = None,
    json: JSON = False,
) -> None:
    """Measure the packaged models on held-out individuals, against what each must reach."""
    if name == "all":
        _check_models(weights or WEIGHTS, json)
        return
    from focusdpo.flows.pocket_recipes import LIKE, judge_rows, painted_rows
    from focusdpo.pocket.faults import table_lines

    if name not in ("judge", "generator"):
        raise UserError(f"pocket check {name}: there are judge, generator and all")
    with working(f"looking at {counted(scenes, 'scene')} of each kind"):
        rows = (
            judge_rows(weights, scenes, split=split, like=LIKE if like is None else like)
            if name == "judge"
            else painted_rows(weights, scenes, guidance=guidance, steps=steps)
        )
    for line in table_lines(rows):
        say(line)
    table = [{**asdict(row), "ok": row.ok} for row in rows]
    finish({"command": f"pocket check {name}", "scenes": scenes, "rows": table}, json)
    if not all(row.ok for row in rows):
        raise typer.Exit(INCOMPLETE)


def _check_models(weights: Path, json: bool) -> None:
    from focusdpo.flows.pocket_recipes import figures_of
    from focusdpo.pocket.check import MODELS

    absent = [name for name in MODELS if not weight_path(name, weights).is_file()]
    present = [name for name in MODELS if name not in absent]
    if not present:
        raise UserError(f"{weights}: no weights of pocket models; `focusdpo pocket train all`")
    figures = []
    with Bars() as watch:
        for done, name in enumerate(present):
            watch("measure", done, len(present), {})
            figures += figures_of(name, weights)
        watch("measure", len(present), len(present), {})
    for name in absent:
        say(f"--  {name:<12}not measured: no weights in {weights}")
    for figure in figures:
        wanted = f"  (wanted {figure.wanted})" if figure.wanted else ""
        mark = "ok  " if figure.ok else "LOW "
        say(f"{mark}{figure.model:<12}{figure.name:<44}{figure.value:>10.4f}{wanted}")
    table = [
        {"model": f.model, "name": f.name, "value": f.value, "wanted": f.wanted, "ok": f.ok}
        for f in figures
    ]
    finish({"command": "pocket check", "figures": table}, json)
    if not all(figure.ok for figure in figures):
        raise typer.Exit(INCOMPLETE)


@app.command("sampling")
def sampling(
    weights: Annotated[
        Path, typer.Option("--weights", help="Folder of generator, autoencoder and judge.")
    ],
    scenes: Annotated[int, typer.Option("--scenes", min=1, help="Of each kind.")] = 24,
    keep: Annotated[
        bool, typer.Option("--keep/--look", help="Store the chosen setting beside the weights.")
    ] = False,
    json: JSON = False,
) -> None:
    """Find the generator's best sampling on validation scenes, by the judge."""
    from focusdpo.flows.pocket_recipes import best_sampling

    with working("painting with each setting"):
        table, chosen = best_sampling(weights, scenes, keep=keep)
    for row in table:
        say(
            f"guidance {row.sampling.guidance:g}, {counted(row.sampling.steps, 'step')}:"
            f" {100 * row.failed:.1f} % of pictures fail,"
            f" {100 * row.recognised:.1f} % of classes recognised in scenes of one and two"
        )
    say(
        f"{'kept' if keep else 'to use'}: guidance {chosen.sampling.guidance:g},"
        f" {counted(chosen.sampling.steps, 'step')}: the cheapest of those that fail as seldom as"
        " the best, to within a standard error"
    )
    settings = [
        {**row.sampling.model_dump(), "failed": row.failed, "recognised": row.recognised}
        for row in table
    ]
    finish({"command": "pocket sampling", "kept": keep, "rows": settings}, json)


@app.command("subjects")
def subjects(
    folder: Annotated[Path, typer.Argument(help="Folder to write, new or empty.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Individuals.")] = 16,
    references: Annotated[int, typer.Option("--references", min=1, help="Pictures of each.")] = 2,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which individuals.")] = 7,
    json: JSON = False,
) -> None:
    """Write individuals of the training split as a folder that --subjects takes."""
    from focusdpo.pocket.world.world_subjects import WorldConfig, export

    config = WorldConfig(subjects=count, references=references, seed=seed)
    with working("rendering"):
        written = export(folder, config)
    say(
        f"{folder}: {counted(written, 'subject')} written"
        if written
        else f"{folder}: there already"
    )
    finish({"command": "pocket subjects", "folder": str(folder), "written": written}, json)


@app.command("world-preview")
def world_preview(
    out: Annotated[Path, typer.Argument(help="The PNG to write.")],
    count: Annotated[int, typer.Option("--count", min=1, max=400, help="Scenes.")] = 32,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which scenes.")] = 0,
    json: JSON = False,
) -> None:
    """Render scenes of the world, with the words of their subjects: what the models learned
    from."""
    from focusdpo.pocket.classes import class_names
    from focusdpo.pocket.recipes.gallery import world_sheet

    with working("rendering"):
        picture = world_sheet(count, seed)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: cannot be written ({error})") from error
    classes = sorted(class_names("train"))
    say(f"{out}: {counted(count, 'scene')} of the classes that the models were taught:")
    say(", ".join(classes))
    summary = {"out": str(out), "scenes": count, "classes": classes}
    finish({"command": "pocket world-preview", **summary}, json)
