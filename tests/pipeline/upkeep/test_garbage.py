"""Garbage: what a version or a registered subject needs is never taken."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_root import bring, build, read_all, register
from small_disk import small_disk
from unprivileged import unprivileged

from focusdpo.data_schemas.errors import Full, UserError
from focusdpo.pipeline.subjects import cutouts, registry
from focusdpo.pipeline.upkeep.garbage import (
    DAY,
    building,
    builds_at_work,
    collect,
    last_sweep,
    note_sweep,
    reading,
    remove_version,
)
from focusdpo.store.artefacts import Store
from focusdpo.store.leases import LeaseConfig
from focusdpo.store.local import LocalFiles
from focusdpo.store.manifests import latest_id, lineage_keys, versions_of
from focusdpo.store.versions import open_version


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.open(tmp_path / "root")
    register(made, "ant", "bee", "cow")
    return made


def names(store: Store) -> dict[str, bytes]:
    """All files of a root but the mark of a removal and what has no meaning."""
    root = Path(store.root)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.relative_to(root).parts[0].startswith((".", "swept"))
    }


def make_old(store: Store) -> None:
    """All files as if written two days ago."""
    past = time.time() - 2 * DAY
    for path in Path(store.root).rglob("*"):
        os.utime(path, (past, past))


def assert_whole(store: Store) -> None:
    """Every version can be read, and everything that it rests on is there."""
    for manifest in versions_of(store):
        version = open_version(store, manifest["id"])
        version.verify()
        assert len(read_all(version)) == manifest["pairs"]["total"]
        version.subjects()
        for stage, keys in lineage_keys(store, version.id).items():
            assert keys <= set(store.keys(stage))
            for key in keys:
                store.verify(stage, key)


def test_nothing_that_a_version_refers_to_is_garbage(store: Store) -> None:
    build(store)
    registry.remove(store, ["bee"])
    build(store)
    before = names(store)
    garbage = collect(store, min_age=0)
    assert garbage.bytes == 0 and garbage.removed
    assert names(store) == before
    assert_whole(store)


def test_old_versions_go_when_asked_and_with_them_what_only_they_need(store: Store) -> None:
    old = build(store)
    registry.remove(store, ["bee"])
    new = build(store)
    told = collect(store, keep_versions=1, min_age=0, dry_run=True)
    assert list(told.versions) == [old.id] and not told.removed
    assert latest_id(store) == new.id and open_version(store, old.id)
    sizes = sum(len(data) for data in names(store).values())
    done = collect(store, keep_versions=1, min_age=0)
    assert done.as_dict() | {"removed": False} == told.as_dict()
    assert sum(len(data) for data in names(store).values()) == sizes - done.bytes
    assert [one["id"] for one in versions_of(store)] == [new.id]
    # Alone, with ant, with cow: its scenes, pairs and pictures.
    assert {stage: len(paths) for stage, paths in done.artefacts.items()} == {
        "compose": 6, "pair": 6, "subjects": 2,
    }  # fmt: skip
    assert_whole(store)
    before = names(store)
    assert build(store).id == new.id
    assert names(store) == before, "the next build has everything that it needs"


def test_a_dry_run_changes_nothing(store: Store) -> None:
    build(store, setting=1)
    build(store, setting=2)
    before = names(store)
    assert collect(store, keep_versions=1, min_age=0, dry_run=True).bytes > 0
    assert names(store) == before and last_sweep(store) is None


def test_what_is_young_stays(store: Store) -> None:
    build(store, setting=1)
    make_old(store)
    registry.remove(store, ["bee"])
    build(store, setting=2)
    done = collect(store, keep_versions=1)
    told = done.as_dict()["artefacts"]
    assert {stage: one["artefacts"] for stage, one in told.items()} == {
        "compose": 3, "pair": 6, "subjects": 1,
    }  # fmt: skip
    build(store, setting=3)
    young = collect(store, keep_versions=1)
    assert list(young.versions) and not young.artefacts and not young.shards
    assert young.young >= 3, "pairs of setting 2, and their shard: a day may pass"
    assert_whole(store)


def test_pictures_that_pairs_came_from_stay_when_the_licence_changes(store: Store) -> None:
    build(store)
    registry.update(store, [bring(store, "bee", licence="MIT")], registry.ingest.IngestConfig())
    version = build(store)
    done = collect(store, keep_versions=1, min_age=0)
    assert "subjects" not in done.artefacts, "old and new artefact hold the same pictures"
    row = version.rows[0]
    assert version.read(row).pair.id == row.pair_id
    (version.store.root / "shards" / row.shard).unlink()
    again = build(store)
    assert_whole(store)
    assert again.rows == version.rows, "the shard was written anew from pictures that are kept"


def test_registered_subjects_and_masks_of_photographs_stay(store: Store) -> None:
    store.commit(cutouts.STAGE, "a" * 32, [], registry.Subject, partition="")
    before = names(store)
    assert collect(store, min_age=0).bytes == 0
    assert names(store) == before


def test_no_garbage_is_taken_beside_a_build(store: Store) -> None:
    build(store, setting=1)
    build(store, setting=2)
    other = Store.open(store.root)
    with building(other):
        (holder,) = builds_at_work(store)
        assert holder.what == "a build"
        with pytest.raises(UserError, match=r"a build is at work \(.*process .*run gc when"):
            collect(store, keep_versions=1, min_age=0)
        assert len(versions_of(store)) == 2
    assert builds_at_work(store) == []
    collect(store, keep_versions=1, min_age=0)
    assert len(versions_of(store)) == 1


def test_a_version_that_is_read_stays_with_all_that_it_rests_on(store: Store) -> None:
    old = build(store, setting=1)
    registry.remove(store, ["bee"])
    new = build(store, setting=2)
    with reading(store.root, old.id, "a training") as version:
        garbage = collect(store, keep_versions=1, min_age=0)
        assert list(garbage.in_use) == [old.id] and not garbage.versions
        assert re.search(r"a training, .*process", garbage.in_use[old.id])
        version.verify()
        assert len(read_all(version)) == old.manifest["pairs"]["total"]
        assert_whole(store)
    garbage = collect(store, keep_versions=1, min_age=0)
    assert list(garbage.versions) == [old.id] and not garbage.in_use
    assert [one["id"] for one in versions_of(store)] == [new.id]


def test_a_reader_that_was_killed_holds_nothing(store: Store) -> None:
    old = build(store, setting=1)
    build(store, setting=2)
    code = (
        "import os, sys; from focusdpo.pipeline.upkeep.garbage import reading\n"
        "with reading(sys.argv[1], sys.argv[2], 'a training'): os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(store.root), old.id], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert list((store.root / ".leases" / "readers").iterdir())
    assert list(collect(store, keep_versions=1, min_age=0).versions) == [old.id]


def test_who_may_not_write_reads_all_the_same(store: Store) -> None:
    made = build(store)
    with unprivileged(store.root), reading(store.root, "latest", "a training") as version:
        assert version.id == made.id and read_all(version)
    with pytest.raises(UserError, match="no such version"), reading(store.root, "x", "a training"):
        pass


def test_a_removal_is_told_from_the_next(store: Store) -> None:
    build(store, setting=1)
    build(store, setting=2)
    collect(store, keep_versions=1, min_age=0)
    first = last_sweep(store)
    build(store, setting=3)
    assert last_sweep(store) == first
    collect(store, keep_versions=1, min_age=0)
    assert first != last_sweep(store) not in (None, b"")


def test_gc_runs_on_a_full_disk(tmp_path: Path) -> None:
    """Where no lease and no note can be written: that is when it is wanted."""
    with small_disk(tmp_path / "disk", 4) as disk:
        store = Store.open(disk / "root")
        register(store, "ant", "bee")
        build(store, setting=1)
        kept = build(store, setting=2)
        fill_up(disk)
        with pytest.raises(Full, match="the disk is full"), building(store):
            pass
        before = last_sweep(store)
        (removed,) = collect(store, keep_versions=1, min_age=0).versions
        assert [one["id"] for one in versions_of(store)] == [kept.id] != [removed]
        assert last_sweep(store) not in (before, b""), "there was room for a note in the end"
        assert_whole(store)


@pytest.mark.slow
def test_gc_on_a_full_disk_keeps_out_of_the_way_of_builds(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4) as disk:
        store = Store.open(disk / "root")
        store.leases = LeaseConfig(seconds=3)  # so long it waits for whoever publishes
        register(store, "ant")
        build(store)
        with building(store):
            fill_up(disk)
            with pytest.raises(UserError, match="a build is at work"):
                collect(store, min_age=0)
        (disk / "ballast").unlink()
        with store.publishing():
            fill_up(disk)
            with pytest.raises(UserError, match="a version is being published"):
                collect(store, min_age=0)


def fill_up(disk: Path) -> None:
    """To the last byte."""
    with (disk / "ballast").open("ab", buffering=0) as sink, suppress(OSError):
        while True:
            sink.write(bytes(512))


def test_two_removals_on_a_full_disk_are_told_apart(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: LocalFiles, path: str, data: bytes, **more: object) -> bool:
        if data:
            raise Full("full")
        return write(self, path, data)

    write = LocalFiles.write
    monkeypatch.setattr(LocalFiles, "write", full)
    states = [last_sweep(store)]
    for _ in range(4):
        assert not note_sweep(store)
        states.append(last_sweep(store))
    assert all(a != b for a, b in zip(states, states[1:], strict=False))


def test_unfinished_versions_and_lost_times_go(store: Store) -> None:
    version = build(store)
    store.files.write("versions/abcd/index.parquet", b"half")
    store.files.write(f"stages/pair/ab/{'ab' * 16}.json", b"{}")
    done = collect(store, min_age=0)
    assert done.versions == {"abcd": 4}
    assert list(done.artefacts) == ["pair"]
    assert not (store.root / "versions" / "abcd").exists()
    assert latest_id(store) == version.id
    assert_whole(store)


def test_old_states_of_the_registry_go(store: Store) -> None:
    for at in range(15):
        register(store, f"x{at}")
        registry.remove(store, [f"x{at}"])
    collect(store, min_age=0)
    assert registry.state_numbers(store) == list(range(12, 32))


def test_at_least_one_version_is_kept(store: Store) -> None:
    with pytest.raises(UserError, match="at least one version is kept"):
        collect(store, keep_versions=0)


class Stopped(BaseException):
    """As a kill at that moment would leave it."""


@pytest.mark.parametrize("stop", [1, 3, 8])
def test_a_stopped_collection_is_finished_by_the_next(
    store: Store, tmp_path: Path, stop: int
) -> None:
    for setting in range(3):
        build(store, setting=setting)
    registry.remove(store, ["bee"])
    build(store, setting=2)
    shutil.copytree(store.root, tmp_path / "other")
    collect(Store.open(tmp_path / "other"), keep_versions=1, min_age=0)
    passed = []

    def reached(point: str) -> None:
        passed.append(point)
        if len(passed) == stop:
            raise Stopped

    with pytest.raises(Stopped):
        collect(store, keep_versions=1, min_age=0, reached=reached)
    assert_whole(store)
    collect(store, keep_versions=1, min_age=0)
    assert names(store) == names(Store.open(tmp_path / "other"))
    assert_whole(store)


def test_a_version_without_its_manifest_is_none(store: Store) -> None:
    version = build(store, setting=1)
    build(store, setting=2)
    remove_version(store, version.id)
    assert not (store.root / "versions" / version.id).exists()
    with pytest.raises(UserError, match="no such version"):
        open_version(store, version.id)


ANIMALS = ("ant", "bee", "cow", "dog")
STEPS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(ANIMALS)),
    st.tuples(st.just("remove"), st.sampled_from(ANIMALS)),
    st.tuples(st.just("change"), st.sampled_from(ANIMALS)),
    st.tuples(st.just("build"), st.integers(0, 2)),
    st.tuples(st.just("gc"), st.sampled_from([None, 1, 2])),
)


@settings(max_examples=8, deadline=None)
@given(steps=st.lists(STEPS, max_size=10))
@pytest.mark.slow
def test_whatever_comes_and_goes_nothing_needed_is_ever_taken(steps: list[tuple]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "root")
        register(store, "ant", "bee")
        looks = dict.fromkeys(ANIMALS, 0)
        build(store)
        for what, which in steps:
            state = registry.read_registry(store)
            assert state is not None
            there = which in state.entries
            if what == "add" and not there:
                registry.add(store, [bring(store, which, looks[which])], registry_settings())
            elif what == "remove" and there and len(state.entries) > 1:
                registry.remove(store, [which])
            elif what == "change" and there:
                looks[which] += 1
                registry.update(store, [bring(store, which, looks[which])], registry_settings())
            elif what == "build":
                build(store, setting=which)
            elif what == "gc":
                kept = [one["id"] for one in versions_of(store)][-(which or 10**6) :]
                collect(store, keep_versions=which, min_age=0)
                assert [one["id"] for one in versions_of(store)] == kept
            assert_whole(store)
            state = registry.read_registry(store)
            assert state is not None
            for entry in state.entries.values():
                store.verify("subjects", entry.artefact)


def registry_settings() -> registry.ingest.IngestConfig:
    return registry.ingest.IngestConfig()
