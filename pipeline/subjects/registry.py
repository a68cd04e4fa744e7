"""A root's own registry of subjects: who is in the next dataset version.

registry/<number>.json     one state of the registry each; the highest number counts

A state is written once and whole, and only if its number is free: of two writers one is told that
the other was first, looks at what that one wrote and tries the next number. The pictures lie in the
store (stage subjects), so a build reads no folder.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.subjects import Reference, Subject
from focusdpo.pipeline.subjects import ingest
from focusdpo.pipeline.subjects.folders import NAME, plain_name
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import KEY, config_digest, image_key, sealed, unsealed
from focusdpo.store.manifests import latest_id, read_manifest

FOLDER = "registry"
NUMBER = re.compile(r"(\d{6,})\.json")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A registered subject."""

    id: str
    class_name: str
    licence: str
    digest: str
    artefact: str
    """Key of the artefact that holds its pictures."""
    references: int
    """How many pictures."""
    read_as: str
    """Digest of the settings with which they were read."""
    added: str
    changed: str
    """Times in UTC, ISO 8601."""

    def subject(self) -> Subject:
        """The record that a build works with."""
        return Subject(
            id=self.id,
            class_name=self.class_name,
            licence=self.licence,
            digest=self.digest,
            references=tuple(
                Reference(
                    image=image_key(ingest.STAGE, self.artefact, f"ref{i}.png"),
                    mask=image_key(ingest.STAGE, self.artefact, f"refmask{i}.png"),
                )
                for i in range(self.references)
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """One state of the registry."""

    number: int
    when: str
    change: str
    """What made this state of the one before."""
    entries: Mapping[str, Entry]
    settings: Mapping[str, Mapping[str, Any]]
    """Settings with which pictures were read, by their digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What a change did."""

    registry: Registry
    adopted: int = 0
    """Subjects of the latest version that the first change took over."""
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()


def read_registry(store: Store) -> Registry | None:
    """The registry as it is now; None when the root has none. UserError when it is damaged."""
    numbers = state_numbers(store)
    # A state may have been cleared away between the listing and this, but never the highest.
    return _read_state(store, numbers[-1]) if numbers else None


def state_numbers(store: Store) -> list[int]:
    """The states that are kept, ascending."""
    matches = (NUMBER.fullmatch(name) for name in store.files.names(FOLDER))
    return sorted(int(match[1]) for match in matches if match)


def state_path(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"


def settings_digest(config: ingest.IngestConfig) -> str:
    """Digest of how pictures are read."""
    return config_digest({"version": ingest.VERSION, **config.model_dump(mode="json")})


def add(
    store: Store, subjects: Sequence[Subject], config: ingest.IngestConfig, now: str | None = None
) -> Changed:
    """Register subjects whose pictures are in the store. The first time in a root that has a
    dataset version, that version's subjects are taken over.

    UserError, and nothing is changed, when one is there or another holds the same pictures.
    """

    def edit(before: Mapping[str, Entry]) -> tuple[dict[str, Entry], tuple[str, ...]]:
        entries = dict(before)
        for subject in subjects:
            _refuse_double(subject, entries)
            entries[subject.id] = _entry(subject, config, now or _now())
        return entries, tuple(subject.id for subject in subjects)

    return _change(store, "added", edit, config)


def update(
    store: Store, subjects: Sequence[Subject], config: ingest.IngestConfig, now: str | None = None
) -> Changed:
    """Replace pictures, class and licence of registered subjects. UserError, and nothing is
    changed, when one is not there."""

    def edit(before: Mapping[str, Entry]) -> tuple[dict[str, Entry], tuple[str, ...]]:
        entries, changed = dict(before), []
        for subject in subjects:
            old = _registered(subject.id, entries, "focusdpo subjects add")
            new = _entry(subject, config, now or _now())
            new = dataclasses.replace(new, added=old.added)
            if dataclasses.replace(new, changed=old.changed) != old:
                others = {name: entry for name, entry in entries.items() if name != subject.id}
                _refuse_double(subject, others)
                entries[subject.id] = new
                changed.append(subject.id)
        return entries, tuple(changed)

    made = _change(store, "updated", edit, config)
    same = tuple(subject.id for subject in subjects if subject.id not in made.changed)
    return dataclasses.replace(made, unchanged=same)


def describe(
    store: Store, name: str, class_name: str, licence: str, now: str | None = None
) -> Changed:
    """Another class or licence for a registered subject; its pictures and what is told of their
    origin stay. UserError, and nothing is changed, when it is not there."""

    def edit(before: Mapping[str, Entry]) -> tuple[dict[str, Entry], tuple[str, ...]]:
        entries = dict(before)
        old = _registered(name, entries, "focusdpo subjects add")
        if (old.class_name, old.licence) == (class_name, licence):
            return entries, ()
        pictures = [
            (store.image(reference.image), store.mask(reference.mask))
            for reference in old.subject().references
        ]
        subject = ingest.put_subject(
            store, id=name, class_name=class_name, pictures=pictures, licence=licence,
            origin=ingest.origin_of(store, old.artefact),
        )  # fmt: skip
        del entries[name]
        _refuse_double(subject, entries)
        entries[name] = dataclasses.replace(
            old,
            class_name=class_name,
            licence=licence,
            digest=subject.digest,
            artefact=_artefact_of(subject),
            changed=now or _now(),
        )
        return entries, (name,)

    return _change(store, "described", edit, None)


def remove(store: Store, names: Iterable[str], told: str | None = None) -> Changed:
    """Take subjects out of the next version; their artefacts and old versions stay. `told`: what
    the registry notes instead of their names. UserError, and nothing is changed, when one is not
    there."""
    wanted = list(dict.fromkeys(names))

    def edit(before: Mapping[str, Entry]) -> tuple[dict[str, Entry], tuple[str, ...]]:
        entries = dict(before)
        for name in wanted:
            _registered(name, before, None)
            del entries[name]
        return entries, tuple(wanted)

    return _change(store, "removed", edit, None, told)


def _change(
    store: Store,
    verb: str,
    edit: Callable[[Mapping[str, Entry]], tuple[dict[str, Entry], tuple[str, ...]]],
    config: ingest.IngestConfig | None,
    told: str | None = None,
) -> Changed:
    """Write the next state; again on top of another writer's when that one was first."""
    while True:
        before = read_registry(store)
        adopted = 0
        if before is None:
            before = _first(store)
            adopted = len(before.entries)
        entries, changed = edit(before.entries)
        if not changed:
            return Changed(registry=before, adopted=adopted)
        settings = dict(before.settings)
        if config is not None:
            settings[settings_digest(config)] = config.model_dump(mode="json")
        used = {entry.read_as for entry in entries.values()}
        after = Registry(
            number=before.number + 1,
            when=_now(),
            change=told or f"{verb} {', '.join(changed)}",
            entries=dict(sorted(entries.items())),
            settings={name: values for name, values in sorted(settings.items()) if name in used},
        )
        if store.files.write(state_path(after.number), _as_bytes(after), replace=False):
            log.info("%s: registry %d: %s", store.root, after.number, after.change)
            return Changed(registry=after, adopted=adopted, changed=changed)
        log.info("%s: another writer changed the registry first; once more", store.root)


def _first(store: Store) -> Registry:
    """What a registry starts with: the latest version's subjects, or nothing."""
    latest = latest_id(store)
    nothing = Registry(number=0, when=_now(), change="", entries={}, settings={})
    if latest is None:
        return nothing
    manifest = read_manifest(store, latest)
    read = manifest["config"].get("ingest", {})
    config = ingest.IngestConfig.model_validate(
        {name: read[name] for name in ingest.IngestConfig.model_fields if name in read}
    )
    read_as = settings_digest(config)
    entries = {
        subject["id"]: Entry(
            **{
                name: subject[name]
                for name in ("id", "class_name", "licence", "digest", "artefact")
            },
            references=subject["references"],
            read_as=read_as,
            added=manifest["created"],
            changed=manifest["created"],
        )
        for subject in manifest["subjects"]
    }
    settings = {read_as: config.model_dump(mode="json")}
    return dataclasses.replace(nothing, entries=entries, settings=settings)


def _entry(subject: Subject, config: ingest.IngestConfig, now: str) -> Entry:
    return Entry(
        id=subject.id,
        class_name=subject.class_name,
        licence=subject.licence,
        digest=subject.digest,
        artefact=_artefact_of(subject),
        references=len(subject.references),
        read_as=settings_digest(config),
        added=now,
        changed=now,
    )


def _artefact_of(subject: Subject) -> str:
    return subject.references[0].image.split("/")[1]


def _refuse_double(subject: Subject, entries: Mapping[str, Entry]) -> None:
    if subject.id in entries:
        raise UserError(
            f"subject '{subject.id}' is registered already; replace it with `focusdpo subjects "
            "update`, or rename the folder if it is another one"
        )
    plain = plain_name(subject.id)
    for other in entries.values():
        if plain_name(other.id) == plain:
            raise UserError(
                f"subjects '{subject.id}' and '{other.id}' (registered) have the same name but "
                "for case and separators; rename the new one"
            )
        if other.digest == subject.digest:
            raise UserError(
                f"subject '{subject.id}' has the same pictures and class as '{other.id}', which "
                f"is registered; leave it out, or remove '{other.id}' first"
            )


def _registered(name: str, entries: Mapping[str, Entry], instead: str | None) -> Entry:
    if name not in entries:
        near = difflib.get_close_matches(name, sorted(entries), n=3, cutoff=0.5)
        close = f" (near: {', '.join(near)})" if near else ""
        advice = f"; new ones come with `{instead}`" if instead else ""
        raise UserError(f"subject '{name}' is not registered{close}{advice}")
    return entries[name]


def _as_bytes(registry: Registry) -> bytes:
    values = dataclasses.asdict(registry)
    values["entries"] = list(values["entries"].values())
    return sealed(values)


def _read_state(store: Store, number: int) -> Registry:
    path = state_path(number)
    try:
        values = unsealed(store.files.read(path))
        entries = {fields["id"]: Entry(**fields) for fields in values.pop("entries")}
        for entry in entries.values():
            if not KEY.fullmatch(entry.artefact) or not NAME.fullmatch(entry.id):
                raise ValueError(f"no subject can be called {entry.id[:80]!r}")
        return Registry(**values, entries=entries)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        earlier = [state_number for state_number in state_numbers(store) if state_number < number]
        advice = f"; remove it to fall back to state {earlier[-1]}" if earlier else ""
        raise UserError(f"{store.root}/{path}: damaged ({error}){advice}") from error


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
