"""Pairs made elsewhere -> a dataset version: the stages that judge ours run on them as well.

Each pair is a scene of its own; the scenes of one set of subjects are a partition. The winner
stands in the artefact of stage generate and the loser in that of disrupt, where it shares the
winner's places, or else beside it; what masks lack is found by stage segment; stage score measures
both. So report, studio, training, garbage collection and purge know these records as they know a
build's.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from focusdpo.data_schemas.candidates import Disrupted, Instance, Sampled, Scored
from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.pairs import Pair, Reject
from focusdpo.data_schemas.runs import Watch, quiet
from focusdpo.data_schemas.scenes import Scene, stable_id
from focusdpo.data_schemas.subjects import Subject
from focusdpo.flows.build.likeness import LEAKING, compare_pairs
from focusdpo.flows.config import ImportRun
from focusdpo.flows.wiring import Parts, resident_parts, vocabulary
from focusdpo.pipeline import score, segment
from focusdpo.pipeline.complexity import complexity_map, map_settings
from focusdpo.pipeline.shard import write_shards
from focusdpo.pipeline.stage import image_key, mask_image, member
from focusdpo.pipeline.subjects.cutouts import StoredMasks
from focusdpo.pipeline.upkeep.garbage import building
from focusdpo.sharing.pair_judging import (
    Judged,
    PlacedPair,
    are_told,
    candidates_of,
    told_instance,
)
from focusdpo.sharing.pair_pictures import PairPictures, read_pair
from focusdpo.sharing.pair_subjects import Gallery
from focusdpo.sharing.pair_tables import TableRow, read_pairs
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import content_key, digest
from focusdpo.store.manifests import PartitionRow, latest_id, read_manifest
from focusdpo.store.versions import DatasetVersion, latest_rows, publish

VERSION = 1
MARK = "imports"
"""The section of a version's settings that tells that it was imported."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import brought."""

    root: str
    version: str
    new: bool
    pairs: int
    subjects: int
    rejects: dict[str, int]
    """Reason -> pairs that were dropped."""
    notes: list[str]
    """Of pictures that are nearly one."""
    problems: list[str]
    """Rows that cannot be used, by file and line."""
    inverted: int
    """Pairs kept whose loser is more like the references than the winner, to the encoder."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"command": "import pairs", **asdict(self)}


def import_pairs(run: ImportRun, tables: Sequence[Path], watch: Watch = quiet) -> Imported:
    """Read tables of pairs and make them a version of `run.root`. UserError when no pair is usable,
    when the root's newest version was built and not imported, and with `strict` at the first row
    that cannot be used."""
    store = Store.open(run.root)
    _refuse_built(store)
    problems = _Problems(run.strict)
    rows: list[TableRow] = []
    for path in tables:
        table = read_pairs(path)
        rows += table.rows
        for line in table.problems:
            problems.add(line)
    with building(store):
        subjects, placed = _place(run, store, rows, problems)
        partitions: dict[str, list[PlacedPair]] = {}
        for placed_pair in placed:
            partitions.setdefault(placed_pair.scene.partition, []).append(placed_pair)
        work = _Work(run, store, resident_parts(run.family), subjects, problems)
        made = []
        for at, (name, members) in enumerate(sorted(partitions.items())):
            watch("import", at, len(partitions), {})
            if (made_partition := work.partition(name, members)) is not None:
                made.append(made_partition)
        watch("import", len(partitions), len(partitions), {})
        pairs = [pair for partition in made for pair in partition.pairs]
        rejects: Counter[str] = Counter()
        for partition in made:
            rejects.update(partition.row.rejects)
        if not pairs:
            reasons = [*problems.lines, *(f"{n} rejected: {why}" for why, n in rejects.items())]
            raise UserError(f"no pair can be used: {' | '.join(reasons[:5])}")
        version, notes = _publish(run, store, subjects, made, rejects)
    return Imported(
        root=run.root,
        version=version.id,
        new=version.new,
        pairs=len(version.rows),
        subjects=len({name for pair in pairs for name in pair.subject_ids}),
        rejects=dict(version.manifest["rejects"]),
        notes=notes,
        problems=problems.lines,
        inverted=sum(np.mean(pair.win_identity) < np.mean(pair.lose_identity) for pair in pairs),
    )


class _Problems:
    """Rows that are left out, told by file and line."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        if self._strict:
            raise UserError(line)
        log.warning("left out: %s", line)
        self.lines.append(line)


def _refuse_built(store: Store) -> None:
    latest = latest_id(store)
    if latest is not None and MARK not in read_manifest(store, latest)["config"]:
        raise UserError(
            f"{store.root}: its newest version was built from subjects, and an imported one would "
            "stand in its place; give a --root of its own"
        )


def _place(
    run: ImportRun, store: Store, rows: Sequence[TableRow], problems: _Problems
) -> tuple[dict[str, Subject], list[PlacedPair]]:
    """The subjects of all rows in the store, with every reference that any row shows of them, and
    the rows that can be used."""
    _, known = vocabulary(run.family)
    segmenter = resident_parts(run.family).segmenter
    find = None if run.suite == "pocket" else StoredMasks(store, segmenter)
    gallery = Gallery(run.ingest, known, find)
    shown: list[tuple[TableRow, list[tuple[str, int]]]] = []
    for row in rows:
        try:
            shown.append((row, gallery.take(row)))
        except UserError as error:
            problems.add(str(error))
    subjects = gallery.store(store, run.licence)
    placed: list[PlacedPair] = []
    first: dict[str, str] = {}
    for row, places in shown:
        ids = tuple(name for name, _ in places)
        references = tuple(subjects[name].references[at] for name, at in places)
        record = row.record
        pair_id = record.pair_id or stable_id(
            "pair", "import",
            *(digest(_bytes(row, picture)) for picture in (record.win, record.lose)),
            record.prompt, *ids,
        )  # fmt: skip
        if pair_id in first:
            problems.add(f"{row.where}: the same pair as in {first[pair_id]}")
            continue
        first[pair_id] = row.where
        scene = Scene(
            id=stable_id("scene", "import", pair_id),
            partition=stable_id("partition", *sorted(ids)),
            subject_ids=ids,
            class_names=tuple(subjects[name].class_name for name in ids),
            prompt=record.prompt,
            variant=0,
            seed=0,
        )
        placed.append(PlacedPair(row, pair_id, ids, references, scene))
    return subjects, placed


@dataclass(frozen=True)
class _Made:
    """What a partition came to."""

    row: PartitionRow
    artefacts: list[tuple[str, str]]
    pairs: list[Pair]
    rejects: list[Reject]


class _Work:
    """Partition after partition, each stored when it is made; what is there is not made again."""

    def __init__(
        self,
        run: ImportRun,
        store: Store,
        parts: Parts,
        subjects: Mapping[str, Subject],
        problems: _Problems,
    ) -> None:
        self._run, self._store, self._parts = run, store, parts
        self._subjects, self._problems = subjects, problems
        self._shape: tuple[int, ...] | None = None

    def partition(self, name: str, members: Sequence[PlacedPair]) -> _Made | None:
        """The pairs and rejects of a set of subjects; None when no row of it can be used."""
        pictures: dict[str, PairPictures] = {}
        for pair in members:
            try:
                pictures[pair.id] = self._read(pair.row)
            except UserError as error:
                self._problems.add(str(error))
        usable = [pair for pair in members if pair.id in pictures]
        if not usable:
            return None
        subjects = {name: self._subjects[name] for name in members[0].subjects}
        keys = self._keys(usable, pictures, subjects)
        if not self._store.has("pair", keys["pair"]):
            self._make(name, usable, pictures, subjects, keys)
        pairs = self._store.read("pair", keys["pair"], Pair)
        rejects = self._store.read("pair", keys["pair"], Reject, table="rejects")
        row = PartitionRow(
            partition=name,
            subject_ids=tuple(sorted(subjects)),
            key=keys["pair"],
            samples=MARK,
            pairs=len(pairs),
            rejects=dict(Counter(reject.reason for reject in rejects)),
        )
        return _Made(row, list(keys.items()), pairs, rejects)

    def _read(self, row: TableRow) -> PairPictures:
        pictures = read_pair(row, self._run.imports, self._run.ingest)
        shape = pictures.win.shape
        self._shape = self._shape or shape
        if shape != self._shape:
            raise UserError(
                f"{row.where}: {shape[1]} x {shape[0]} pixels, others {self._shape[1]} x "
                f"{self._shape[0]}; a dataset has one size: give --size"
            )
        return pictures

    def _keys(
        self,
        members: Sequence[PlacedPair],
        pictures: Mapping[str, PairPictures],
        subjects: Mapping[str, Subject],
    ) -> dict[str, str]:
        """Stage -> content key: all that the pixels and records of the partition depend on."""
        run, parts = self._run, self._parts
        inputs = [subject.digest for subject in subjects.values()]
        for pair in members:
            shown = pictures[pair.id]
            arrays = [shown.win, shown.lose, shown.prior, *shown.masks]
            looks = [b"" if a is None else digest(a.tobytes()).encode() for a in arrays]
            facts = [pair.id, pair.scene.prompt, pair.row.record.source, pair.row.record.mode]
            facts += [reference.image for reference in pair.references]
            inputs.append(digest(repr(facts).encode() + b"".join(looks)))
        models = "+".join(parts.fingerprint(role) for role in ("segmenter", "identity", "clip"))
        settings = {
            name: getattr(run, name).model_dump(mode="json")
            for name in ("imports", "segment", "score", "pair")
        }
        stages = ("compose", "generate", "disrupt", "segment", "score", "pair")
        return {
            stage: content_key(stage, f"import-{VERSION}", settings, models, inputs)
            for stage in stages
        }

    def _make(
        self,
        name: str,
        members: Sequence[PlacedPair],
        pictures: Mapping[str, PairPictures],
        subjects: Mapping[str, Subject],
        keys: Mapping[str, str],
    ) -> None:
        commit = partial(self._store.commit, partition=name, versions={"code": f"import {VERSION}"})
        prefix = {stage: f"{stage}/{key}" for stage, key in keys.items()}
        scenes = [pair.scene for pair in members]
        commit("compose", keys["compose"], scenes, Scene)
        candidates = [candidates_of(pair, pictures[pair.id], prefix) for pair in members]
        sampled = [side for sides in candidates for side in sides if isinstance(side, Sampled)]
        disrupted = [side for sides in candidates for side in sides if isinstance(side, Disrupted)]
        images: dict[str, dict[str, Any]] = {"generate": {}, "disrupt": {}}
        for pair, (_, lose) in zip(members, candidates, strict=True):
            shown = pictures[pair.id]
            images["generate"][member(f"{pair.id}-win")] = shown.win
            if isinstance(lose, Sampled):
                images["generate"][member(f"{pair.id}-lose")] = shown.lose
                continue
            prior = shown.prior if shown.prior is not None else np.ones(shown.win.shape[:2], bool)
            images["disrupt"] |= {
                member(f"{pair.id}-lose"): shown.lose,
                member(f"{pair.id}-prior"): mask_image(prior),
            }
        commit("generate", keys["generate"], sampled, Sampled, images=images["generate"])
        commit("disrupt", keys["disrupt"], disrupted, Disrupted, images=images["disrupt"])
        instances = self._instances(members, pictures, sampled, subjects, prefix["segment"], commit)
        scored = score.score(
            scenes, subjects, sampled, disrupted, instances, self._store.image,
            self._parts.identity, self._parts.clip, self._run.score,
        ).records  # fmt: skip
        commit("score", keys["score"], scored, Scored)
        gates = self._run.pair if self._run.imports.gates else None
        judged = Judged(gates, instances, scored)
        union: dict[str, Any] = {}
        made = [
            judged.judge(pair, sides, pictures[pair.id], self._store.mask, prefix["pair"], union)
            for pair, sides in zip(members, candidates, strict=True)
        ]
        commit(
            "pair",
            keys["pair"],
            [record for record in made if isinstance(record, Pair)],
            Pair,
            images=union,
            more={"rejects": (Reject, [record for record in made if isinstance(record, Reject)])},
        )

    def _instances(
        self,
        members: Sequence[PlacedPair],
        pictures: Mapping[str, PairPictures],
        sampled: Sequence[Sampled],
        subjects: Mapping[str, Subject],
        prefix: str,
        commit: Callable[..., Any],
    ) -> list[Instance]:
        """Told ones as they are; a candidate of which one is missing is looked at for all."""
        by_scene = {pair.scene.id: pair for pair in members}
        records: list[Instance] = []
        images: dict[str, Any] = {}
        unseen = [candidate for candidate in sampled if not are_told(candidate, by_scene, pictures)]
        if unseen:
            scenes = [
                by_scene[scene].scene for scene in {candidate.scene_id for candidate in unseen}
            ]
            looked = segment.segment(
                scenes, subjects, unseen, self._store.image, self._parts.segmenter,
                self._parts.identity, self._run.segment, prefix,
            )  # fmt: skip
            records += looked.records
            images |= looked.images
        places = {(record.candidate_id, record.subject_id): at for at, record in enumerate(records)}
        for candidate in sampled:
            pair = by_scene[candidate.scene_id]
            if candidate.index:
                continue  # masks are told of winners
            for place, mask in enumerate(pictures[pair.id].masks):
                if mask is None:
                    continue
                name = f"{candidate.id}-{place}"
                images[member(name)] = mask_image(mask)
                instance = told_instance(
                    candidate, pair.scene, place, mask, image_key(prefix, name)
                )
                at = places.get((candidate.id, instance.subject_id))
                if at is None:
                    records.append(instance)
                else:
                    records[at] = instance
        commit("segment", prefix.partition("/")[2], records, Instance, images=images)
        return records


def _publish(
    run: ImportRun,
    store: Store,
    subjects: Mapping[str, Subject],
    made: Sequence[_Made],
    rejects: Mapping[str, int],
) -> tuple[DatasetVersion, list[str]]:
    pairs = [pair for partition in made for pair in partition.pairs]
    alike = compare_pairs(store, run, pairs)
    pairs = [pair for pair in pairs if pair.id not in alike.leaking]
    shown = {name for pair in pairs for name in pair.subject_ids}
    with store.publishing():
        rows = write_shards(
            store,
            pairs,
            partial(complexity_map, config=run.complexity),
            run.shard,
            previous=latest_rows(store),
            complexity_config=map_settings(run.complexity),
        )
        version = publish(
            store,
            rows,
            subjects=[subjects[name] for name in sorted(shown)],
            artefacts=[item for partition in made for item in partition.artefacts],
            config=run.model_dump(mode="json"),
            rejects=Counter(rejects) + Counter([LEAKING] * len(alike.leaking)),
            partitions=[partition.row for partition in made],
        )
        return version, alike.notes


def _bytes(row: TableRow, name: str) -> bytes:
    try:
        return row.path(name).read_bytes()
    except OSError:
        return name.encode()  # told when the picture is read
