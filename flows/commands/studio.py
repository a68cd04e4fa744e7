"""`focusdpo studio`: look into a root with a browser."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from focusdpo.flows.config import STUDIO_TOKEN, StudioRun


def studio(
    run: StudioRun,
    open_: Annotated[bool, typer.Option("--open", help="Open the browser too.")] = False,
) -> None:
    """Look into subjects, pairs, rejects, runs and evaluations in a browser, and review pairs.

    The page is for this machine alone, unless --host says otherwise; then a token is needed.
    """
    from focusdpo.studio.app import serve
    from focusdpo.studio.config import StudioConfig

    token = run.token if run.token is not None else os.environ.get(STUDIO_TOKEN)
    serve(StudioConfig(**{**dict(run), "token": token}), open_browser=open_)
