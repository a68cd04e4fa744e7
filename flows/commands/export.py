"""`focusdpo export`: results in layouts that others load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from focusdpo.flows.commands.common import JSON, finish, say

app = typer.Typer(help="Make results ready to be given away.", no_args_is_help=True)


@app.command("adapter")
def adapter(
    adapter: Annotated[Path, typer.Option("--adapter", help="Folder that `train` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    layout: Annotated[
        Literal["diffusers", "uno"],
        typer.Option("--layout", help="diffusers: for load_lora_weights; uno: UNO's own names."),
    ] = "diffusers",
    uno: Annotated[
        str | None,
        typer.Option(
            "--uno",
            help="With --layout uno: UNO's dit_lora.safetensors, joined with the adapter so that "
            "UNO's code runs both on plain FLUX; without it the file holds the adapter alone.",
        ),
    ] = None,
    evaluate: Annotated[
        list[Path] | None,
        typer.Option("--evaluate", help="Folder of an evaluation for the card; may be repeated."),
    ] = None,
    json: JSON = False,
) -> None:
    """Write an adapter with its model card: evaluation, settings, data version, licences, how to
    load it."""
    from focusdpo.flows.exporting import export_adapter

    made = export_adapter(adapter, out, layout, uno=uno, evaluations=evaluate or ())
    say(f"{made}: {', '.join(sorted(file.name for file in made.iterdir()))}")
    finish({"command": "export adapter", "out": str(made), "layout": layout}, json)
