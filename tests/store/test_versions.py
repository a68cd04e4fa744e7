"""Versions: published whole or not at all, immutable, and truthful about where they come from."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from stored_pairs import flat_complexity, put_pairs, put_subjects

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.pairs import Pair
from focusdpo.data_schemas.subjects import Subject
from focusdpo.pipeline.shard import ShardConfig, write_shards
from focusdpo.pipeline.upkeep.repair import damages, mend
from focusdpo.store.artefacts import Store
from focusdpo.store.versions import (
    DatasetVersion,
    latest_id,
    latest_rows,
    lineage_of,
    open_version,
    publish,
)

CONFIG = ShardConfig(max_pairs=3, val_share=0.3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "root")


def build(store: Store, partitions: int = 4, first: int = 0) -> DatasetVersion:
    """What the end of a build does, over partitions first, first + 1, ..."""
    subjects = put_subjects(store, 3)
    made = [
        put_pairs(store, subjects[: p % 3 + 1], 3, partition=f"p{p}")
        for p in range(first, first + partitions)
    ]
    return release(store, subjects, [p for own, _ in made for p in own], [k for _, k in made])


def release(
    store: Store, subjects: Sequence[Subject], pairs: Sequence[Pair], keys: Sequence[str]
) -> DatasetVersion:
    rows = write_shards(
        store, pairs, flat_complexity, CONFIG, previous=latest_rows(store)
    )  # fmt: skip
    return publish(
        store, rows, subjects=subjects, artefacts=[("pair", key) for key in keys],
        config={"pair": {"min_margin": 0.1}}, rejects={"surplus": 2}, seeds={"compose": 0},
    )  # fmt: skip


def files(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_a_version_is_read_back(store: Store) -> None:
    made = build(store)
    assert made.new
    version = open_version(store.root)
    assert version.id == made.id == latest_id(store)
    assert version.rows == made.rows
    assert len(version.rows) == 12
    assert version.ids("train") | version.ids("val") == version.ids()
    assert not version.ids("train") & version.ids("val")
    shards = version.shards("train") + version.shards("val")
    assert sorted(shards) == sorted((store.root / "shards").iterdir())
    assert {version.read(row).pair.id for row in version.rows} == version.ids()
    assert [subject.id for subject in version.subjects()] == ["s0", "s1", "s2"]
    version.verify()


def test_the_manifest_tells_how_it_came_about(store: Store) -> None:
    version = build(store)
    told = json.loads((store.root / "versions" / version.id / "manifest.json").read_text())
    assert told["pairs"]["total"] == 12
    assert told["pairs"]["by_source"] == {"disrupt": 8, "rank": 4}
    assert told["pairs"]["by_subjects"] == {"1": 6, "2": 3, "3": 3}
    assert told["rejects"] == {"surplus": 2}
    assert told["stages"]["pair"]["records"] == 12
    assert told["stages"]["pair"]["seconds"] == 6.0
    assert told["subjects"][0]["licence"] == "CC0"
    assert told["config"] == {"pair": {"min_margin": 0.1}}
    assert told["packages"]["torch"][0].isdigit()
    assert told["parent"] is None
    assert sum(shard["pairs"] for shard in told["shards"]) == 12
    assert [one.partition for one in lineage_of(version)].count("p0") == 1


def test_with_no_change_nothing_is_written(store: Store) -> None:
    first = build(store)
    before = files(store.root)
    again = build(store)
    assert (again.id, again.new) == (first.id, False)
    assert files(store.root) == before


def test_versions_of_two_roots_agree(tmp_path: Path) -> None:
    one, two = (build(Store.open(tmp_path / name)) for name in ("one", "two"))
    assert one.id == two.id
    assert one.rows == two.rows


def test_a_new_version_leaves_the_old_one_as_it_was(store: Store) -> None:
    old = build(store, 3)
    before = files(store.root)
    new = build(store, 5)
    assert new.new
    assert new.id != old.id
    assert new.manifest["parent"] == old.id
    after = files(store.root)
    assert {name for name in before if before[name] != after[name]} == {"LATEST"}
    reopened = open_version(store, old.id)
    assert reopened.rows == old.rows
    reopened.verify()
    fresh = {shard["name"] for shard in new.manifest["shards"] if shard["new"]}
    assert {row.shard for row in new.rows} - {row.shard for row in old.rows} == fresh
    assert {row.partition for row in new.rows if row.shard in fresh} == {"p3", "p4"}


def test_retired_pairs_leave_the_index_and_stay_in_the_tar(store: Store) -> None:
    old = build(store, 3)
    subjects = put_subjects(store, 3)
    kept, key = put_pairs(store, subjects[:1], 3, partition="p0")
    new = release(store, subjects, kept, [key])
    assert new.ids() == {pair.id for pair in kept}
    assert new.ids() < old.ids()
    assert set(new.shards()) <= set(old.shards())
    new.verify()


def test_what_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(UserError, match="no dataset version yet; run `focusdpo build-dataset`"):
        open_version(store)
    with pytest.raises(UserError, match="no dataset here"):
        open_version(store.root / "elsewhere")
    version = build(store)
    with pytest.raises(UserError, match=f"no such version; there are .*{version.id}"):
        open_version(store, "0123")


@pytest.mark.parametrize("name", ["manifest.json", "index.parquet"])
def test_a_damaged_version_is_named(store: Store, name: str) -> None:
    version = build(store)
    path = store.root / "versions" / version.id / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=f"{version.id}/{name}: damaged .*doctor --root .*--repair"):
        open_version(store)


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_a_damaged_shard_is_named_repaired_and_rebuilt(store: Store, how: str) -> None:
    version = build(store)
    path = version.shards()[0]
    whole = path.read_bytes()
    path.write_bytes(
        whole[:-4000] if how == "truncated" else whole[:3000] + b"~" + whole[3001:]
    )  # fmt: skip
    if how == "missing":
        path.unlink()
    with pytest.raises(UserError, match=f"{path.name} is damaged.*--repair"):
        version.verify()
    assert [one.key for one in damages(store.root)] == [path.name]
    assert [one.key for one in mend(store.root).dropped] == [path.name]
    again = build(store)
    assert (again.id, again.new) == (version.id, False)
    assert path.read_bytes() == whole
    again.verify()


BUILDER = """
import sys
sys.path[:0] = sys.argv[3:]
import test_versions
from focusdpo.store.artefacts import Store
store = Store.open(sys.argv[1])
test_versions.build(store, 1)
print("ready", flush=True)
for size in range(2, int(sys.argv[2])):
    test_versions.build(store, size)
"""


@pytest.mark.slow
def test_kill_9_while_publishing_leaves_a_whole_version(tmp_path: Path) -> None:
    """Whenever it is killed, LATEST is whole, and the same build ends as if nothing happened."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent / "helpers")]
    for moment in (0.02, 0.11, 0.23):
        root = tmp_path / f"root-{moment}"
        writer = subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(root), "40", *paths],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert writer.stdout is not None
        assert writer.stdout.readline().strip() == "ready"
        time.sleep(moment)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        store = Store.open(root)
        version = open_version(store)
        version.verify()
        assert store.corrupt() == []
        size = len({row.partition for row in version.rows})
        again = build(store, size)
        assert (again.id, again.new) == (version.id, False)
        assert build(store, size + 2).manifest["parent"] == version.id
