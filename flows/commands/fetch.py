"""`focusdpo fetch`: the checkpoints of a preset into the hub's cache."""

from __future__ import annotations

from focusdpo.data_schemas.checkpoints import fetch as fetch_source
from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.commands.common import JSON, PRESET, SET, finish, say, tree
from focusdpo.flows.settings import resolve


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
    from focusdpo.flows.licences import notices

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
