"""`focusdpo dataset` and `focusdpo gc`: versions, what changed, and what is deleted."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from focusdpo.flows.commands.common import JSON, ROOT, finish, say
from focusdpo.flows.progress import working

app = typer.Typer(
    help="A dataset's versions: list them, compare two, delete subjects from all.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("versions")
def versions(root: ROOT, json: JSON = False) -> None:
    """List the versions, the newest last; each stays readable, and trainable with `train
    --version`."""
    from focusdpo.flows.build.changes import size, versions

    found = versions(root)
    for one in found:
        say(
            f"{one['id']}  {one['created']}  {one['pairs']:>7} pairs  {one['subjects']:>5} subjects"
            f"  {one['shards']:>5} shards  {size(one['bytes']):>10}"
            + ("  latest" if one["latest"] else "")
            + "".join(f"  purged {when}" for when in one["purged"])
        )
    if not found:
        say("no version yet; run `focusdpo build-dataset`")
    finish({"command": "dataset versions", "root": root, "versions": found}, json)


@app.command("diff")
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Id of a version, or latest.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Id of another, or latest.")],
    root: ROOT,
    json: JSON = False,
) -> None:
    """Tell what changed from version A to version B: subjects, pairs and why, yields, rejects,
    shards."""
    from focusdpo.flows.build import changes as dataset_texts

    with working("comparing"):
        told = dataset_texts.difference(root, a, b)
    for line in dataset_texts.lines(told):
        say(line)
    finish({"command": "dataset diff", "root": root, **dataset_texts.as_dict(told)}, json)


@app.command("purge")
def purge(
    names: Annotated[list[str], typer.Argument(metavar="SUBJECT...", help="Names of subjects.")],
    root: ROOT,
    json: JSON = False,
) -> None:
    """Delete subjects for good: their pictures and everything that shows them, from the registry,
    all versions, shards and artefacts.

    Stopped in the middle, the same command finishes it. Other pairs stay where they are.
    """
    run_purge(root, names, json)


def run_purge(root: str, names: list[str], as_json: bool) -> None:
    """purge, with what it did."""
    from focusdpo.pipeline.upkeep.purge import purge as delete
    from focusdpo.pipeline.upkeep.purge_plan import as_told
    from focusdpo.store.artefacts import Store

    with working(f"purging {', '.join(names)}"):
        told = as_told(delete(Store.open(root, create=False), names))
    say(
        f"purged {', '.join(told['subjects'])}: {told['artefacts']} artefacts, "
        f"{told['shards_removed']} shards removed and {told['shards_rewritten']} rewritten"
    )
    for name, lost in told["versions"].items():
        say(f"  version {name}: {lost['pairs']} pairs less")
    say(
        f"searched all files of {root}: none of their {told['pictures']} pictures is left. "
        "Adapters, reports and copies outside the root are yours to delete"
    )
    finish({"command": "dataset purge", "root": root, **told}, as_json)


def gc(
    root: ROOT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be removed, and remove nothing.")
    ] = False,
    keep_versions: Annotated[
        int | None,
        typer.Option("--keep-versions", min=1, help="Remove versions but the newest so many."),
    ] = None,
    min_age_hours: Annotated[
        float,
        typer.Option("--min-age-hours", min=0, help="Remove nothing that is younger."),
    ] = 24.0,
    json: JSON = False,
) -> None:
    """Remove artefacts and shards that no version and no registered subject refers to."""
    from focusdpo.pipeline.upkeep.garbage import collect
    from focusdpo.store.artefacts import Store

    store = Store.open(root, create=False)
    with working("looking for what nothing refers to"):
        garbage = collect(
            store, keep_versions=keep_versions, min_age=3600 * min_age_hours, dry_run=dry_run
        )
    told = garbage.as_dict()
    _show(told)
    finish({"command": "gc", "root": root, **told}, json)


def _show(told: dict[str, Any]) -> None:
    from focusdpo.flows.build.changes import size

    for name, count in told["versions"].items():
        say(f"version {name}: {size(count)}")
    for stage, one in told["artefacts"].items():
        say(f"{stage}: {one['artefacts']} artefacts, {size(one['bytes'])}")
    for what in ("shards", "others"):
        if told[what]["files"]:
            say(f"{what}: {told[what]['files']} files, {size(told[what]['bytes'])}")
    say(
        f"{'removed' if told['removed'] else 'would remove'} {size(told['bytes'])}"
        + (f"; {told['young']} files nobody refers to are too young" if told["young"] else "")
    )
