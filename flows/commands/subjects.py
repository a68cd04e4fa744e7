"""`focusdpo subjects`: who is in a root's next dataset version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from focusdpo.flows.commands.common import JSON, PRESET, ROOT, SET, finish, say, tree
from focusdpo.flows.progress import working

app = typer.Typer(
    help="Register, replace, remove and list the subjects of a dataset root. `build-dataset` "
    "without --subjects builds from them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

FOLDERS = Annotated[
    list[Path],
    typer.Argument(
        metavar="DIR...",
        help="A subject's folder of pictures (png, jpg, webp; alpha is the mask; an optional "
        "subject.yaml says class_name and licence), or a folder that holds such folders.",
    ),
]
NAMES = Annotated[list[str], typer.Argument(metavar="SUBJECT...", help="Names of subjects.")]


@app.command("add")
def add(
    folders: FOLDERS,
    root: ROOT,
    preset: PRESET = "pocket",
    set_: SET = [],  # noqa: B006 - typer copies it
    json: JSON = False,
) -> None:
    """Register new subjects: their pictures are checked and stored at once.

    All or none: nothing is registered when one cannot be used or is there already. The first time
    in a root that has a dataset, that dataset's subjects are taken over.
    """
    _change("add", folders, root, preset, set_, json)


@app.command("update")
def update(
    folders: FOLDERS,
    root: ROOT,
    preset: PRESET = "pocket",
    set_: SET = [],  # noqa: B006
    json: JSON = False,
) -> None:
    """Replace pictures, class and licence of registered subjects by what their folders say now.

    The next build computes just the partitions of those whose pictures or class have changed.
    """
    _change("update", folders, root, preset, set_, json)


def _change(
    verb: str, folders: list[Path], root: str, preset: str, set_: list[str], as_json: bool
) -> None:
    from focusdpo.flows.build import sources
    from focusdpo.flows.config import GenerateRun
    from focusdpo.flows.settings import resolve

    run = resolve(GenerateRun, tree(preset, set_))
    with working("reading pictures"):
        done = getattr(sources, verb)(run, root, folders)
    changed = done.changed
    if changed.adopted:
        say(f"the registry starts with the {changed.adopted} subjects of the newest version")
    for note in done.notes:
        say(f"note: {note}")
    for name in changed.changed:
        one = changed.registry.entries[name]
        say(
            f"{'added' if verb == 'add' else 'updated'} {name}: {one.class_name}, "
            f"{one.references} pictures, licence {one.licence or 'not told'}"
        )
    for name in changed.unchanged:
        say(f"unchanged {name}")
    say(f"{len(changed.registry.entries)} subjects in {root}")
    finish(
        {
            "command": f"subjects {verb}",
            "root": root,
            "changed": list(changed.changed),
            "unchanged": list(changed.unchanged),
            "adopted": changed.adopted,
            "subjects": len(changed.registry.entries),
            "notes": done.notes,
        },
        as_json,
    )


@app.command("remove")
def remove(
    names: NAMES,
    root: ROOT,
    purge: Annotated[
        bool,
        typer.Option(
            "--purge", help="Also delete every trace of them, as `focusdpo dataset purge` does."
        ),
    ] = False,
    json: JSON = False,
) -> None:
    """Take subjects out of the next version. No shard is rewritten, old versions stay as they are.

    With --purge their pictures, and everything that shows them, are deleted from all versions.
    """
    from focusdpo.flows.build import sources

    if purge:
        from focusdpo.flows.commands.dataset import run_purge

        run_purge(root, names, json)
        return
    changed = sources.remove(root, names)
    for name in changed.changed:
        say(f"removed {name}: the next build leaves its pairs out of the index")
    say(f"{len(changed.registry.entries)} subjects in {root}")
    finish(
        {
            "command": "subjects remove",
            "root": root,
            "changed": list(changed.changed),
            "subjects": len(changed.registry.entries),
        },
        json,
    )


@app.command("list")
def list_(root: ROOT, json: JSON = False) -> None:
    """Show the registered subjects: class, pictures, licence, and what the newest version has of
    each."""
    from focusdpo.flows.build.sources import listing

    found = listing(root)
    if found["registry"] is None:
        say("no subject is registered; these are the newest version's")
    _show(found["subjects"])
    if found["leaving"]:
        say(f"in the newest version, not in the next: {', '.join(found['leaving'])}")
    finish({"command": "subjects list", **found}, json)


def _show(subjects: list[dict[str, Any]]) -> None:
    if not subjects:
        return
    width = max(len("subject"), *(len(one["id"]) for one in subjects))
    kind = max(len("class"), *(len(one["class_name"]) for one in subjects))
    say(f"{'subject':<{width}}  {'class':<{kind}}  pictures  partitions  pairs  state    licence")
    for one in subjects:
        say(
            f"{one['id']:<{width}}  {one['class_name']:<{kind}}  {one['pictures']:>8}  "
            f"{one['partitions']:>10}  {one['pairs']:>5}  {one['state']:<7}  "
            f"{one['licence'] or 'not told'}"
        )
