"""The store under everything that can go wrong: kills, full disks, two writers, damage."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from small_disk import small_disk
from unprivileged import unprivileged

from focusdpo.data_schemas.candidates import Sampled
from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.pairs import Reject
from focusdpo.data_schemas.runs import SCHEMA_VERSION
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import config_digest, content_key, digest, image_key
from focusdpo.store.local import LocalFiles

HERE = Path(__file__).parent
IMPORT_PATHS = [str(HERE), str(HERE.parent / "helpers")]
"""Where the programs below find this module and its helpers."""


def key_of(number: int) -> str:
    return content_key("generate", 1, {"number": number})


def put(store: Store, number: int, images: int = 2, side: int = 16) -> str:
    """One artefact whose content follows from its number."""
    key = key_of(number)
    rng = np.random.default_rng(number)
    pictures = {
        f"c{i}.png": rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for i in range(images)
    }
    records = [
        Sampled(
            id=f"{number}-{i}", scene_id="s", index=i, seed=i,
            image=image_key("generate", key, name),
        )
        for i, name in enumerate(pictures)
    ]  # fmt: skip
    rejects = [Reject(scene_id="s", candidate_id="c", source="rank", reason="surplus", detail="")]
    store.commit(
        "generate", key, records, Sampled, images=pictures, more={"rejects": (Reject, rejects)},
        partition="p", inputs=["a", "b"], seconds=0.25, versions={"code": "1"},
    )  # fmt: skip
    return key


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "root")


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def artefact_file(store: Store, key: str) -> Path:
    return store.root / store.path("generate", key)


def test_what_was_committed_is_read_back(store: Store) -> None:
    key = put(store, 5)
    again = Store.open(store.root, create=False)
    assert again.has("generate", key)
    assert again.keys("generate") == [key]
    records = again.read("generate", key, Sampled)
    assert [record.id for record in records] == ["5-0", "5-1"]
    expected = np.random.default_rng(5).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(again.image(records[0].image), expected)
    assert again.read("generate", key, Reject, table="rejects")[0].reason == "surplus"
    artefact = again.artefact("generate", key)
    assert (artefact.count, artefact.partition, artefact.inputs) == (2, "p", ("a", "b"))
    assert (artefact.seconds, artefact.versions) == (0.25, {"code": "1"})
    again.verify("generate", key)


def test_masks_are_booleans(store: Store) -> None:
    mask = np.eye(8, dtype=np.bool_)
    key = key_of(1)
    store.commit("segment", key, [], Sampled, images={"m.png": mask})
    np.testing.assert_array_equal(store.mask(image_key("segment", key, "m.png")), mask)


def test_an_artefact_is_a_plain_tar(store: Store, tmp_path: Path) -> None:
    key = put(store, 1)
    listed = subprocess.run(
        ["tar", "tf", str(artefact_file(store, key))], capture_output=True, text=True, check=True
    )
    assert listed.stdout.split() == [
        "artefact.json", "c0.png", "c1.png", "records.parquet", "rejects.parquet",
    ]  # fmt: skip


def test_bytes_do_not_depend_on_when_and_where(tmp_path: Path) -> None:
    for name in ("one", "two"):
        store = Store.open(tmp_path / name)
        for number in (1, 2):
            put(store, number)
        time.sleep(0.01)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_the_first_of_two_commits_stays(store: Store) -> None:
    key = put(store, 1, images=2)
    before = artefact_file(store, key).read_bytes()
    store.commit("generate", key, [], Sampled)
    assert artefact_file(store, key).read_bytes() == before
    assert len(store.read("generate", key, Sampled)) == 2


class SomeConfig(BaseModel):
    rate: float = 0.5
    words: tuple[str, ...] = ("a",)


@given(inputs=st.lists(st.text()), model=st.text())
def test_a_key_is_the_digest_of_its_json(inputs: list[str], model: str) -> None:
    words = ["generate", "3", config_digest({"a": 1}), model, sorted(inputs)]
    assert content_key("generate", 3, {"a": 1}, model, inputs) == digest(json.dumps(words).encode())


def test_a_key_depends_on_everything_but_the_order_of_inputs() -> None:
    def key(**change: object) -> str:
        base = {
            "stage": "score", "version": 1, "config": SomeConfig(), "model": "m",
            "inputs": ["a", "b"],
        }  # fmt: skip
        return content_key(**{**base, **change})  # type: ignore[arg-type]

    changes = [
        {"stage": "pair"}, {"version": 2}, {"config": SomeConfig(rate=0.6)}, {"model": "n"},
        {"inputs": ["a"]}, {"inputs": ["ab"]}, {"config": SomeConfig(words=("a", "b"))},
    ]  # fmt: skip
    assert len({key(), *(key(**change) for change in changes)}) == 1 + len(changes)
    assert key(inputs=["b", "a"]) == key()
    assert config_digest(SomeConfig()) == config_digest({"words": ["a"], "rate": 0.5})


@given(name=st.text(max_size=20))
def test_names_cannot_leave_the_root(name: str) -> None:
    store = Store(LocalFiles("/nowhere"))
    try:
        path = store.path(name, key_of(0)) + image_key("generate", key_of(0), f"{name}.png")
    except ValueError:
        return
    assert ".." not in path.split("/")
    assert "\0" not in path


# Roots


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not a FocusDPO dataset root.*thesis.tex"):
        Store.open(tmp_path)
    assert tree(tmp_path) == {"thesis.tex": b"x"}


def test_a_file_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(UserError, match="a file, not a dataset root"):
        Store.open(tmp_path / "a")


def test_an_absent_root_is_made_only_when_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset here"):
        Store.open(tmp_path / "a" / "b", create=False)
    assert not (tmp_path / "a").exists()
    Store.open(tmp_path / "a" / "b")
    Store.open(tmp_path / "a" / "b", create=False)


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "next"])
def test_a_root_of_another_schema_version_is_refused(store: Store, version: object) -> None:
    (store.root / "dataset.json").write_text(json.dumps({"schema_version": version}))
    with pytest.raises(UserError, match=f"schema version {version}, this focusdpo reads 1"):
        Store.open(store.root)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"x"'])
def test_a_damaged_root_says_how_to_mend_it(store: Store, text: str) -> None:
    (store.root / "dataset.json").write_text(text)
    with pytest.raises(UserError, match="dataset.json: damaged.*remove .*dataset.json and build"):
        Store.open(store.root)
    (store.root / "dataset.json").unlink()
    put(Store.open(store.root), 1)


# Damage


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    at = data.index(b"IDAT") + 40
    path.write_bytes(
        {
            "truncated": data[: len(data) // 3],
            "empty": b"",
            "flipped": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
            "other": b"hello" * 1000,
            "index": data[:600] + b"#" + data[601:],
        }[how]
    )


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped", "other", "index"])
def test_a_damaged_artefact_is_named_and_repair_drops_it_alone(store: Store, how: str) -> None:
    keys = [put(store, number) for number in range(3)]
    before = artefact_file(store, keys[1]).read_bytes()
    damage(artefact_file(store, keys[1]), how)
    fresh = Store.open(store.root)
    with pytest.raises(UserError, match=f"generate/{keys[1]} is damaged.*doctor --root .*--repair"):
        fresh.verify("generate", keys[1])
    with pytest.raises(UserError, match="is damaged"):
        for record in fresh.read("generate", keys[1], Sampled):
            fresh.image(record.image)
    assert [one.key for one in fresh.repair()] == [keys[1]]
    assert [fresh.has("generate", key) for key in keys] == [True, False, True]
    put(fresh, 1)
    assert artefact_file(store, keys[1]).read_bytes() == before
    assert fresh.corrupt() == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data(), bit=st.integers(0, 7))
def test_no_flipped_bit_of_an_artefact_stays_unseen(
    tmp_path: Path, data: st.DataObject, bit: int
) -> None:
    """Headers, padding and the tar's end too."""
    store = Store.open(tmp_path / "root")
    key = put(store, 1)
    path = artefact_file(store, key)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    try:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        with pytest.raises(UserError, match="doctor --root"):
            store.verify("generate", key)
    finally:
        path.write_bytes(whole)
    store.verify("generate", key)


def test_an_absent_artefact_says_what_to_run(store: Store) -> None:
    with pytest.raises(UserError, match="is absent; run `focusdpo build-dataset`"):
        store.read("generate", key_of(9), Sampled)
    key = put(store, 1)
    with pytest.raises(UserError, match="no member 'x.png'"):
        store.image(image_key("generate", key, "x.png"))


# Full disk


def fill(store: Store) -> UserError:
    """Commit until there is no more room."""
    with pytest.raises(UserError) as caught:
        for number in range(1000):
            put(store, number, images=4, side=64)
    return caught.value


def assert_nothing_lost(root: Path, error: UserError) -> None:
    assert str(root) in str(error)
    assert "MiB free" in str(error)
    assert "Nothing built so far is lost" in str(error)
    store = Store.open(root)
    keys = store.keys("generate")
    assert keys
    assert store.corrupt() == []
    assert list((root / ".tmp").iterdir()) == []


def test_a_full_disk_loses_nothing_and_work_goes_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 3) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(2**20))
        root = disk / "root"
        error = fill(Store.open(root))
        assert_nothing_lost(root, error)
        before = len(Store.open(root).keys("generate"))
        ballast.unlink()
        fill(Store.open(root))
        assert len(Store.open(root).keys("generate")) > before


QUOTA = """
import resource, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import test_artefacts

from focusdpo.store.artefacts import Store
store = Store.open(sys.argv[1])
test_artefacts.put(store, 0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    test_artefacts.put(store, 1, images=8, side=64)
except ValueError as error:
    print(type(error).__name__, error)
"""


def test_a_file_size_limit_loses_nothing(tmp_path: Path) -> None:
    """The same without the right to mount: the kernel refuses to let a file grow."""
    root = tmp_path / "root"
    run = subprocess.run(
        [sys.executable, "-c", QUOTA, str(root), *IMPORT_PATHS],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.startswith("Full ")
    assert_nothing_lost(root, UserError(run.stdout))


def test_a_root_without_the_right_to_write_is_named(store: Store) -> None:
    (store.root / ".tmp").chmod(0o555)
    with unprivileged(store.root), pytest.raises(UserError, match="no permission to write"):
        put(store, 1)


# Kills and several writers

WRITER = """
import sys
sys.path[:0] = sys.argv[3:]
import test_artefacts

from focusdpo.store.artefacts import Store
store = Store.open(sys.argv[1])
test_artefacts.put(store, 99_999)
print("ready", flush=True)
for number in range(int(sys.argv[2]), 10_000):
    test_artefacts.put(store, number, images=4, side=64)
    print(number, flush=True)
"""


def start_writer(root: Path, first: int = 0) -> subprocess.Popen[str]:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root), str(first), *IMPORT_PATHS],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert writer.stdout is not None
    assert writer.stdout.readline().strip() == "ready"
    return writer


def kill(writer: subprocess.Popen[str], least: int = -1) -> int:
    """Kill -9, when the writer has reported `least`; the last number that it reported as stored."""
    assert writer.stdout is not None
    last = -1
    while last < least:
        last = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    told = writer.communicate()[0].split()
    return int(told[-1]) if told else last


@pytest.mark.slow
def test_kill_9_leaves_only_whole_artefacts(tmp_path: Path) -> None:
    """Killed at random moments; each time all that is visible verifies, all that was reported as
    stored is there, and the next writer goes on."""
    root = tmp_path / "root"
    chance = random.Random(0)
    first = 0
    for _ in range(6):
        writer = start_writer(root, first)
        time.sleep(chance.uniform(0.0, 0.25))
        last = kill(writer)
        store = Store.open(root)
        assert store.corrupt() == []
        assert all(store.has("generate", key_of(number)) for number in range(last + 1))
        assert list((root / ".tmp").glob("*")) == [], "what was unfinished is cleaned away"
        first = max(first, last + 1)
    assert first > 0
    # The same bytes as an undisturbed run.
    calm = Store.open(tmp_path / "calm")
    for number in range(first):
        put(calm, number, images=4, side=64)
        path = calm.path("generate", key_of(number))
        assert (root / path).read_bytes() == (calm.root / path).read_bytes()


def test_a_living_writers_unfinished_work_is_left_alone(tmp_path: Path) -> None:
    """Opening the root again and again must not take a file from under another writer."""
    root = tmp_path / "root"
    writer = start_writer(root)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        Store.open(root)
    assert writer.poll() is None, "the writer died"
    kill(writer, 1)
    assert Store.open(root).corrupt() == []


def test_an_old_file_of_another_machine_is_cleaned_a_young_one_is_not(store: Store) -> None:
    old, young = (store.root / ".tmp" / f"elsewhere~7~1~{n}" for n in (0, 1))
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    Store.open(store.root)
    assert not old.exists()
    assert young.exists()


@pytest.mark.slow
def test_two_writers_of_the_same_keys_agree(tmp_path: Path) -> None:
    root = tmp_path / "root"
    writers = [start_writer(root) for _ in range(2)]
    last = min(kill(writer, 5) for writer in writers)
    store = Store.open(root)
    assert store.corrupt() == []
    for number in range(last):
        assert len(store.read("generate", key_of(number), Sampled)) == 4


OPENER = """
import sys
from focusdpo.store.artefacts import Store
print("ready", flush=True)
sys.stdin.readline()
Store.open(sys.argv[1])
"""


def test_many_may_make_the_same_root_at_once(tmp_path: Path) -> None:
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(tmp_path / "root")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline().strip() == "ready"
    results = [opener.communicate("go\n") for opener in openers]
    assert [opener.returncode for opener in openers] == [0] * 4, results
    Store.open(tmp_path / "root", create=False)


def test_threads_may_share_a_store(store: Store) -> None:
    failures: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for number in range(start, start + 20):
                put(store, number)
                store.read("generate", key_of(number), Sampled)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.keys("generate")) == 50


def test_looking_for_1500_artefacts_takes_no_second(store: Store) -> None:
    keys = [put(store, number, images=1, side=4) for number in range(30)]
    start = time.process_time()
    fresh = Store.open(store.root)
    assert all(fresh.has("generate", key) for key in keys * 50)
    assert time.process_time() - start < 1
