"""The commands of `focusdpo`, and the options before a command."""

from __future__ import annotations

import logging
import os
import sys
from importlib import metadata
from typing import Annotated

import typer

from focusdpo.flows import progress
from focusdpo.flows.commands import ablate as ablate_commands
from focusdpo.flows.commands import dataset as dataset_commands
from focusdpo.flows.commands import export as export_commands
from focusdpo.flows.commands import focus, generate, look, pocket, run, subjects
from focusdpo.flows.commands import retrain as retrain_commands
from focusdpo.flows.commands import review as review_commands
from focusdpo.flows.commands import studio as studio_commands

app = typer.Typer(
    name="focusdpo",
    help="Subjects in; preference pairs, a FocusDPO adapter and an honest evaluation out.\n\n"
    "Start with `focusdpo demo`: the whole job on the embedded pocket suite, without network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command("demo")(run.demo)
app.command("build-dataset")(run.build_dataset)
app.command("train")(run.train)
app.command("evaluate")(run.evaluate)
app.command("report")(export_commands.report)
app.command("ablate")(ablate_commands.ablate)
app.command("retrain")(retrain_commands.retrain)
app.command("prefect-setup")(retrain_commands.prefect_setup)
app.command("focus-maps")(focus.focus_maps)
app.command("generate")(generate.generate)
app.command("settings")(look.settings)
app.command("inspect")(look.inspect)
app.command("doctor")(look.doctor)
app.command("studio")(studio_commands.studio)
app.command("demo-app")(generate.demo_app)
app.command("fetch")(look.fetch)
app.command("gc")(dataset_commands.gc)
app.add_typer(subjects.app, name="subjects")
app.add_typer(dataset_commands.app, name="dataset")
app.add_typer(review_commands.app, name="review")
app.add_typer(pocket.app, name="pocket")
app.add_typer(export_commands.app, name="export")

LEVELS = {0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(metadata.version("focusdpo"))
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Log more; twice: everything.")
    ] = 0,
    log_json: Annotated[
        str | None,
        typer.Option(
            "--log-json",
            metavar="FILE",
            help="Also append the log to this file as JSON lines with run and partition ids.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Configures logging: it goes to stderr, results go to stdout."""
    logging.basicConfig(
        stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING
    )
    logging.getLogger("focusdpo").setLevel(LEVELS[min(verbose, 2)])
    if log_json is not None:
        progress.to_file(log_json)
    # tokenizers and OpenMP: no forks here, no warnings about them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
