"""A root's registry: what is registered counts, one state at a time, whoever writes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from stored_pairs import flat_complexity, put_pairs, put_subjects

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.subjects import Subject
from focusdpo.pipeline.shard import ShardConfig, write_shards
from focusdpo.pipeline.subjects import registry
from focusdpo.pipeline.subjects.ingest import IngestConfig, put_subject
from focusdpo.pipeline.subjects.registry import (
    add,
    read_registry,
    remove,
    state_numbers,
    update,
)
from focusdpo.store.artefacts import Store
from focusdpo.store.versions import publish

READ = IngestConfig()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "root")


def subject(
    store: Store, name: str, level: int, class_name: str = "cat", licence: str = "CC0"
) -> Subject:
    """One flat picture; another level is another picture."""
    image = np.full((16, 16, 3), level, np.uint8)
    mask = np.ones((16, 16), np.bool_)
    return put_subject(
        store, id=name, class_name=class_name, licence=licence, pictures=[(image, mask)]
    )


def names(store: Store) -> list[str]:
    state = read_registry(store)
    return [] if state is None else list(state.entries)


def test_a_root_has_no_registry_until_one_is_added(store: Store) -> None:
    assert read_registry(store) is None
    made = add(store, [subject(store, "cat", 1), subject(store, "ant", 2)], READ, now="t0")
    assert made.changed == ("cat", "ant")
    assert made.adopted == 0
    state = read_registry(store)
    assert state is not None and state.number == 1
    assert state.change == "added cat, ant"
    assert list(state.entries) == ["ant", "cat"]
    assert state.entries["cat"].licence == "CC0"
    assert state.entries["cat"].added == "t0"
    assert state.settings == {state.entries["cat"].read_as: READ.model_dump(mode="json")}


def test_an_entry_gives_back_the_subject_without_reading(store: Store) -> None:
    cat = subject(store, "cat", 1)
    add(store, [cat], READ)
    store.drop("subjects", cat.references[0].image.split("/")[1])
    state = read_registry(store)
    assert state is not None
    assert state.entries["cat"].subject() == cat


def test_every_change_is_a_new_state_and_the_old_ones_stay(store: Store) -> None:
    add(store, [subject(store, "cat", 1)], READ)
    first = store.files.read(registry.state_path(1))
    update(store, [subject(store, "cat", 2)], READ)
    remove(store, ["cat"])
    assert state_numbers(store) == [1, 2, 3]
    assert store.files.read(registry.state_path(1)) == first
    told = [json.loads(store.files.read(registry.state_path(n)))["change"] for n in (1, 2, 3)]
    assert told == ["added cat", "updated cat", "removed cat"]
    assert names(store) == []


def test_a_double_is_refused_with_what_to_do_and_nothing_is_registered(store: Store) -> None:
    add(store, [subject(store, "red-cat", 1)], READ)
    new = subject(store, "dog", 9)
    for wrong, told in (
        (subject(store, "red-cat", 5), "registered already; replace it with .*subjects update"),
        (subject(store, "Red_Cat", 5), "same name but for case and separators; rename"),
        (subject(store, "tom", 1), "same pictures and class as 'red-cat'.*leave it out"),
    ):
        with pytest.raises(UserError, match=told):
            add(store, [new, wrong], READ)
    with pytest.raises(UserError, match="registered already"):
        add(store, [new, new], READ)
    assert names(store) == ["red-cat"]
    assert state_numbers(store) == [1]


def test_update_replaces_and_tells_what_did_not_change(store: Store) -> None:
    add(store, [subject(store, "cat", 1), subject(store, "dog", 2, "dog")], READ, now="t0")
    made = update(
        store, [subject(store, "cat", 1, licence="MIT"), subject(store, "dog", 2, "dog")], READ,
        now="t1",
    )  # fmt: skip
    assert made.changed == ("cat",)
    assert made.unchanged == ("dog",)
    entries = made.registry.entries
    assert (entries["cat"].licence, entries["cat"].added, entries["cat"].changed) == (
        "MIT", "t0", "t1",
    )  # fmt: skip
    assert update(store, [subject(store, "dog", 2, "dog")], READ).changed == ()
    assert state_numbers(store) == [1, 2], "nothing changed, so nothing was written"
    with pytest.raises(UserError, match=r"'cta' is not registered \(near: cat\); .*subjects add"):
        update(store, [subject(store, "cta", 7)], READ)
    with pytest.raises(UserError, match="same pictures and class as 'cat'"):
        update(store, [subject(store, "dog", 1)], READ)


def test_remove_names_what_is_near(store: Store) -> None:
    add(store, [subject(store, "teddy", 1)], READ)
    with pytest.raises(UserError, match=r"'tedy' is not registered \(near: teddy\)"):
        remove(store, ["teddy", "tedy"])
    assert names(store) == ["teddy"]


def test_the_first_change_takes_over_the_subjects_of_the_newest_version(store: Store) -> None:
    subjects = put_subjects(store, 2)
    pairs, key = put_pairs(store, subjects, 2, partition="p")
    rows = write_shards(store, pairs, flat_complexity, ShardConfig())
    size = {"ingest": {"size": 32}}
    publish(
        store, rows, subjects=subjects, artefacts=[("pair", key)], config=size, rejects={}
    )  # fmt: skip
    made = add(store, [subject(store, "new", 1)], IngestConfig(size=32))
    assert made.adopted == 2
    assert made.changed == ("new",)
    assert names(store) == ["new", "s0", "s1"]
    taken = [made.registry.entries[one.id].subject() for one in subjects]
    assert taken == subjects
    assert len({one.read_as for one in made.registry.entries.values()}) == 1
    other = add(store, [subject(store, "more", 2)], IngestConfig(size=64))
    assert len(other.registry.settings) == 2, "each with the settings it was read with"


def test_a_writer_that_comes_second_goes_on_from_the_first(store: Store) -> None:
    rival = Store.open(store.root)
    calls = []

    def edit(before):
        calls.append(list(before))
        if len(calls) == 1:
            add(rival, [subject(rival, "first", 1)], READ)
        entries = dict(before)
        entries["second"] = registry._entry(subject(store, "second", 2), READ, "t")
        return entries, ("second",)

    registry._change(store, "added", edit, READ)
    assert calls == [[], ["first"]]
    assert names(store) == ["first", "second"]


def test_threads_lose_nothing(store: Store) -> None:
    def writer(number: int) -> None:
        own = Store.open(store.root)
        for at in range(5):
            add(own, [subject(own, f"w{number}-{at}", 10 * number + at)], READ)
        remove(own, [f"w{number}-0"])

    threads = [threading.Thread(target=writer, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(store) == sorted(f"w{n}-{at}" for n in range(4) for at in range(1, 5))
    assert state_numbers(store) == list(range(1, 25))


WRITER = """
import sys
sys.path[:0] = sys.argv[3:]
import test_registry as t
store = t.Store.open(sys.argv[1])
made = [t.subject(store, f"{sys.argv[2]}-{at}", at + ord(sys.argv[2])) for at in range(12)]
print("ready", flush=True)
sys.stdin.readline()
for one in made:
    t.add(store, [one], t.READ)
"""


@pytest.mark.slow
def test_two_processes_lose_nothing(store: Store) -> None:
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1] / "helpers")]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(store.root), name, *paths],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in ("a", "z")
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline().strip() == "ready"
    for writer in writers:
        writer.communicate("go\n")
        assert writer.returncode == 0
    assert names(store) == sorted(f"{name}-{at}" for name in "az" for at in range(12))


def test_a_damaged_state_is_named_with_the_way_back(store: Store) -> None:
    add(store, [subject(store, "cat", 1)], READ)
    add(store, [subject(store, "dog", 2)], READ)
    path = store.root / registry.state_path(2)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="000002.json: damaged .*fall back to state 1"):
        read_registry(store)
    path.unlink()
    assert names(store) == ["cat"]
