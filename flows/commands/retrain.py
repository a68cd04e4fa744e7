"""`focusdpo retrain`: a night's work; `focusdpo prefect-setup`: what it needs on a server."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from focusdpo.flows.commands.common import (
    INCOMPLETE,
    JSON,
    PREFECT,
    PRESET,
    SET,
    STRICT,
    finish,
    say,
    tree,
)
from focusdpo.flows.commands.run import SUBJECTS, say_licences
from focusdpo.flows.config import RetrainRun
from focusdpo.flows.progress import Bars
from focusdpo.flows.runner import carry_out
from focusdpo.flows.settings import resolve


def retrain(
    out: Annotated[
        str,
        typer.Option(
            "--out", help="Folder or address of the models: candidates, and promoted.json."
        ),
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
    prefect: PREFECT = None,
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


def retrain_run(run: RetrainRun, *, prefect: bool | None = None) -> dict[str, Any]:
    """retrain with progress and its verdict."""
    from focusdpo.flows.retrain.run import Retrain

    with Bars() as watch:
        outcome = carry_out(Retrain(run), watch, prefect=prefect)
    for line in [*outcome.build["problems"], *outcome.build["failed"]]:
        say(f"left out: {line}")
    say(f"dataset {outcome.version}: {outcome.build['pairs']} pairs, {outcome.new_pairs} new")
    say(f"{outcome.candidate or 'no candidate'}, {outcome.decision}: {outcome.reason}")
    say(f"in use: {outcome.adapter or 'the base alone'}")
    return dict(outcome.as_dict())


class OnPublish(StrEnum):
    """What a published dataset version starts."""

    train = "train"
    retrain = "retrain"


def prefect_setup(
    pool: Annotated[str, typer.Option("--pool", help="Name of the work pool.")] = "local",
    gpu_slots: Annotated[
        int, typer.Option("--gpu-slots", min=1, help="How many runs may use the GPU at once.")
    ] = 1,
    on_publish: Annotated[
        OnPublish | None,
        typer.Option(
            "--on-publish",
            help="Which deployment a published dataset version starts; without it none is added.",
        ),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="A trained adapter starts the deployment evaluate.")
    ] = False,
    silence: Annotated[
        float,
        typer.Option(
            "--silence",
            min=60,
            help="Seconds without a heartbeat after which a run counts as crashed.",
        ),
    ] = 540,
    json: JSON = False,
) -> None:
    """Make on the Prefect server at PREFECT_API_URL what our flows need: work pool, the GPU's
    concurrency limit, automations. What is there already as it should be stays."""
    from dataclasses import asdict

    from focusdpo.flows.prefect.server import hush

    hush()
    from focusdpo.flows.prefect.setup import setup

    chosen = None if on_publish is None else on_publish.value
    done = setup(
        pool=pool,
        gpu_slots=gpu_slots,
        on_publish=chosen,  # type: ignore[arg-type]
        evaluate=evaluate,
        silence=silence,
    )
    for one in done:
        say(f"{one.state:<8}{one.what}")
    finish({"command": "prefect-setup", "done": [asdict(one) for one in done]}, json)
