"""`focusdpo bench`: the figures that the project promises, measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focusdpo.flows.commands.common import JSON, PRESET, SET, finish, say


def bench(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for what is built; new or empty.")
    ] = Path("runs/bench"),
    prefect: Annotated[
        bool, typer.Option("--prefect/--no-prefect", help="Measure with or without the engine.")
    ] = True,
    repeats: Annotated[
        int, typer.Option("--repeats", min=3, help="Step pairs of the training comparison.")
    ] = 20,
    preset: PRESET = "pocket",
    set_: SET = [],  # noqa: B006
    json: JSON = False,
) -> None:
    """Measure: orchestration overhead, a run in which nothing changed, time and memory of FocusDPO
    steps beside plain DPO steps of 16 pairs.

    Settings are build-dataset's; a smaller world is quicker: `--set world.subjects=8`.
    """
    from focusdpo.flows.measuring import measure

    figures = measure(out, prefect=prefect, repeats=repeats, preset=preset, overrides=set_)
    for figure in figures:
        mark = "" if figure.ok is None else ("ok  " if figure.ok else "MISS")
        say(f"{mark:<5}{figure.name:<46}{figure.value:>12.3f} {figure.unit:<6}{figure.wanted}")
    told = [figure.as_dict() for figure in figures]
    finish({"command": "bench", "figures": told}, json)
