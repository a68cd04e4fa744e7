"""Commands that look or fetch: inspect, settings, doctor, fetch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.commands.common import INCOMPLETE, JSON, PRESET, SET, finish, say, tree
from focusdpo.flows.progress import working
from focusdpo.flows.settings import resolve
from focusdpo.store.checkpoints import fetch as fetch_source


def settings(
    command: Annotated[
        str,
        typer.Argument(
            help="build-dataset, train, focus-maps, evaluate or demo.", metavar="COMMAND"
        ),
    ] = "demo",
    preset: PRESET = "pocket",
    set_: SET = [],  # noqa: B006 - typer copies it
    json: JSON = False,
) -> None:
    """Print every setting of a command with its value and meaning; --set takes any of them."""
    from focusdpo.flows import config
    from focusdpo.flows.settings import described, resolve

    runs: dict[str, type[BaseModel]] = {
        "build-dataset": config.BuildRun,
        "train": config.TrainRun,
        "focus-maps": config.FocusMapsRun,
        "evaluate": config.EvaluateRun,
        "demo": config.DemoRun,
    }
    if command not in runs:
        raise UserError(f"settings {command}: there are {', '.join(runs)}")
    model = runs[command]
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    run = resolve(model, tree(preset, set_) | {name: "..." for name in required})
    fields = list(described(run))
    for name, value, meaning in fields:
        say(f"{name} = {value!r}" + (f"   # {meaning}" if meaning else ""))
    values = {name: value for name, value, _ in fields}
    finish({"command": "settings", "of": command, "settings": values}, json)


def inspect(
    root: Annotated[str, typer.Argument(help="Folder of a dataset.")],
    version: Annotated[str, typer.Option("--version", help="Which version.")] = "latest",
    pair: Annotated[
        str | None, typer.Option("--pair", help="Id of a pair: where it came from, to the picture.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every byte of the version's shards.")
    ] = False,
    json: JSON = False,
) -> None:
    """Show a dataset: versions, stages with yields and costs, rejects, shards; or a pair's
    lineage."""
    from focusdpo.flows.build import inspection

    with working(f"reading {root}"):
        found = (
            inspection.pair_lineage(root, version, pair)
            if pair
            else inspection.overview(root, version, verify=verify)
        )
    for line in inspection.as_lines(found):
        say(line)
    finish({"command": "inspect", **found}, json)


def doctor(
    preset: PRESET = "pocket",
    set_: SET = [],  # noqa: B006
    root: Annotated[
        str | None, typer.Option("--root", help="Also check every byte of this dataset.")
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Restore what has a copy; drop what the next build can make anew.",
        ),
    ] = False,
    json: JSON = False,
) -> None:
    """Check what a run needs: packages, the preset's checkpoints, disk, memory, a dataset's
    bytes."""
    from focusdpo.flows.config import GenerateRun
    from focusdpo.flows.doctor import checks, dataset_check
    from focusdpo.flows.settings import resolve

    if repair and root is None:
        raise UserError("--repair needs --root: which dataset is to be mended?")
    run = resolve(GenerateRun, tree(preset, set_))
    with working("checking"):
        results = checks(run.models if run.suite == "checkpoints" else None)
        if root is not None:
            results.append(dataset_check(root, repair=repair))
    said: dict[str, str] = {}
    for check in results:
        # One absent checkpoint fails several checks: its message is told once.
        first = said.setdefault(check.told, check.name)
        message = check.told if check.ok or first == check.name else f"as {first}"
        say(f"{'ok  ' if check.ok else 'BAD '} {check.name}: {message}")
    told: list[dict[str, Any]] = [asdict(check) for check in results]
    finish({"command": "doctor", "ok": all(c.ok for c in results), "checks": told}, json)
    if not all(check.ok for check in results):
        raise typer.Exit(INCOMPLETE)


def fetch(
    preset: PRESET = "flux-uno",
    set_: SET = [],  # noqa: B006 - typer copies it
    json: JSON = False,
) -> None:
    """Download the checkpoints that a preset names; what is there already is left alone.

    No other command downloads anything.
    """
    from focusdpo.flows.checkpoint_suite import sources
    from focusdpo.flows.config import GenerateRun
    from focusdpo.store.provenance import notices

    run = resolve(GenerateRun, tree(preset, set_))
    if run.models is None or run.suite == "pocket":
        raise UserError(f"preset {preset}: the embedded suite; there is nothing to download")
    for line in notices(run.models):
        say(line)
    found = {}
    for field, source, patterns in sources(run.models):
        say(f"{field}: {source}")
        found[field] = str(fetch_source(source, field, patterns))
    finish({"command": "fetch", "found": found}, json)
