"""The commands of `focusdpo`, and the options before a command."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any

import typer

from focusdpo.flows import console
from focusdpo.flows.commands import (
    dataset,
    export,
    look,
    measure_pictures,
    painting,
    pocket,
    reviewing,
    run,
    studio,
)
from focusdpo.flows.commands.options import command

app = typer.Typer(
    name="focusdpo",
    help="Subjects in; preference pairs, a FocusDPO adapter and an honest evaluation out.\n\n"
    "Start with `focusdpo demo`: the whole job on the embedded pocket suite, without network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

GROUPS = {
    "subjects": "Register, replace, remove and list the subjects of a dataset root. "
    "`build-dataset` without --subjects builds from them.",
    "dataset": "A dataset's versions: list them, compare two, delete subjects from all.",
    "review": "Decisions of reviewers about pairs (made in `focusdpo studio`): agreement, list, "
    "export. The next build honours them.",
    "export": "Make results ready to be given away.",
    "import": "Bring what was made elsewhere.",
}
COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": run.demo,
    "build-dataset": run.build_dataset,
    "encode": run.encode,
    "train": run.train,
    "evaluate": run.evaluate,
    "measure": measure_pictures.measure,
    "report": export.report,
    "ablate": run.ablate,
    "retrain": run.retrain,
    "rounds": run.rounds,
    "prefect-setup": run.prefect_setup,
    "focus-maps": painting.focus_maps,
    "noise-levels": painting.noise_levels,
    "generate": painting.generate,
    "settings": look.settings,
    "inspect": look.inspect,
    "doctor": look.doctor,
    "studio": studio.studio,
    "demo-app": painting.demo_app,
    "fetch": look.fetch,
    "gc": dataset.gc,
    "subjects add": dataset.add,
    "subjects update": dataset.update,
    "subjects remove": dataset.remove,
    "subjects list": dataset.list_subjects,
    "dataset versions": dataset.versions,
    "dataset list": dataset.versions,
    "dataset diff": dataset.diff,
    "dataset purge": dataset.purge,
    "review stats": reviewing.stats,
    "review list": reviewing.list_reviews,
    "review export": reviewing.export,
    "export dataset": export.dataset,
    "export adapter": export.adapter,
    "export pairs": export.pairs,
    "import pairs": dataset.import_pairs,
}
"""Every command but those of `pocket`, in the order of --help."""


def _register() -> None:
    groups = {"": app}
    for name, about in GROUPS.items():
        groups[name] = typer.Typer(help=about, no_args_is_help=True, rich_markup_mode=None)
        app.add_typer(groups[name], name=name)
    for words, function in COMMANDS.items():
        above, _, name = words.rpartition(" ")
        groups[above].command(name)(command(function))
    app.add_typer(pocket.app, name="pocket")


_register()


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
    console.log_to_people(verbose)
    if log_json is not None:
        console.to_file(log_json)
