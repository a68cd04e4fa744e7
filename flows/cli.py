"""The command line: `focusdpo --help`.

Exit codes: 0 all done; 1 a mistake of ours, with its traceback; 2 bad input, with what is wrong
and what to do; 3 done, but some subjects or partitions were left out; 130 stopped by the user.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, NoReturn

import typer

from focusdpo.data_schemas.errors import ClusterGone, UserError
from focusdpo.flows import progress
from focusdpo.flows.commands import ablate as ablate_commands
from focusdpo.flows.commands import dataset as dataset_commands
from focusdpo.flows.commands import export as export_commands
from focusdpo.flows.commands import focus, generate, look, pocket, run, subjects
from focusdpo.flows.commands import retrain as retrain_commands
from focusdpo.flows.commands import review as review_commands
from focusdpo.flows.commands import studio as studio_commands
from focusdpo.store.remote import Lost

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    run_program(app, "focusdpo", sys.argv[1:] if arguments is None else arguments)


def run_program(program: typer.Typer, name: str, arguments: Sequence[str]) -> None:
    """Run one of our programs and exit with its code; bad input is one line on stderr."""
    given = list(arguments)
    try:
        program(given, prog_name=name)
    except ClusterGone as error:
        _tell(str(error), 2, "--json" in given)
        leave_at_once(2)
    except (UserError, Lost) as error:
        _complain(str(error), 2, "--json" in given)
    except KeyboardInterrupt:
        _complain("stopped; what was finished is kept, the same command goes on", 130, False)


def leave_at_once(code: int) -> NoReturn:
    """End without taking the interpreter apart; what was registered for the end is done."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _complain(message: str, code: int, as_json: bool) -> NoReturn:
    _tell(message, code, as_json)
    sys.exit(code)


def _tell(message: str, code: int, as_json: bool) -> None:
    sys.stderr.write(f"error: {message}\n")
    if as_json:
        sys.stdout.write(json.dumps({"error": message, "exit_code": code}) + "\n")


if __name__ == "__main__":
    main()
