"""`focusdpo report`: one page about a run, or about what differs between two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.commands.common import JSON, fetched, finish, require_here, say
from focusdpo.flows.progress import working


def report(
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
    root: Annotated[
        Path | None, typer.Option("--root", help="Folder of a dataset to show.")
    ] = None,
    version: Annotated[str, typer.Option("--version", help="Its version.")] = "latest",
    train_dir: Annotated[
        Path | None, typer.Option("--train", help="Folder or address of a training run to show.")
    ] = None,
    evaluate_dir: Annotated[
        Path | None, typer.Option("--evaluate", help="Folder or address of an evaluation to show.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--compare",
            metavar="A B",
            help="Show instead what differs from A to B: two versions of --root, or without --root "
            "two folders that `evaluate` wrote.",
        ),
    ] = None,
    json: JSON = False,
) -> None:
    """Write one self-contained HTML page about a dataset, a training run, an evaluation, or all
    three; or about what differs between two datasets or adapters."""
    from focusdpo.flows.reports.compare import write_comparison
    from focusdpo.flows.reports.report import write_report

    if compare is not None and (train_dir is not None or evaluate_dir is not None):
        raise UserError(
            "--compare goes with --root (two versions) or alone (two evaluations), not with "
            "--train or --evaluate"
        )
    require_here(out)
    with working("writing the report"):
        page = (
            write_report(
                out,
                root=root,
                version=version,
                train_dir=fetched(train_dir),
                evaluate_dir=fetched(evaluate_dir),
            )
            if compare is None
            else write_comparison(out, *_sides(compare, root), root=root)
        )
    say(f"report: {page}")
    finish({"command": "report", "report": str(page)}, json)


def _sides(compare: tuple[str, str], root: Path | None) -> tuple[str, str]:
    """Versions as they are; evaluations as folders of this machine."""
    a, b = compare if root is not None else [str(fetched(Path(one))) for one in compare]
    return a, b
