"""A folder kept at an address: whole at every moment, one writer at a time, exact on return."""

from __future__ import annotations

import json
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from s3_server import BUCKET, S3Server

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.addresses import HEADER, files_of
from focusdpo.store.leases import LeaseConfig, Leases
from focusdpo.store.local import Files
from focusdpo.store.outputs import FILES, STATE, Mirror, State, copy, mirrored, read_state

QUICK = LeaseConfig(seconds=0.4, renewals=4)


@pytest.fixture(params=["memory", "s3"])
def address(request: pytest.FixtureRequest, s3: S3Server) -> str:
    base = "memory://" if request.param == "memory" else f"s3://{BUCKET}/"
    return f"{base}{uuid.uuid4().hex}/run"


@pytest.fixture
def files(address: str) -> Files:
    return files_of(address)


def put(folder: Path, **contents: bytes) -> None:
    """`a__b=...` writes a/b."""
    for name, data in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def seen(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fetched(files: Files, folder: Path) -> dict[str, bytes]:
    """What a reader gets."""
    assert copy(files, lambda _: folder / uuid.uuid4().hex, lambda _: True) is not None
    return seen(max(folder.iterdir(), key=lambda one: one.stat().st_mtime_ns))


def lying(files: Files) -> set[str]:
    """Files at the address, whether named or not."""
    return {f"{FILES}/{name}" for name in files.below(FILES)}


def test_another_folder_becomes_what_was_sent(files: Files, tmp_path: Path) -> None:
    large = bytes(range(256)) * 300
    with mirrored(files, tmp_path / "one", "a test") as mirror:
        put(tmp_path / "one", run=b"1", step__state=large, empty=b"")
        mirror.send()
        put(tmp_path / "one", run=b"2", other=b"x", half__part=b"", **{".temp": b"unfinished"})
        (tmp_path / "one/later.part").write_bytes(b"unfinished")
        (tmp_path / "one/step/state").unlink()
    whole = {"run": b"2", "other": b"x", "empty": b"", "half/part": b""}
    put(tmp_path / "two", run=b"0", step__state=b"never sent", **{".temp": b"unfinished"})
    with mirrored(files, tmp_path / "two", "a test"):
        assert seen(tmp_path / "two") == whole
        assert not (tmp_path / "two/step").exists(), "an empty folder would look like a checkpoint"
    assert fetched(files, tmp_path / "read") == whole
    state = read_state(files)
    assert state is not None
    assert lying(files) == {one.at for one in state.files.values()}
    assert not files.listing(".leases")


def test_only_what_is_new_travels(files: Files, tmp_path: Path) -> None:
    with mirrored(files, tmp_path, "a test") as mirror:
        put(tmp_path, large=b"l" * 1000, run=b"1")
        mirror.send()
        before = read_state(files)
        put(tmp_path, run=b"2")
        mirror.send()
        now = read_state(files)
        mirror.send()
        assert before is not None and now is not None
        assert now.files["large"] == before.files["large"]
        assert now.files["run"] != before.files["run"]
        assert read_state(files) == now, "nothing new, nothing sent"


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_sending_that_is_cut_leaves_the_state_before(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """At any file, and before the state is swapped."""
    first = {"a": b"1", "b": b"1", "c": b"1"}
    with mirrored(files, tmp_path / "one", "a test"):
        put(tmp_path / "one", **first)
    real, count = files.create, 0
    swaps = files.swap

    def create(path: str, **given: Any) -> Any:
        nonlocal count
        count += 1
        if count > after:
            raise ConnectionError("cut")
        return real(path, **given)

    def swap(path: str, data: bytes, tag: str | None, **given: Any) -> str | None:
        if path == STATE and count:
            raise ConnectionError("cut")
        return swaps(path, data, tag, **given)

    with monkeypatch.context() as patched:
        patched.setattr(files, "create", create)
        patched.setattr(files, "swap", swap)
        with (
            pytest.raises(ConnectionError),
            mirrored(files, tmp_path / "one", "a test") as mirror,
        ):
            put(tmp_path / "one", a=b"2", b=b"2", c=b"2")
            mirror.send()
    assert fetched(files, tmp_path / "read") == first
    with mirrored(files, tmp_path / "two", "a test"):
        assert seen(tmp_path / "two") == first
        state = read_state(files)
        assert state is not None
        assert lying(files) == {one.at for one in state.files.values()}, "what was cut is swept"


def test_a_second_writer_is_refused_while_the_first_lives(files: Files, tmp_path: Path) -> None:
    with mirrored(files, tmp_path / "one", "training", QUICK):
        put(tmp_path / "one", run=b"1")
        with (
            pytest.raises(UserError, match=r"training by .* is writing here; wait for it, stop it"),
            mirrored(files, tmp_path / "two", "an evaluation", QUICK),
        ):
            pass
    assert fetched(files, tmp_path / "read") == {"run": b"1"}


def test_one_that_gives_no_sign_of_life_is_succeeded(files: Files, tmp_path: Path) -> None:
    held = Leases(files, QUICK).ask("output", "training")
    held._over.set()  # type: ignore[union-attr]  # its machine is gone
    with mirrored(files, tmp_path, "training", QUICK):
        put(tmp_path, run=b"1")
    assert fetched(files, tmp_path / "read") == {"run": b"1"}


def test_one_that_was_silent_and_comes_back_changes_nothing(files: Files, tmp_path: Path) -> None:
    first = Mirror(files, tmp_path / "one")
    put(tmp_path / "one", run=b"1", more=b"1")
    first.send()
    second = Mirror(files, tmp_path / "two")
    put(tmp_path / "one", run=b"of the silent one")
    (tmp_path / "one/more").unlink()
    with pytest.raises(UserError, match=r"another process writes here now, and this one stops"):
        first.send()
    assert fetched(files, tmp_path / "read") == {"run": b"1", "more": b"1"}
    put(tmp_path / "two", run=b"2")
    second.send()
    assert fetched(files, tmp_path / "read") == {"run": b"2", "more": b"1"}


def test_one_that_begins_slowly_takes_nothing_from_who_took_over(
    files: Files, tmp_path: Path
) -> None:
    put(tmp_path / "one", run=b"1")
    first = Mirror(files, tmp_path / "one")
    put(tmp_path / "one", run=b"1")
    first.send()
    files.write(f"{FILES}/000002-killed/run", b"sent in vain")

    class Slow(Mirror):
        def _sweep(self, kept: Any) -> None:
            other = Mirror(files, tmp_path / "two")
            put(tmp_path / "two", run=b"2")
            other.send()
            super()._sweep(kept)

    with pytest.raises(UserError, match="another process writes here now"):
        Slow(files, tmp_path / "slow")
    assert fetched(files, tmp_path / "read") == {"run": b"2"}
    assert len(lying(files)) == 1


def test_of_many_that_begin_at_once_one_writes(files: Files, tmp_path: Path) -> None:
    start, told = threading.Barrier(4), []

    def begin(number: int) -> None:
        start.wait()
        try:
            mirror = Mirror(files, tmp_path / str(number))
            put(tmp_path / str(number), run=str(number).encode())
            mirror.send()
            told.append(number)
        except UserError:
            pass

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Who began later may have taken over from one that had ended; the last word is somebody's.
    assert told
    assert fetched(files, tmp_path / "read")["run"] in {str(number).encode() for number in told}


def test_a_reader_starts_again_when_the_writer_moves_on(files: Files, tmp_path: Path) -> None:
    mirror = Mirror(files, tmp_path / "one")
    put(tmp_path / "one", a=b"1", b=b"1")
    mirror.send()
    states: list[State] = []

    def place(state: State) -> Path:
        if not states:
            put(tmp_path / "one", a=b"2", b=b"2")
            mirror.send()
        states.append(state)
        return tmp_path / str(state.number)

    found = copy(files, place, lambda _: True)
    assert found is not None and len(states) == 2
    assert seen(found[1]) == {"a": b"2", "b": b"2"}


def test_what_is_damaged_or_foreign_is_told(files: Files, tmp_path: Path) -> None:
    files.write(HEADER, b"{}")
    with pytest.raises(UserError, match="a dataset root; choose another address"):
        Mirror(files, tmp_path / "one")
    files.remove(HEADER)
    assert copy(files, lambda _: tmp_path / "none", lambda _: True) is None
    mirror = Mirror(files, tmp_path / "one")
    put(tmp_path / "one", a=b"1")
    mirror.send()
    state = read_state(files)
    assert state is not None
    files.write(state.files["a"].at, b"2")
    with pytest.raises(UserError, match=r"not the bytes that were sent; remove outputs.json"):
        Mirror(files, tmp_path / "two")
    files.remove(state.files["a"].at)
    with pytest.raises(UserError, match=r"a file that outputs.json names is gone"):
        copy(files, lambda _: tmp_path / "three", lambda _: True)
    told = json.loads(files.read(STATE))
    del told["blake2b"]  # as of before there were checksums
    told["files"]["../../outside"] = told["files"].pop("a")
    files.write(STATE, json.dumps(told).encode())
    with pytest.raises(UserError, match="names a file outside its folder"):
        read_state(files)
    files.write(STATE, b"{")
    with pytest.raises(UserError, match="damaged"):
        read_state(files)
