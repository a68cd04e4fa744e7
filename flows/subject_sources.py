"""Where a build's subjects come from: a folder, the root's own registry, or the pocket world."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.subjects import Subject
from focusdpo.flows.config import BuildRun, GenerateRun
from focusdpo.flows.wiring import resident_parts, vocabulary
from focusdpo.pipeline.ingest import STAGE, Ingested, ingest
from focusdpo.pipeline.keys import config_digest
from focusdpo.pipeline.photo_masks import StoredMasks
from focusdpo.pipeline.registry import Entry, Registry, read_registry, settings_digest
from focusdpo.pipeline.store import Store


def find_subjects(run: BuildRun, store: Store) -> tuple[list[Subject], list[str]]:
    """The subjects of a build and what is wrong with those that were left out: of the folder that
    is given, of the root's registry, or individuals of the pocket world."""
    registry = None if run.subjects is not None else read_registry(store)
    if registry is not None:
        return registered_subjects(run, store, registry)
    found = read_folder(run, store, subject_folder(run, store), strict=run.strict)
    return found.subjects, [f"{one.subject}: {one.message}" for one in found.problems if one.fatal]


def read_folder(
    run: BuildRun | GenerateRun,
    store: Store,
    folder: Path,
    *,
    strict: bool = False,
    only: Collection[str] | None = None,
) -> Ingested:
    """Read subjects' pictures into the store, with the words and the segmenter of the suite."""
    _, classes = vocabulary(run.family)
    parts = resident_parts(run.family)
    return ingest(
        folder,
        store,
        run.ingest,
        known_classes=classes,
        find=None if run.suite == "pocket" else StoredMasks(store, parts.segmenter),
        strict=strict,
        only=only,
    )


def subject_folder(run: BuildRun, store: Store) -> Path:
    """Where the subjects lie: as given, or individuals of the pocket world below the root."""
    if run.subjects is not None:
        folder = Path(run.subjects)
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder; --subjects takes a folder that holds one folder of "
                "pictures per subject"
            )
        return folder
    from focusdpo.flows.world_subjects import export

    # Below a local root; a remote one cannot hold a folder that is read picture by picture.
    name = config_digest(run.world)
    folder = (store.files.local or Path.home() / ".focusdpo" / "world" / name) / "subjects"
    export(folder, run.world)
    return folder


def registered_subjects(
    run: BuildRun, store: Store, registry: Registry
) -> tuple[list[Subject], list[str]]:
    """The registry's subjects, and what is wrong with those that cannot be used.

    UserError when none can, or when pictures were read with other settings than the run's.
    """
    _check_settings(run, registry)
    _, classes = vocabulary(run.family)
    there = set(store.keys(STAGE))
    subjects, problems = [], []
    for entry in registry.entries.values():
        wrong = _unusable(entry, there, classes, run.root)
        if wrong is None:
            subjects.append(entry.subject())
        elif run.strict:
            raise UserError(wrong)
        else:
            problems.append(f"{entry.id}: {wrong}")
    if not subjects:
        raise UserError(
            f"{run.root}: its registry has no usable subject; bring one with `focusdpo subjects "
            f"add --root {run.root} DIR`" + "".join(f" | {one}" for one in problems[:3])
        )
    return subjects, problems


def _check_settings(run: BuildRun, registry: Registry) -> None:
    wanted = settings_digest(run.ingest)
    other = [one for one in registry.entries.values() if one.read_as != wanted]
    if not other:
        return
    now = run.ingest.model_dump(mode="json")
    then = registry.settings.get(other[0].read_as, {})
    changed = [
        f"{name} {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]
    ]
    raise UserError(
        f"{run.root}: {len(other)} registered subjects, as '{other[0].id}', were read with other "
        f"settings (ingest: {', '.join(changed) or 'another version of the code'}); read their "
        f"pictures again with `focusdpo subjects update --root {run.root} DIR...` and the same "
        "--set, or leave the setting as it was"
    )


def _unusable(
    entry: Entry, there: Collection[str], classes: Collection[str] | None, root: str
) -> str | None:
    if entry.artefact not in there:
        return (
            f"its pictures are gone from the store; bring them with `focusdpo subjects update "
            f"--root {root} DIR`"
        )
    if classes is not None and entry.class_name not in classes:
        return (
            f"the generator does not know the class '{entry.class_name}'; update the subject with "
            "another class_name in its subject.yaml"
        )
    return None
