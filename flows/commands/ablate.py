"""`focusdpo ablate`: which objective, on which pairs, keeps subjects best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from focusdpo.flows.commands.common import JSON, PREFECT, PRESET, SET, finish, say, tree
from focusdpo.flows.config import AblateRun
from focusdpo.flows.progress import Bars
from focusdpo.flows.runner import carry_out
from focusdpo.flows.settings import resolve


def ablate(
    out: Annotated[
        str, typer.Option("--out", help="Folder of everything that is made.")
    ] = "runs/ablation",
    root: Annotated[
        str | None,
        typer.Option("--root", help="A dataset to train on; without it one is built below --out."),
    ] = None,
    version: Annotated[str, typer.Option("--version", help="Dataset version.")] = "latest",
    docs: Annotated[
        Path | None,
        typer.Option("--docs", help="Also copy tables, curves and pictures to this folder."),
    ] = None,
    prefect: PREFECT = None,
    preset: PRESET = "pocket",
    set_: SET = [],  # noqa: B006 - typer copies it
    json: JSON = False,
) -> None:
    """Compare SFT, DPO, masked DPO, PatchDPO and FocusDPO, each with the settings that a small
    search on validation individuals gives it, on disrupted and ranked pairs, with several seeds.

    Takes about an hour and a half on two cores with the pocket preset. What is finished is kept:
    the same command goes on.
    """
    run = resolve(AblateRun, tree(preset, set_, out=out, root=root, version=version))
    result = ablate_run(run, prefect=prefect)
    if docs is not None:
        from focusdpo.flows.ablation.pages import publish

        for file in publish(Path(run.out), docs):
            say(f"copied: {file}")
    finish(result, json)


def ablate_run(run: AblateRun, *, prefect: bool | None = None) -> dict[str, Any]:
    """ablate with progress and its verdict."""
    from focusdpo.flows.ablation.run import Ablate

    with Bars() as watch:
        outcome = carry_out(Ablate(run), watch, prefect=prefect)
    for line in outcome.verdict:
        say(line)
    say(
        f"{outcome.cells} cells, {outcome.made} of them made now in {outcome.wall_seconds:.0f} s; "
        f"report: {outcome.report}"
    )
    return dict(outcome.as_dict())
