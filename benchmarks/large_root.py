"""A made-up root of many pairs: real shards, index, lineage, records and pictures."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.candidates import Described, Disrupted, Instance, Sampled, Scored
from focusdpo.data_schemas.pairs import Pair, Reason, Reject
from focusdpo.data_schemas.runs import SCHEMA_VERSION, Artefact
from focusdpo.data_schemas.scenes import Scene, stable_id
from focusdpo.data_schemas.shards import (
    SAMPLE_VERSION,
    IndexRow,
    SampleImages,
    encode,
    pair_digest,
)
from focusdpo.data_schemas.subjects import Subject
from focusdpo.data_schemas.tables import to_parquet
from focusdpo.pipeline.pairing.gates import PairConfig
from focusdpo.pipeline.subjects.ingest import put_subject
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import content_key, digest, image_key
from focusdpo.store.manifests import LINEAGE, PARTITIONS, PartitionRow
from focusdpo.store.samples import FOLDER, Place, write_samples
from focusdpo.store.versions import pair_counts

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """A winner, its loser and the mask, as arrays and as the fields of a sample."""

    win: Image
    lose: Image
    mask: NDArray[np.bool_]


def commit_partition(
    store: Store,
    scene: Scene,
    pairs: Sequence[Pair],
    rejects: Sequence[Reject],
    shown: Sequence[Look],
    keys: Mapping[str, str],
) -> None:
    """Store every stage's artefact; `shown` has a look per pair, `keys` a key per stage."""
    sampled = [
        Sampled(id=pair.win_id, scene_id=scene.id, index=at, seed=at, image=pair.win_image)
        for at, pair in enumerate(pairs)
    ]
    instances = [
        _instance(pair, r, look.mask)
        for pair, look in zip(pairs, shown, strict=True)
        for r in range(len(pair.masks))
    ]
    described = [
        Described(instance=instance, caption=instance.class_name) for instance in instances
    ]
    disrupted = [_disrupted(pair) for pair in pairs]
    scored = [_scored(pair, won) for pair in pairs for won in (True, False)]
    wins, masks, loses = _pictures(pairs, shown)
    put = partial(store.commit, partition=scene.partition, versions={"code": "1"})
    put("compose", keys["compose"], [scene], Scene)
    put("generate", keys["generate"], sampled, Sampled, images=wins)
    put("segment", keys["segment"], instances, Instance, images=masks)
    put("describe", keys["describe"], described, Described)
    put("disrupt", keys["disrupt"], disrupted, Disrupted, images=loses)
    put("score", keys["score"], scored, Scored)
    put("pair", keys["pair"], pairs, Pair, more={"rejects": (Reject, rejects)})


def _pictures(pairs: Sequence[Pair], shown: Sequence[Look]) -> tuple[dict[str, Any], ...]:
    """Members of the artefacts generate, segment and disrupt, as the pairs name them."""
    wins: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    loses: dict[str, Any] = {}
    for pair, look in zip(pairs, shown, strict=True):
        assert pair.prior is not None
        wins[_member(pair.win_image)] = look.win
        masks |= {_member(key): look.mask for key in pair.masks}
        loses[_member(pair.lose_image)] = look.lose
        loses[_member(pair.prior)] = look.mask
    return wins, masks, loses


def _member(key: str) -> str:
    return key.rpartition("/")[2]


def _instance(pair: Pair, r: int, mask: NDArray[np.bool_]) -> Instance:
    ys, xs = np.nonzero(mask)
    return Instance(
        candidate_id=pair.win_id,
        scene_id=pair.scene_id,
        subject_id=pair.subject_ids[r],
        class_name=pair.class_names[r],
        found="one",
        box=(int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1),
        mask=pair.masks[r],
        confidence=0.9,
        extra=0,
    )


def _disrupted(pair: Pair) -> Disrupted:
    assert pair.prior is not None
    return Disrupted(
        id=pair.lose_id,
        scene_id=pair.scene_id,
        parent_id=pair.win_id,
        mode="all",
        subject_ids=pair.subject_ids,
        seed=0,
        image=pair.lose_image,
        prior=pair.prior,
    )


def _scored(pair: Pair, won: bool) -> Scored:
    identity = pair.win_identity if won else pair.lose_identity
    num = len(identity)
    return Scored(
        candidate_id=pair.win_id if won else pair.lose_id,
        scene_id=pair.scene_id,
        kind="sampled" if won else "disrupted",
        similarity=tuple(
            tuple(identity[i] if i == j else 0.1 for j in range(num)) for i in range(num)
        ),
        identity=identity,
        leakage_margin=identity,
        clip_i=identity,
        clip_t=pair.win_clip_t,
        background=0.0,
        complete=True,
    )


SIDE = 64
LOOKS = 24
"""Different pictures."""
EACH = 4
"""Pairs of a partition."""
PER_SHARD = 2000
CLASSES = tuple(f"thing{at:02d}" for at in range(40))
PLACES = ("snow", "grass", "water", "bricks", "wood", "asphalt")
REASONS: tuple[Reason, ...] = ("weak_winner", "missing_subject", "small_margin", "surplus")
STAGES = ("compose", "generate", "segment", "describe", "disrupt", "score", "pair")
STORED = 200
"""Partitions whose artefacts are really there: the first by name, as pages list them."""


def make_root(store: Store, pairs: int, subjects: int) -> str:
    """A version of so many pairs, the newest of the root; its id."""
    rng = np.random.default_rng(7)
    looks = [_look(rng) for _ in range(LOOKS)]
    members = [_subject(store, at, looks[at % LOOKS]) for at in range(subjects)]
    partitions = [
        _Partition.of(at, [members[(7 * at + r) % subjects] for r in range(1 + at % 2)])
        for at in range(-(-pairs // EACH))
    ]
    made = [pair for partition in partitions for pair in partition.pairs(looks)][:pairs]
    rows = list(_write_shards(store, made, looks))
    for stored in sorted(partitions, key=lambda partition: partition.name)[:STORED]:
        stored.commit(store, looks)
    return _publish(store, rows, members, partitions)


def version_name(pairs: int, subjects: int) -> str:
    """The id of the version that `make_root` makes."""
    return stable_id("made up", pairs, subjects)


def _look(rng: np.random.Generator) -> Look:
    """A coloured disc on a rough ground; the loser has another colour."""
    ground = rng.integers(90, 150, (8, 8, 3)).repeat(8, 0).repeat(8, 1)
    rough = np.clip(ground + rng.integers(-14, 15, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE]
    mask = (y - 32) ** 2 + (x - 32) ** 2 < int(rng.integers(120, 400))
    win, lose = rough.copy(), rough.copy()
    win[mask], lose[mask] = rng.integers(0, 256, (2, 3))
    return Look(win, lose, mask)


def _subject(store: Store, at: int, look: Look) -> Subject:
    picture = np.where(look.mask[..., None], look.win, np.uint8(255))
    # No two subjects have the same picture.
    picture[0, 0] = (at % 256, at // 256 % 256, 255)
    return put_subject(
        store,
        id=f"subject-{at:05d}",
        class_name=CLASSES[at % len(CLASSES)],
        pictures=[(picture, look.mask)],
        licence="CC0",
    )


@dataclass(frozen=True)
class _Partition:
    at: int
    name: str
    members: Sequence[Subject]
    keys: dict[str, str]

    @classmethod
    def of(cls, at: int, members: Sequence[Subject]) -> _Partition:
        name = stable_id("partition", at)
        keys = {stage: content_key(stage, 1, {}, "made up", [name]) for stage in STAGES}
        return cls(at, name, members, keys)

    @property
    def scene(self) -> Scene:
        words = tuple(member.class_name for member in self.members)
        return Scene(
            id=stable_id("scene", self.at),
            partition=self.name,
            subject_ids=tuple(member.id for member in self.members),
            class_names=words,
            prompt=f"a {' and a '.join(words)} on {PLACES[self.at % len(PLACES)]}",
            variant=0,
            seed=self.at,
        )

    def look(self, looks: Sequence[Look], place: int) -> Look:
        return looks[(self.at + place) % len(looks)]

    def pairs(self, looks: Sequence[Look]) -> Iterator[Pair]:
        """Numbers are drawn from the partition's own generator."""
        rng = np.random.default_rng(self.at)
        scene, num = self.scene, len(self.members)
        for place in range(EACH):
            win, lose = rng.uniform(0.6, 1.0, num), rng.uniform(-0.4, 0.6, num)
            stem = f"c{place}"
            masks = tuple(
                image_key("segment", self.keys["segment"], f"{stem}-{r}.png") for r in range(num)
            )
            yield Pair(
                id=stable_id("pair", self.at, place),
                scene_id=scene.id,
                partition=self.name,
                source="disrupt",
                mode=("all", "subset", "swap")[place % 3],
                prompt=scene.prompt,
                subject_ids=scene.subject_ids,
                class_names=scene.class_names,
                captions=scene.class_names,
                win_id=stable_id("sampled", self.at, place),
                lose_id=stable_id("disrupted", self.at, place),
                win_image=image_key("generate", self.keys["generate"], f"{stem}.png"),
                lose_image=image_key("disrupt", self.keys["disrupt"], f"{stem}.png"),
                masks=masks,
                prior=image_key("disrupt", self.keys["disrupt"], f"{stem}-prior.png"),
                references=tuple(member.references[0] for member in self.members),
                win_identity=tuple(map(float, win)),
                lose_identity=tuple(map(float, lose)),
                win_leakage_margin=tuple(map(float, win)),
                lose_leakage_margin=tuple(map(float, lose)),
                win_clip_t=float(rng.uniform(0.25, 0.4)),
                lose_clip_t=float(rng.uniform(0.25, 0.4)),
                margin=float((win - lose).mean()),
                reason="made up",
            )

    def rejects(self) -> list[Reject]:
        return [
            Reject(
                scene_id=self.scene.id,
                candidate_id=stable_id("disrupted", self.at, place),
                source="disrupt",
                reason=REASONS[(self.at + place) % len(REASONS)],
                detail="least identity 0.793 < 0.850",
            )
            for place in range(2)
        ]

    def row(self, pairs: int) -> PartitionRow:
        return PartitionRow(
            partition=self.name,
            subject_ids=tuple(sorted(member.id for member in self.members)),
            key=self.keys["pair"],
            samples="made up",
            pairs=pairs,
            rejects=dict(Counter(reject.reason for reject in self.rejects())),
        )

    def commit(self, store: Store, looks: Sequence[Look]) -> None:
        """What the stages would have stored."""
        shown = [self.look(looks, place) for place in range(EACH)]
        commit_partition(
            store, self.scene, list(self.pairs(looks)), self.rejects(), shown, self.keys
        )


def _write_shards(store: Store, pairs: Sequence[Pair], looks: Sequence[Look]) -> Iterator[IndexRow]:
    """Samples in the order of ids. The pictures of a sample are encoded once per look."""
    encoded: dict[tuple[int, int], dict[str, bytes]] = {}

    def fields(at: int, pair: Pair) -> dict[str, bytes]:
        key = (at % len(looks), len(pair.subject_ids))
        if key not in encoded:
            encoded[key] = encode(pair, _images(looks[key[0]], key[1]), "train")
        values = dataclasses.asdict(pair)
        header = {"schema_version": SAMPLE_VERSION, "split": "train", "pair": values}
        return encoded[key] | {"json": json.dumps(header, sort_keys=True).encode()}

    ordered = sorted(pairs, key=lambda pair: pair.id)
    for start in range(0, len(ordered), PER_SHARD):
        chunk = ordered[start : start + PER_SHARD]
        name = f"pairs-train-r1-{start:016x}.tar"
        named = ((pair.id, fields(start + at, pair)) for at, pair in enumerate(chunk))
        places = write_samples(store.files, f"{FOLDER}/{name}", named)
        for pair, place in zip(chunk, places, strict=True):
            yield _row(pair, name, place)


def _images(look: Look, num: int) -> SampleImages:
    share = look.mask.astype(np.float32)
    return SampleImages(
        win=look.win,
        lose=look.lose,
        prior=look.mask,
        complexity=share,
        lose_complexity=share,
        masks=(look.mask,) * num,
        references=(look.win,) * num,
        reference_masks=(look.mask,) * num,
    )


def _row(pair: Pair, shard: str, place: Place) -> IndexRow:
    shared: dict[str, Any] = {
        field.name: getattr(pair, field.name)
        for field in dataclasses.fields(IndexRow)
        if hasattr(pair, field.name)
    }
    return IndexRow(
        pair_id=pair.id,
        digest=pair_digest(pair),
        split="train",
        num_subjects=len(pair.subject_ids),
        shard=shard,
        offset=place.offset,
        size=place.size,
        checksum=place.checksum,
        **shared,
    )


def _publish(
    store: Store,
    rows: Sequence[IndexRow],
    members: Sequence[Subject],
    partitions: Sequence[_Partition],
) -> str:
    """A version's files, as `versions.publish` lays them out; it would read every artefact."""
    name = version_name(len(rows), len(members))
    folder = f"versions/{name}"
    counts = Counter(row.partition for row in rows)
    table = sorted(
        (partition.row(counts[partition.name]) for partition in partitions),
        key=lambda r: r.partition,
    )
    lineage = [
        Artefact(
            stage=stage,
            key=key,
            partition=partition.name,
            inputs=(),
            count=EACH,
            seconds=0.1,
            files={},
        )
        for partition in partitions
        for stage, key in partition.keys.items()
    ]
    manifest = _manifest(store, name, rows, members, table)
    store.files.write(f"{folder}/index.parquet", to_parquet(rows, IndexRow))
    store.files.write(f"{folder}/{LINEAGE}", to_parquet(lineage, Artefact))
    store.files.write(f"{folder}/{PARTITIONS}", to_parquet(table, PartitionRow))
    store.files.write(f"{folder}/manifest.json", json.dumps(manifest).encode())
    store.files.write("LATEST", f"{name}\n".encode())
    return name


def _manifest(
    store: Store,
    name: str,
    rows: Sequence[IndexRow],
    members: Sequence[Subject],
    table: Sequence[PartitionRow],
) -> dict[str, Any]:
    rejects: Counter[str] = Counter()
    for partition_row in table:
        rejects.update(partition_row.rejects)
    return {
        "id": name,
        "parent": None,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        "schema_version": SCHEMA_VERSION,
        "packages": {},
        "pairs": pair_counts(rows),
        "rejects": dict(sorted(rejects.items())),
        "partitions": len(table),
        "reviews": {},
        "stages": {
            stage: {"artefacts": len(table), "records": len(rows), "seconds": 1.0, "versions": {}}
            for stage in STAGES
        },
        "subjects": [
            {
                "id": member.id,
                "class_name": member.class_name,
                "references": len(member.references),
                "licence": member.licence,
                "digest": member.digest,
                "artefact": member.references[0].image.split("/")[1],
            }
            for member in members
        ],
        "seeds": {},
        "shards": [
            {
                "name": shard,
                "bytes": store.files.size(f"{FOLDER}/{shard}"),
                "blake2b": digest(store.files.read(f"{FOLDER}/{shard}")),
                "pairs": count,
            }
            for shard, count in sorted(Counter(row.shard for row in rows).items())
        ],
        "config": {"pair": PairConfig().model_dump(mode="json")},
    }
