"""`focusdpo demo-app`: the demo space on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focusdpo.flows.commands.common import PRESET, SET, fetched, say


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
    from focusdpo.flows.demo_app import DemoAppConfig, serve

    say(f"http://{host}:{port}/")
    serve(DemoAppConfig(preset, fetched(adapter), tuple(set_), host, port))
