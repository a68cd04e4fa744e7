"""What commands share: options and output."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.settings import merge, parse_overrides
from focusdpo.model.training.parallel import is_first
from focusdpo.store.addresses import is_remote

PRESET = Annotated[
    str, typer.Option("--preset", help="A shipped preset, or the path of a YAML file.")
]
SET = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="SECTION.FIELD=VALUE",
        help="Change one setting, as in `--set train.steps=200`; may be repeated.",
    ),
]
JSON = Annotated[
    bool, typer.Option("--json", help="Print one machine-readable line last on stdout.")
]
PREFECT = Annotated[
    bool | None,
    typer.Option(
        "--prefect/--no-prefect",
        help="Run as a Prefect flow, with a server that starts by itself where PREFECT_API_URL "
        "names none; or by plain calls. Without either: a flow where PREFECT_API_URL is set.",
    ),
]
STRICT = Annotated[
    bool, typer.Option("--strict", help="Stop at the first bad subject or partition.")
]
ROOT = Annotated[str, typer.Option("--root", help="Folder of the dataset.")]

INCOMPLETE = 3
"""Exit code of a run that finished, but left something out."""


class State:
    """What `main` must know of the command that ran, to answer errors in its manner."""

    as_json = False


def tree(preset: str, overrides: Sequence[str], **given: Any) -> dict[str, Any]:
    """The nested mapping that a run's model is made of; options that were left out stay out."""
    named = {name: value for name, value in given.items() if value is not None}
    return merge({"preset": preset, **parse_overrides(overrides)}, named)


def fetched(address: Path | None) -> Path | None:
    """A folder that a run left, of this machine: where it is an address, what lies there comes."""
    from focusdpo.store.outputs import local

    return None if address is None else local(address)


def require_here(out: Path | None) -> None:
    """UserError for an `--out` at an address."""
    if out is not None and is_remote(out):
        raise UserError(
            f"--out {out}: this command writes to this machine; give a local path. Only train, "
            "evaluate and retrain take an address as --out"
        )


def say(text: str = "") -> None:
    """A line for people, by the first of several processes."""
    if is_first():
        typer.echo(text)


def finish(result: Mapping[str, Any], as_json: bool) -> None:
    """The machine-readable line, last on stdout."""
    if as_json and is_first():
        sys.stdout.flush()
        typer.echo(json.dumps(result, sort_keys=True, allow_nan=False, default=str))
