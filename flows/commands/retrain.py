"""`focusdpo retrain`: a night's work; `focusdpo prefect-setup`: what it needs on a server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from focusdpo.flows.commands.common import (
    INCOMPLETE,
    JSON,
    PREFECT,
    PRESET,
    SET,
    STRICT,
    choose,
    finish,
    say,
    tree,
)
from focusdpo.flows.commands.run import SUBJECTS, say_licences
from focusdpo.flows.config import RetrainRun
from focusdpo.flows.progress import Bars
from focusdpo.flows.settings import resolve


def retrain(
    out: Annotated[
        str,
        typer.Option("--out", help="Folder of the models: candidates, and promoted.json."),
    ],
    root: Annotated[
        str | None,
        typer.Option("--root", help="Folder of the dataset; without it `dataset` below --out."),
    ] = None,
    subjects: SUBJECTS = None,
    strict: STRICT = False,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="What decides, as for evaluate.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR", help="The protocol's photographs, as for evaluate."),
    ] = None,
    prefect: PREFECT = True,
    preset: PRESET = "pocket",
    set_: SET = [],  # noqa: B006 - typer copies it
    json: JSON = False,
) -> None:
    """Build from what is new; train when enough is (`retrain.min_new_pairs`) or the adapter in use
    is old; compare the two adapters by a protocol; point promoted.json at the new one if it is
    better, else keep the old one and say why.

    The same command again goes on after a stop; docs/operations.md has the schedule.
    """
    given = tree(
        preset,
        set_,
        out=out,
        root=root,
        subjects=subjects,
        strict=strict or None,
        protocol=protocol,
        data=data,
    )
    run = resolve(RetrainRun, given)
    say_licences(run.family)
    result = retrain_run(run, prefect=prefect)
    finish(result, json)
    if result["build"]["failed"] or result["build"]["problems"]:
        raise typer.Exit(INCOMPLETE)


def retrain_run(run: RetrainRun, *, prefect: bool = True) -> dict[str, Any]:
    """retrain with progress and its verdict."""
    with Bars() as watch:

        def flow() -> Any:
            from focusdpo.flows.retrain import run_here

            return run_here(run, watch)

        def plain() -> Any:
            from focusdpo.flows.retraining import retrain as retrain_here

            return retrain_here(run, watch=watch)

        outcome = choose(prefect, run.out, flow, plain)
    for line in [*outcome.build["problems"], *outcome.build["failed"]]:
        say(f"left out: {line}")
    say(f"dataset {outcome.version}: {outcome.build['pairs']} pairs, {outcome.new_pairs} new")
    say(f"{outcome.candidate or 'no candidate'}, {outcome.decision}: {outcome.reason}")
    say(f"in use: {outcome.adapter or 'the base alone'}")
    return dict(outcome.as_dict())
