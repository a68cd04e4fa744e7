"""A root in an object store: the promises of `Files` on S3 and in memory, faults, secrets."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import threading
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import BUCKET, KEY_ID, SECRET, TOKEN, S3Server

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.addresses import hush_clients, split_address
from focusdpo.store.artefacts import Store
from focusdpo.store.local import Files, LocalFiles
from focusdpo.store.remote import Lost, RemoteConfig
from focusdpo.store.roots import files_of

SECRETS = (SECRET, TOKEN, KEY_ID)


@pytest.fixture
def root(s3: S3Server) -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/deep"


@pytest.fixture(params=["local", "memory", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    if request.param == "local":
        return LocalFiles(tmp_path / "root")
    if request.param == "memory":
        return files_of(f"memory://{uuid.uuid4().hex}")
    return files_of(request.getfixturevalue("root"))


# Files


def test_files_keep_their_promises(files: Files) -> None:
    assert not files.exists("a/x") and files.names("") == [] and files.listing("") == {}
    assert files.write("a/x", b"hello", replace=False)
    assert not files.write("a/x", b"other!", replace=False)
    assert files.read("a/x") == b"hello" and files.size("a/x") == 5
    assert (files.read("a/x", 1, 3), files.read("a/x", 4), files.read("a/x", 9, 3)) == (
        b"ell", b"o", b"",
    )  # fmt: skip
    assert files.read("a/x", 2, 0) == b"" and files.read("a/x", 3, 99) == b"lo"
    files.write("a/x", b"new")
    files.write("a/b/y", b"")
    files.write("z", b"z")
    assert files.names("") == [*([".tmp"] if files.local else []), "a", "z"]
    assert files.names("a") == ["b", "x"] and files.names("nowhere") == []
    assert files.listing("a") == {"b/y": 0, "x": 3} and files.listing("nowhere") == {}
    assert sorted(files.below("a")) == ["b/y", "x"] and files.below("nowhere") == []
    with pytest.raises(FileNotFoundError):
        files.read("a/nothing")
    files.remove("a/x")
    files.remove("a/x")
    assert not files.exists("a/x") and files.age("a/x") is None
    assert files.age("z") is not None and 0 <= (files.age("z") or 0) < 120
    assert files.clean() == 0


def test_a_file_that_is_not_ended_does_not_appear(files: Files) -> None:
    with pytest.raises(RuntimeError), files.create("a") as sink:
        sink.write(bytes(100))
        raise RuntimeError
    assert not files.exists("a")
    with files.create("a") as sink:
        sink.write(b"one")
        sink.write(b"two")
        assert not files.exists("a")
    with files.create("a", replace=False) as sink:
        sink.write(b"late")
    assert files.read("a") == b"onetwo"


def test_of_two_who_set_the_same_state_one_is_told_it_was_late(files: Files) -> None:
    assert files.tagged("p") is None
    first = files.swap("p", b"one", None)
    assert first and files.swap("p", b"uno", None) is None
    assert files.tagged("p") == (b"one", first)
    second = files.swap("p", b"two", first)
    assert second and files.swap("p", b"zwei", first) is None and files.read("p") == b"two"
    assert files.swap("nothing", b"x", second) is None
    files.remove("p", first)
    assert files.exists("p")
    files.remove("p", second)
    assert not files.exists("p")


def test_of_many_who_swap_at_once_none_is_lost(files: Files) -> None:
    """A list that six threads add to."""

    def add(own: int) -> None:
        for turn in range(3):
            while True:
                found = files.tagged("n")
                names = [*(json.loads(found[0]) if found else []), f"{own} {turn}"]
                if files.swap("n", json.dumps(names).encode(), found[1] if found else None):
                    break

    threads = [threading.Thread(target=add, args=(own,)) for own in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(json.loads(files.read("n"))) == [f"{o} {t}" for o in range(6) for t in range(3)]


@settings(max_examples=15)
@given(
    size=st.integers(0, 3000), cuts=st.lists(st.tuples(st.integers(0, 3500), st.integers(0, 99)))
)
def test_ranges_are_those_of_the_bytes(size: int, cuts: list[tuple[int, int]]) -> None:
    data = random.Random(size).randbytes(size)
    memory = files_of("memory://ranges")
    memory.write("x", data)
    assert all(memory.read("x", at, n) == data[at : at + n] for at, n in cuts)


# S3


def test_a_large_file_travels_in_parts(s3: S3Server, root: str) -> None:
    files = files_of(root)
    data = random.Random(0).randbytes(12 * 2**20)
    with files.create("big") as sink:
        sink.write(data)
    assert s3.door.seen["POST"] == 2 and s3.door.seen["PUT"] == 3
    assert files.read("big") == data
    s3.door.ranges = 0
    assert files.read("big", 11 * 2**20, 9) == data[11 * 2**20 :][:9] and s3.door.ranges == 1
    s3.fail(only="PUT", refuse=2)
    files.write("big", data[::-1])
    assert files.read("big") == data[::-1]


def test_a_large_file_under_a_condition_travels_whole(s3: S3Server, root: str) -> None:
    """Stores that decide between conditional PUTs need not do so between ended uploads."""
    files = files_of(root)
    data = random.Random(0).randbytes(12 * 2**20)
    assert files.write("big", data, replace=False)
    assert not files.write("big", data[::-1], replace=False)
    assert files.write("big", data, replace=False)  # the same bytes: nothing is amiss
    found = files.tagged("big")
    assert found and found[0] == data
    assert files.swap("big", data[::-1], found[1]) and not files.swap("big", data, found[1])
    assert files.read("big") == data[::-1] and s3.door.seen["POST"] == 0


def test_uploads_that_were_never_ended_are_swept_up_in_a_day(
    s3: S3Server, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(root)
    objects = files._objects  # type: ignore[attr-defined]
    for key in ("a", "b"):
        objects._call("create_multipart_upload", Key=objects._prefix + key)
    with monkeypatch.context() as patch:  # moto says of every upload that it began in 2010
        patch.setattr("focusdpo.store.remote.FOREIGN_TEMP_SECONDS", 1e10)
        assert files.clean() == 0
    assert files.clean() == 2 and files.clean() == 0


FAULTS = [
    {"refuse": 4},
    {"refuse": 3, "status": "500 Internal Server Error", "code": "InternalError"},
    {"cut": 4},
    {"cut": 3, "late": True},
    {"short": 3},
]


@pytest.mark.parametrize("faults", FAULTS)
def test_what_fails_for_a_while_is_asked_again(
    s3: S3Server, root: str, faults: dict[str, object]
) -> None:
    files = files_of(root)
    s3.fail(**faults)
    assert files.write("x", b"hello", replace=False), "lost answers do not turn a writer away"
    s3.fail(**faults)
    assert files.read("x") == b"hello"
    tag = files.tagged("x")
    s3.fail(**faults)
    assert tag and files.swap("x", b"other", tag[1])
    s3.fail(**faults)
    assert files.listing("") == {"x": 5}


def test_a_store_that_stays_away_is_named_after_so_many_tries(
    s3: S3Server, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOCUSDPO_STORAGE_ATTEMPTS", "3")
    files = files_of(root)
    s3.fail(refuse=99)
    with pytest.raises(Lost, match=r"x: failed 3 times, at last with SlowDown \(status 503\)"):
        files.write("x", b"")
    assert s3.door.faults.refuse == 96, "nobody below repeats"


def test_settings_come_from_the_environment() -> None:
    assert RemoteConfig.from_environment({"FOCUSDPO_STORAGE_ATTEMPTS": "3"}).attempts == 3
    with pytest.raises(UserError, match="FOCUSDPO_STORAGE_PART_MIB: .*greater than or equal to 5"):
        RemoteConfig.from_environment({"FOCUSDPO_STORAGE_PART_MIB": "1"})


# Roots


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("/a/b", ("", "/a/b")),
        ("a/b", ("", "a/b")),
        ("file:///a/b", ("", "/a/b")),
        ("s3://bucket/p", ("s3", "bucket/p")),
        (Path("s3://bucket/p"), ("s3", "bucket/p")),
        (Path("memory://x"), ("memory", "x")),
        ("odd:/name", ("", "odd:/name")),
    ],
)
def test_addresses(address: str | Path, parts: tuple[str, str]) -> None:
    assert split_address(address) == parts


def test_bad_roots_say_what_to_do(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="which bucket"):
        Store.open("s3://")
    with pytest.raises(UserError, match="'sftp' is not known to show a file only when"):
        Store.open("sftp://host/data")
    with pytest.raises(UserError, match="there is no bucket 'nowhere'"):
        Store.open("s3://nowhere/x")
    with pytest.raises(UserError, match="no dataset here"):
        Store.open(f"s3://{BUCKET}/empty", create=False)
    s3.put(BUCKET, "thesis/thesis.tex", b"x")
    with pytest.raises(UserError, match="not a FocusDPO dataset root.*thesis.tex"):
        Store.open(f"s3://{BUCKET}/thesis")
    with pytest.raises(UserError, match="an address holds no password") as caught:
        Store.open(f"s3://{KEY_ID}:{SECRET}@{BUCKET}/x")
    assert SECRET not in str(caught.value)
    s3.fail(refuse=1, status="403 Forbidden", code="AccessDenied")
    with pytest.raises(UserError, match=r"the store refuses \((AccessDenied|403)"):
        Store.open(f"s3://{BUCKET}/x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    with pytest.raises(UserError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        Store.open(f"s3://{BUCKET}/x")


def test_no_secret_is_logged_at_any_level(s3: S3Server, root: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    own = logging.getLogger()
    level = own.level
    own.addHandler(handler)
    own.setLevel(logging.DEBUG)
    try:
        files = files_of(root)
        files.write("x", b"hello")
        s3.fail(refuse=2)
        files.read("x")
        s3.fail(refuse=1, status="403 Forbidden", code="SignatureDoesNotMatch")
        with pytest.raises(UserError) as caught:
            files.read("x")
    finally:
        own.removeHandler(handler)
        own.setLevel(level)
    told = stream.getvalue() + repr(caught.value)
    assert "SlowDown" in told
    assert not [secret for secret in SECRETS if secret in told]


def test_a_lost_connection_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    hush_clients()
    log = logging.getLogger("asyncio")
    for error in (ConnectionResetError("closing transport"), KeyError("a mistake")):
        log.error("Task exception was never retrieved\nfuture: <Task>", exc_info=error)
    log.error("Executing took 3 s")
    told = [record.exc_info and record.exc_info[0] for record in caplog.records]
    assert told == [KeyError, None]
