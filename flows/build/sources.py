"""Where a build's subjects come from, and how a root's registry is changed from folders."""

from __future__ import annotations

import logging
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.data_schemas.subjects import Subject
from focusdpo.flows.config import BuildRun, GenerateRun
from focusdpo.flows.wiring import resident_parts, vocabulary
from focusdpo.pipeline.subjects import registry
from focusdpo.pipeline.subjects.cutouts import StoredMasks
from focusdpo.pipeline.subjects.folders import known_classes, listed, subjects_within
from focusdpo.pipeline.subjects.ingest import STAGE, Ingested, Problem, ingest
from focusdpo.pipeline.subjects.registry import (
    Changed,
    Entry,
    Registry,
    read_registry,
    settings_digest,
)
from focusdpo.store.addresses import Unwritten
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import config_digest
from focusdpo.store.manifests import latest_id, partitions_of, read_manifest
from focusdpo.store.versions import open_version

log = logging.getLogger(__name__)


def find_subjects(run: BuildRun, store: Store) -> tuple[list[Subject], list[str]]:
    """The subjects of a build and what is wrong with those that were left out: of the folder that
    is given, of the root's registry, or individuals of the pocket world."""
    registry = None if run.subjects is not None else read_registry(store)
    if registry is not None:
        return registered_subjects(run, store, registry)
    with subject_folder(run, store) as folder:
        ingested = read_folder(run, store, folder, strict=run.strict)
    for line in notes_by_kind([problem for problem in ingested.problems if not problem.fatal]):
        log.warning("%s", line)
    return ingested.subjects, [
        f"{problem.subject}: {problem.message}" for problem in ingested.problems if problem.fatal
    ]


def notes_by_kind(problems: Sequence[Problem]) -> Iterator[str]:
    """A line for each kind of note, with the first subject's files. Notes are alike but for their
    numbers and what stands before the colon."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        files, colon, text = problem.message.partition(": ")
        kinds.setdefault(re.sub(r"\d+", "0", text if colon else files), []).append(problem)
    for first, *others in kinds.values():
        names = dict.fromkeys(other.subject for other in others if other.subject != first.subject)
        more = f" (also of {counted(len(names), 'other subject')}: {listed([*names])})"
        yield f"subject '{first.subject}': {first.message}{more if names else ''}"


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


def require_folder(subjects: str) -> Path:
    """The folder of subjects that a run names. UserError where there is none."""
    folder = Path(subjects)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; --subjects takes a folder that holds one folder of "
            "pictures per subject"
        )
    return folder


@contextmanager
def subject_folder(run: BuildRun, store: Store) -> Iterator[Path]:
    """Where the subjects lie: as given, or individuals of the pocket world below the root. Where
    nothing is written there, these lie in a folder that goes away."""
    if run.subjects is not None:
        yield require_folder(run.subjects)
        return
    from focusdpo.pocket.world.world_subjects import export

    if isinstance(store.files, Unwritten):
        with tempfile.TemporaryDirectory(prefix="focusdpo-world-") as temp:
            export(Path(temp), run.world)
            yield Path(temp)
        return
    # Below a local root; a remote one cannot hold a folder that is read picture by picture.
    name = config_digest(run.world)
    folder = (store.files.local or Path.home() / ".focusdpo" / "world" / name) / "subjects"
    export(folder, run.world)
    yield folder


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
            f"add --root {run.root} DIR`" + "".join(f" | {problem}" for problem in problems[:3])
        )
    return subjects, problems


def _check_settings(run: BuildRun, registry: Registry) -> None:
    wanted = settings_digest(run.ingest)
    other = [entry for entry in registry.entries.values() if entry.read_as != wanted]
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
            f"the generator does not know the class '{entry.class_name}'"
            f"{known_classes(entry.class_name, classes)}; update the subject with another "
            "class_name in its subject.yaml"
        )
    return None


@dataclass(frozen=True)
class Done:
    """What `subjects add` or `update` did."""

    changed: Changed
    notes: list[str]
    """What owners should know of their pictures."""


def add(run: GenerateRun, root: str, folders: Sequence[Path]) -> Done:
    """Read folders and register their subjects. UserError, and nothing is registered, when one
    cannot be used or is registered."""
    return _register(run, root, folders, registry.add, create=True)


def update(run: GenerateRun, root: str, folders: Sequence[Path]) -> Done:
    """Read folders anew and replace their subjects. UserError, and nothing is replaced, when one
    cannot be used or is not registered."""
    return _register(run, root, folders, registry.update, create=False)


def describe(run: GenerateRun, root: str, name: str, class_name: str, licence: str) -> Changed:
    """Another class or licence for a registered subject; its pictures are not read again. UserError
    for a class that the generator does not know, and for a subject that is not registered."""
    _, classes = vocabulary(run.family)
    if not class_name or (classes is not None and class_name not in classes):
        raise UserError(
            f"class_name '{class_name}': the generator does not know it"
            f"{known_classes(class_name, classes or ())}; `object` stands for anything"
        )
    return registry.describe(Store.open(root, create=False), name, class_name, licence)


def remove(root: str, names: Sequence[str]) -> Changed:
    """Take subjects out of the next version."""
    return registry.remove(Store.open(root, create=False), names)


def _register(
    run: GenerateRun, root: str, folders: Sequence[Path], change: Callable[..., Changed], *,
    create: bool,
) -> Done:  # fmt: skip
    by_parent = _subject_folders(folders)
    store = Store.open(root, create=create)
    subjects: list[Subject] = []
    fatal: list[str] = []
    notes: list[str] = []
    for parent, names in by_parent.items():
        ingested = read_folder(run, store, parent, only=names)
        subjects += ingested.subjects
        for problem in ingested.problems:
            (fatal if problem.fatal else notes).append(f"{problem.subject}: {problem.message}")
    if fatal:
        raise UserError(
            f"{len(fatal)} of {counted(len(fatal) + len(subjects), 'subject')} cannot be used, so "
            "none was registered: " + " | ".join(fatal)
        )
    return Done(change(store, subjects, run.ingest), notes)


def _subject_folders(folders: Sequence[Path]) -> dict[Path, set[str]]:
    """Parent folder -> names of the subjects' folders in it. A folder that holds pictures is a
    subject; one that holds folders, many."""
    chosen: list[Path] = []
    for folder in (path.expanduser().absolute() for path in folders):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give folders of pictures")
        chosen += subjects_within(folder)
    twice = [
        name for name, count in Counter(path.name for path in set(chosen)).items() if count > 1
    ]
    if twice:
        raise UserError(f"{' and '.join(sorted(twice))}: given twice; rename or leave one out")
    by_parent: dict[Path, set[str]] = {}
    for path in chosen:
        by_parent.setdefault(path.parent, set()).add(path.name)
    return by_parent


def listing(root: str) -> dict[str, Any]:
    """The registered subjects (or, in a root without a registry, those of the newest version) with
    what the newest version has of each."""
    store = Store.open(root, create=False)
    state = registry.read_registry(store)
    latest = latest_id(store)
    manifest = None if latest is None else read_manifest(store, latest)
    if state is not None:
        known = [asdict(entry) for entry in state.entries.values()]
    else:
        known = [] if manifest is None else [dict(subject) for subject in manifest["subjects"]]
    partitions, pairs = _counts(store, latest)
    built = (
        {}
        if manifest is None
        else {subject["id"]: subject["digest"] for subject in manifest["subjects"]}
    )
    return {
        "root": root,
        "registry": None if state is None else state.number,
        "version": latest,
        "subjects": [
            {
                "id": subject["id"],
                "class_name": subject["class_name"],
                "pictures": subject["references"],
                "licence": subject["licence"],
                "partitions": partitions[subject["id"]],
                "pairs": pairs[subject["id"]],
                "state": _state(subject, built),
            }
            for subject in known
        ],
        "leaving": sorted(built.keys() - {subject["id"] for subject in known}),
    }


def _state(subject: Mapping[str, Any], built: Mapping[str, str]) -> str:
    if subject["id"] not in built:
        return "new"
    return "built" if built[subject["id"]] == subject["digest"] else "changed"


def _counts(store: Store, latest: str | None) -> tuple[Counter[str], Counter[str]]:
    """Subject -> partitions and pairs in a version."""
    partitions: Counter[str] = Counter()
    pairs: Counter[str] = Counter()
    if latest is None:
        return partitions, pairs
    rows = partitions_of(store, latest)
    for row in rows:
        partitions.update(row.subject_ids)
        pairs.update(dict.fromkeys(row.subject_ids, row.pairs))
    if not rows:  # a version from before partitions were recorded: those with pairs
        seen = {}
        for index_row in open_version(store, latest).rows:
            seen[index_row.partition] = index_row.subject_ids
            pairs.update(index_row.subject_ids)
        for members in seen.values():
            partitions.update(members)
    return partitions, pairs
