"""`focusdpo studio`: look into a root with a browser."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from focusdpo.flows.commands.common import ROOT, TOKEN


def studio(
    root: ROOT,
    runs: Annotated[
        list[Path],
        typer.Option(
            "--runs", help="Folder of training runs or evaluations, or of such; may be repeated."
        ),
    ] = [],  # noqa: B006 - typer copies it
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; beyond loopback with a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port; 0: any free one.")
    ] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            help=f"What visitors must know; {TOKEN} in the environment does the same, unseen by "
            "`ps`.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str],
        typer.Option("--allow-host", help="A further name of this machine; may be repeated."),
    ] = [],  # noqa: B006
    preset: Annotated[
        str, typer.Option("--preset", help="Models and settings of what is run from the pages.")
    ] = "pocket",
    open_: Annotated[bool, typer.Option("--open", help="Open the browser too.")] = False,
) -> None:
    """Look into subjects, pairs, rejects, runs and evaluations in a browser, and review pairs.

    The page is for this machine alone, unless --host says otherwise; then a token is needed.
    """
    from focusdpo.studio.app import serve
    from focusdpo.studio.config import StudioConfig

    config = StudioConfig(
        root=root,
        runs=tuple(runs),
        host=host,
        port=port,
        token=token if token is not None else os.environ.get(TOKEN),
        hosts=tuple(allow_host),
        preset=preset,
    )
    serve(config, open_browser=open_)
