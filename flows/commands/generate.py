"""`focusdpo generate` and `demo-app`: one picture, a sheet, a CSV of orders, a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.commands.common import (
    INCOMPLETE,
    JSON,
    PRESET,
    SET,
    fetched,
    finish,
    require_here,
    say,
    tree,
)
from focusdpo.flows.progress import Bars, working

if TYPE_CHECKING:
    from focusdpo.flows.generate.inference import Generator


def generate(
    out: Annotated[
        Path, typer.Option("--out", help="The PNG to write; with --batch the folder of results.")
    ],
    reference: Annotated[
        list[Path] | None,
        typer.Option("--reference", help="A picture of a subject; repeat for up to three."),
    ] = None,
    class_name: Annotated[
        list[str] | None,
        typer.Option("--class-name", help="What it is; one per reference, in order."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="Default: the subjects on the suite's first background."),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", help="Folder or address that `train` wrote; none: the base."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="The noise.")] = 0,
    count: Annotated[
        int, typer.Option("--count", min=1, max=64, help="Pictures, whose seeds --seed decides.")
    ] = 1,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", help="These very seeds, as in 0,4-6, instead of --seed, --count."),
    ] = None,
    columns: Annotated[
        int | None, typer.Option("--columns", min=1, max=64, help="Of the contact sheet.")
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="A file per seed, NAME-SEED.png, instead of a sheet.")
    ] = False,
    batch: Annotated[
        Path | None,
        typer.Option(
            "--batch",
            metavar="CSV",
            help="Paint every row of a file (docs/inference.md); what is there stays.",
        ),
    ] = None,
    again: Annotated[
        Path | None,
        typer.Option(
            "--again", metavar="PNG", help="Paint that picture once more, to the same bytes."
        ),
    ] = None,
    preset: PRESET = "pocket",
    set_: SET = [],  # noqa: B006 - typer copies it
    json: JSON = False,
) -> None:
    """Paint subjects from reference pictures, with or without an adapter.

    Several seeds give a contact sheet. The PNG tells how it was made: --again makes it once more.
    """
    from focusdpo.flows.config import GenerateRun
    from focusdpo.flows.generate.inference import Generator
    from focusdpo.flows.settings import resolve

    _check(batch, again, reference, class_name, prompt)
    require_here(out)
    if again is not None:
        _again(again, reference or (), adapter, out, json)
        return
    generator = Generator(resolve(GenerateRun, tree(preset, set_)), adapter)
    if batch is not None:
        _batch(batch, generator, out, json)
        return
    pictures, words = reference or [], class_name or []
    if len(pictures) != len(words):
        raise UserError(
            f"{len(pictures)} --reference and {len(words)} --class-name: give one class name per "
            "reference"
        )
    subjects = list(zip(pictures, words, strict=True))
    files = _paint(generator, prompt, subjects, _seeds(seed, count, seeds), out, columns, each)
    finish({"command": "generate", **files}, json)


def _paint(
    generator: Generator,
    prompt: str | None,
    subjects: Sequence[tuple[Path, str]],
    seeds: Sequence[int],
    out: Path,
    columns: int | None,
    each: bool,
) -> dict[str, Any]:
    from focusdpo.flows.generate.painted import sheet

    with working("loading the generator and painting"):
        painted = generator(prompt, subjects, seeds)
        if each:
            names = [out.with_stem(f"{out.stem}-{one.about.seeds[0]}") for one in painted]
        else:
            names, painted = [out], [sheet(painted, columns)]
        for name, one in zip(names, painted, strict=True):
            one.save(name)
    for name in names:
        say(f"{name}: {painted[0].about.prompt}")
    about = painted[0].about.model_dump(mode="json") | {"seeds": list(seeds)}
    return {"out": str(names[0]), "files": [str(name) for name in names], **about}


def _again(
    picture: Path, references: Sequence[Path], adapter: Path | None, out: Path, json: bool
) -> None:
    from focusdpo.flows.generate.inference import again

    with working("painting once more"):
        made = again(picture, references, adapter)
        data = made.png()
        same = data == picture.read_bytes()
        made.save(out)
    say(f"{out}: {'the same bytes' if same else 'not the same bytes'} as {picture}")
    finish({"command": "generate", "out": str(out), "again": str(picture), "same": same}, json)
    if not same:
        raise typer.Exit(INCOMPLETE)


def _batch(path: Path, generator: Generator, out: Path, json: bool) -> None:
    from focusdpo.flows.generate.batch_jobs import read_jobs, run_jobs

    jobs = read_jobs(path, generator)
    with Bars() as watch:
        result = run_jobs(jobs, generator, out, lambda at, of: watch("paint", at, of, {}))
    say(f"{out}: {len(result.painted)} painted, {len(result.skipped)} there before")
    for row, why in result.failed.items():
        say(f"row {row}: {why}")
    finish({"command": "generate", "out": str(out), **asdict(result)}, json)
    if result.failed:
        raise typer.Exit(INCOMPLETE)


def _seeds(seed: int, count: int, seeds: str | None) -> list[int]:
    from focusdpo.data_schemas.scenes import candidate_seed
    from focusdpo.flows.generate.batch_jobs import parse_seeds

    if seeds is None:
        return [seed, *(candidate_seed(seed, index) for index in range(1, count))]
    try:
        return list(parse_seeds(seeds))
    except UserError as error:
        raise UserError(f"--seeds {seeds[:80]}: {error}") from error


def _check(
    batch: Path | None,
    again: Path | None,
    reference: list[Path] | None,
    class_name: list[str] | None,
    prompt: str | None,
) -> None:
    if batch is not None and again is not None:
        raise UserError("--batch and --again: give one of them")
    named = [
        name
        for name, value in (
            ("--reference", reference if batch else None),
            ("--class-name", class_name),
            ("--prompt", prompt),
        )
        if value
    ]
    if (batch or again) and named:
        source = "the CSV" if batch else "the picture"
        raise UserError(f"{', '.join(named)}: {source} tells that already; leave it out")


def demo_app(
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter", help="Folder or address that `train` wrote; none: the base alone."
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port.")] = 7860,
    preset: PRESET = "pocket",
    set_: SET = [],  # noqa: B006 - typer copies it
) -> None:
    """Upload subjects in a browser and see base and FocusDPO side by side, with the leakage
    numbers. Needs `pip install 'focusdpo[demo]'`."""
    from focusdpo.flows.generate.demo_app import DemoAppConfig, serve

    say(f"http://{host}:{port}/")
    serve(DemoAppConfig(preset, fetched(adapter), tuple(set_), host, port))
