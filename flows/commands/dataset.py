"""A root's subjects and versions: subjects, dataset, gc."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from focusdpo.data_schemas.errors import counted
from focusdpo.flows.commands.options import ROOT, Incomplete, say
from focusdpo.flows.config import GenerateRun, ImportRun
from focusdpo.flows.console import Bars, working

FOLDERS = Annotated[
    list[Path],
    typer.Argument(
        metavar="DIR...",
        help="A subject's folder of pictures (png, jpg, webp; alpha is the mask; an optional "
        "subject.yaml says class_name, licence, source, person, consent), or a folder that holds "
        "such folders.",
    ),
]
NAMES = Annotated[list[str], typer.Argument(metavar="SUBJECT...", help="Names of subjects.")]


def versions(root: ROOT) -> Mapping[str, Any]:
    """List the versions, the newest last; each stays readable, and trainable with `train
    --version`."""
    from focusdpo.flows.build.changes import size, versions

    rows = versions(root)
    for row in rows:
        say(
            f"{row['id']}  {row['created'][:16]}  {counted(row['pairs'], 'pair'):>13}"
            f"  {counted(row['subjects'], 'subject'):>14}  {counted(row['shards'], 'shard'):>12}"
            f"  {size(row['bytes']):>10}"
            + ("  latest" if row["latest"] else "")
            + "".join(f"  purged {when}" for when in row["purged"])
        )
    if not rows:
        say("no version yet; run `focusdpo build-dataset`")
    return {"command": "dataset versions", "root": root, "versions": rows}


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Id of a version, or latest.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Id of another, or latest.")],
    root: ROOT,
) -> Mapping[str, Any]:
    """Tell what changed from version A to version B: subjects, pairs and why, yields, rejects,
    shards."""
    from focusdpo.flows.build import changes as dataset_texts

    with working("comparing"):
        difference = dataset_texts.difference(root, a, b)
    for line in dataset_texts.lines(difference):
        say(line)
    return {"command": "dataset diff", "root": root, **dataset_texts.as_dict(difference)}


def purge(names: NAMES, root: ROOT) -> Mapping[str, Any]:
    """Delete subjects for good: their pictures and everything that shows them, from the registry,
    all versions, shards and artefacts.

    Stopped in the middle, the same command finishes it. Other pairs stay where they are.
    """
    from focusdpo.pipeline.upkeep.purge import purge as delete
    from focusdpo.pipeline.upkeep.purge_plan import as_told
    from focusdpo.store.artefacts import Store

    with working(f"purging {', '.join(names)}"):
        summary = as_told(delete(Store.open(root, create=False), names))
    say(
        f"purged {', '.join(summary['subjects'])}: {counted(summary['artefacts'], 'artefact')}, "
        f"{counted(summary['shards_removed'], 'shard')} removed, "
        f"{summary['shards_rewritten']} rewritten"
    )
    for name, lost in summary["versions"].items():
        say(f"  version {name}: {counted(lost['pairs'], 'pair')} less")
    say(
        f"searched all files of {root}: none of their {counted(summary['pictures'], 'picture')} is "
        "left. "
        "Adapters, reports and copies outside the root are yours to delete"
    )
    return {"command": "dataset purge", "root": root, **summary}


TABLES = Annotated[
    list[Path],
    typer.Argument(
        metavar="TABLE...",
        help="A table of pairs (csv, jsonl, parquet), or a folder in the layout of `export pairs`, "
        "Flow-Factory, SimpleTuner or VeRL-Omni.",
    ),
]


def import_pairs(
    run: ImportRun,
    tables: TABLES,
    size: Annotated[
        int | None,
        typer.Option(
            "--size", min=8, max=4096, help="Scale and crop pictures to this side, in pixels."
        ),
    ] = None,
) -> Mapping[str, Any]:
    """Make preference pairs from elsewhere a dataset version: what masks lack is found, where
    winner and loser differ is measured, both are scored.

    Rows that cannot be used are told by file and line and left out; the exit code is 3 then.
    """
    from focusdpo.flows.imports.run import import_pairs

    if size is not None:
        imports = run.imports.model_copy(update={"size": size})
        run = run.model_copy(update={"imports": imports})
    with Bars() as watch:
        result = import_pairs(run, tables, watch)
    for line in result.problems:
        say(f"left out: {line}")
    for reason, count in result.rejects.items():
        say(f"rejected: {reason}, {counted(count, 'pair')}")
    for line in result.notes:
        say(f"note: {line}")
    if result.inverted:
        say(
            f"{counted(result.inverted, 'pair')} in which the loser is more like the references "
            "than the winner, as the identity encoder sees it"
        )
    say(
        f"dataset {result.version}: {counted(result.pairs, 'pair')} of "
        f"{counted(result.subjects, 'subject')} in {result.root}"
    )
    return Incomplete(result.as_dict()) if result.problems else result.as_dict()


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
) -> Mapping[str, Any]:
    """Remove artefacts and shards that no version and no registered subject refers to."""
    from focusdpo.pipeline.upkeep.garbage import collect
    from focusdpo.store.artefacts import Store

    store = Store.open(root, create=False)
    with working("looking for what nothing refers to"):
        garbage = collect(
            store, keep_versions=keep_versions, min_age=3600 * min_age_hours, dry_run=dry_run
        )
    summary = garbage.as_dict()
    _show_garbage(summary)
    return {"command": "gc", "root": root, **summary}


def _show_garbage(summary: dict[str, Any]) -> None:
    from focusdpo.flows.build.changes import size

    for name, count in summary["versions"].items():
        say(f"version {name}: {size(count)}")
    for stage, artefact in summary["artefacts"].items():
        say(f"{stage}: {counted(artefact['artefacts'], 'artefact')}, {size(artefact['bytes'])}")
    for what in ("shards", "others"):
        if summary[what]["files"]:
            say(
                f"{what}: {counted(summary[what]['files'], 'file')}, {size(summary[what]['bytes'])}"
            )
    say(
        f"{'removed' if summary['removed'] else 'would remove'} {size(summary['bytes'])}"
        + (f"; too young to be: {counted(summary['young'], 'file')}" if summary["young"] else "")
    )


def add(run: GenerateRun, folders: FOLDERS, root: ROOT) -> Mapping[str, Any]:
    """Register new subjects: their pictures are checked and stored at once.

    All or none: nothing is registered when one cannot be used or is there already. The first time
    in a root that has a dataset, that dataset's subjects are taken over.
    """
    return _change("add", run, folders, root)


def update(run: GenerateRun, folders: FOLDERS, root: ROOT) -> Mapping[str, Any]:
    """Replace pictures, class and licence of registered subjects by what their folders say now.

    The next build computes just the partitions of those whose pictures or class have changed.
    """
    return _change("update", run, folders, root)


def _change(verb: str, run: GenerateRun, folders: list[Path], root: str) -> dict[str, Any]:
    from focusdpo.flows.build import sources

    with working("reading pictures"):
        done = getattr(sources, verb)(run, root, folders)
    changed = done.changed
    if changed.adopted:
        say(
            f"the registry starts with what the newest version has: "
            f"{counted(changed.adopted, 'subject')}"
        )
    for note in done.notes:
        say(f"note: {note}")
    for name in changed.changed:
        entry = changed.registry.entries[name]
        say(
            f"{'added' if verb == 'add' else 'updated'} {name}: {entry.class_name}, "
            f"{counted(entry.references, 'picture')}, licence {entry.licence or 'not told'}"
        )
    for name in changed.unchanged:
        say(f"unchanged {name}")
    say(f"{counted(len(changed.registry.entries), 'subject')} in {root}")
    return {
        "command": f"subjects {verb}",
        "root": root,
        "changed": list(changed.changed),
        "unchanged": list(changed.unchanged),
        "adopted": changed.adopted,
        "subjects": len(changed.registry.entries),
        "notes": done.notes,
    }


def remove(
    names: NAMES,
    root: ROOT,
    traces: Annotated[
        bool,
        typer.Option(
            "--purge", help="Also delete every trace of them, as `focusdpo dataset purge` does."
        ),
    ] = False,
) -> Mapping[str, Any]:
    """Take subjects out of the next version. No shard is rewritten, old versions stay as they are.

    With --purge their pictures, and everything that shows them, are deleted from all versions.
    """
    from focusdpo.flows.build import sources

    if traces:
        return purge(names, root)
    changed = sources.remove(root, names)
    for name in changed.changed:
        say(f"removed {name}: the next build leaves its pairs out of the index")
    say(f"{counted(len(changed.registry.entries), 'subject')} in {root}")
    return {
        "command": "subjects remove",
        "root": root,
        "changed": list(changed.changed),
        "subjects": len(changed.registry.entries),
    }


def list_subjects(root: ROOT) -> Mapping[str, Any]:
    """Show the registered subjects: class, pictures, licence, and what the newest version has of
    each."""
    from focusdpo.flows.build.sources import listing

    listed = listing(root)
    if listed["registry"] is None:
        say("no subject is registered; these are the newest version's")
    _show_subjects(listed["subjects"])
    if listed["leaving"]:
        say(f"in the newest version, not in the next: {', '.join(listed['leaving'])}")
    return {"command": "subjects list", **listed}


def _show_subjects(subjects: list[dict[str, Any]]) -> None:
    if not subjects:
        return
    width = max(len("subject"), *(len(subject["id"]) for subject in subjects))
    kind = max(len("class"), *(len(subject["class_name"]) for subject in subjects))
    say(f"{'subject':<{width}}  {'class':<{kind}}  pictures  partitions  pairs  state    licence")
    for subject in subjects:
        say(
            f"{subject['id']:<{width}}  {subject['class_name']:<{kind}}  {subject['pictures']:>8}  "
            f"{subject['partitions']:>10}  {subject['pairs']:>5}  {subject['state']:<7}  "
            f"{subject['licence'] or 'not told'}"
        )
