"""Commands that look or fetch: inspect, settings, doctor, fetch."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.registration import unknown
from focusdpo.flows.commands.options import SET, Incomplete, run_models, say, without_secret
from focusdpo.flows.config import GenerateRun, Preset
from focusdpo.flows.console import working
from focusdpo.flows.models_config import ModelsConfig
from focusdpo.flows.settings import (
    Setting,
    described,
    load_preset,
    parse_overrides,
    type_in_words,
    with_blanks,
)
from focusdpo.model.training.config import TrainConfig
from focusdpo.store.checkpoints import fetch as fetch_source


def settings(
    context: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND", help="Its name, as in train, or export adapter; none: demo."
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="A shipped preset, or the path of a YAML file.")
    ] = None,
    set_: SET = [],  # noqa: B006 - typer copies it
) -> Mapping[str, Any]:
    """Print every setting of a command with its value, its meaning and what it may be; --set takes
    any of them."""
    models = dict(run_models(context.find_root().command))
    name = " ".join(command or ["demo"])
    if name not in models:
        raise unknown("command with settings", name, models)
    model = models[name]
    given = {"preset": preset} if preset is not None else {}
    run = with_blanks(model, given | parse_overrides(set_))
    fields = list(described(run))
    for line in _aligned(fields, shutil.get_terminal_size().columns):
        say(line)
    values = {field.name: field.value for field in fields}
    return {"command": "settings", "of": name, "settings": values}


def _aligned(settings: list[Setting], width: int) -> Iterator[str]:
    """`name = value`, and beside it the meaning and the type, wrapped at `width` columns. A value
    that is too long for the first column has its meaning below."""
    lines = [f"{setting.name} = {setting.value!r}" for setting in settings]
    column = min(max(map(len, lines)), max(24, width // 2 - 2))
    text = textwrap.TextWrapper(max(20, width - column - 2), break_on_hyphens=False)
    for line, setting in zip(lines, settings, strict=True):
        kind = type_in_words(setting.field).replace("`", "").replace("\N{NO-BREAK SPACE}", " ")
        about = text.wrap(f"{setting.field.description or ''} [{kind}]".strip())
        if len(line) > column:
            yield from textwrap.wrap(line, width, subsequent_indent="    ")
            line = ""
        for start, part in zip([line, *[""] * len(about)], about, strict=False):
            yield f"{start:<{column}}  {part}"


def inspect(
    root: Annotated[str, typer.Argument(help="Folder of a dataset.", callback=without_secret)],
    version: Annotated[str, typer.Option("--version", help="Which version.")] = "latest",
    pair: Annotated[
        str | None, typer.Option("--pair", help="Id of a pair: where it came from, to the picture.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every byte of the version's shards.")
    ] = False,
) -> Mapping[str, Any]:
    """Show a dataset: versions, stages with yields and costs, rejects, shards; or a pair's
    lineage."""
    from focusdpo.flows.build import inspection

    with working(f"reading {root}"):
        shown = (
            inspection.pair_lineage(root, version, pair)
            if pair
            else inspection.overview(root, version, verify=verify)
        )
    for line in inspection.as_lines(shown) if pair else inspection.as_table(shown):
        say(line)
    return {"command": "inspect", **shown}


def doctor(
    run: GenerateRun,
    root: Annotated[
        str | None,
        typer.Option(
            "--root", help="Also check every byte of this dataset.", callback=without_secret
        ),
    ] = None,
    runs: Annotated[
        list[Path],
        typer.Option(
            "--run", help="Also check every file of what train, evaluate or retrain left there."
        ),
    ] = [],  # noqa: B006 - typer copies it
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Restore what has a copy; drop what the next build can make anew.",
        ),
    ] = False,
) -> Mapping[str, Any]:
    """Check what a run needs: packages, the preset's checkpoints, disk, memory, a dataset's or a
    run's bytes."""
    from focusdpo.flows.doctor import checks, dataset_check, run_check

    if repair and root is None:
        raise UserError("--repair needs --root: which dataset is to be mended?")
    with working("checking"):
        results = checks(*_with_training(run))
        if root is not None:
            results.append(dataset_check(root, repair=repair))
        results += [run_check(folder) for folder in runs]
    by_message: dict[str, str] = {}
    for check in results:
        # One absent checkpoint fails several checks: its message is told once.
        first = by_message.setdefault(check.told, check.name)
        message = check.told if check.ok or first == check.name else f"as {first}"
        say(f"{'ok  ' if check.ok else 'BAD '} {check.name}: {message}")
    fine = all(check.ok for check in results)
    summary = {"command": "doctor", "ok": fine, "checks": [asdict(check) for check in results]}
    return summary if fine else Incomplete(summary)


def _with_training(run: GenerateRun) -> tuple[ModelsConfig | None, TrainConfig | None]:
    """The run's checkpoints, and how its preset trains; nothing of the embedded suite."""
    if run.models is None or run.suite == "pocket":
        return None, None
    train = load_preset(run.preset).get("train", {})
    return run.models, TrainConfig.model_validate(train)


class FetchRun(GenerateRun):
    """`fetch`: the checkpoints of a preset."""

    preset: Preset = Field("flux-uno", description="a shipped preset, or the path of a YAML file")


def fetch(
    run: FetchRun,
    plan: Annotated[
        bool, typer.Option("--plan", help="Tell what would be downloaded, how much, and stop.")
    ] = False,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Take the newest commits, instead of those that were got first."
        ),
    ] = False,
) -> Mapping[str, Any]:
    """Download the checkpoints that a preset names; what is there already is left alone, and a
    repository stays at the commit that was got first.

    No other command downloads anything.
    """
    from focusdpo.flows.fit.supply import cache_room, downloads, require_room
    from focusdpo.store.provenance import notices

    if run.models is None or run.suite == "pocket":
        raise UserError(f"preset {run.preset}: the embedded suite; there is nothing to download")
    for line in notices(run.models):
        say(line)
    with working("asking for sizes"):
        wanted = downloads(run.models)
    for download in wanted:
        size = "its size is not known (not here, and the hub cannot be asked)"
        if download.size is not None:
            total, missing = download.size.total / 1e9, download.size.missing / 1e9
            size = f"{total:.2f} GB, {missing:.2f} of it to download"
        say(f"{download.field}: {download.name}: {size}")
    known = [download.size for download in wanted if download.size is not None]
    total, missing = sum(amount.total for amount in known), sum(amount.missing for amount in known)
    folder, free = cache_room()
    say(
        f"in all {total / 1e9:.2f} GB, {missing / 1e9:.2f} to download; {folder} has "
        f"{free / 1e9:.1f} GB free"
    )
    sizes = {
        download.field: None if download.size is None else asdict(download.size)
        for download in wanted
    }
    if plan:
        return {"command": "fetch", "plan": sizes, "bytes": total, "missing": missing}
    require_room(wanted)
    places = {
        download.field: str(
            fetch_source(download.name, download.field, download.patterns, update=update)
        )
        for download in wanted
    }
    return {"command": "fetch", "found": places, "bytes": total}
