"""Shards at URLs: a bounded folder of checked copies, whatever other processes and the store do."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import BUCKET, KEY_ID, SECRET, TOKEN, S3Server
from tiny_backbone import tiny_backbone

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.training.config import TrainConfig
from focusdpo.model.training.run import train
from focusdpo.store.addresses import with_digest
from focusdpo.store.cache import CacheConfig, ShardCache
from focusdpo.store.samples import index_shard, read_fields

WIDE = 10**9


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@pytest.fixture
def addresses(s3: S3Server, pair_shards: list[Path]) -> list[str]:
    return [put(s3, path.name, path.read_bytes()) for path in pair_shards]


def put(s3: S3Server, name: str, data: bytes) -> str:
    s3.put(BUCKET, name, data)
    return with_digest(f"s3://{BUCKET}/{name}", digest(data))


def held(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in cache.iterdir() if path.is_file()}


def test_remote_samples_are_the_local_ones_and_come_once(
    s3: S3Server, addresses: list[str], pair_shards: list[Path], tmp_path: Path
) -> None:
    cache = ShardCache(tmp_path, WIDE)
    ours = [entry for address in addresses for entry in index_shard(address, cache)]
    theirs = [entry for path in pair_shards for entry in index_shard(path)]
    assert [(e.key, e.digest, e.spans) for e in ours] == [
        (e.key, e.digest, e.spans) for e in theirs
    ]
    for a, b in zip(ours, theirs, strict=True):
        assert read_fields(a, cache) == read_fields(b)
    assert s3.door.seen["GET"] == len(addresses)
    # A new process knows what is in the shards from the folder alone.
    again = ShardCache(tmp_path, WIDE)
    assert [e for address in addresses for e in index_shard(address, again)] == ours
    assert read_fields(ours[0], again) == read_fields(theirs[0])
    assert s3.door.seen["GET"] == len(addresses)


def test_an_index_outlives_the_copy(s3: S3Server, addresses: list[str], tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, WIDE)
    want = index_shard(addresses[0], cache)
    (tmp_path / addresses[0].rpartition("=")[2]).unlink()
    s3.door.seen.clear()
    assert index_shard(addresses[0], ShardCache(tmp_path, WIDE)) == want
    assert s3.door.seen["GET"] == 0


@pytest.mark.parametrize("note", [b"", b"1 00\n[]", b"9 00\n[]"])
def test_a_damaged_index_is_made_anew(addresses: list[str], tmp_path: Path, note: bytes) -> None:
    cache = ShardCache(tmp_path, WIDE)
    want = index_shard(addresses[0], cache)
    (tmp_path / f"{addresses[0].rpartition('=')[2]}.index").write_bytes(note)
    assert index_shard(addresses[0], cache) == want


def test_too_much_for_the_folder_is_read_by_range(
    s3: S3Server, addresses: list[str], pair_shards: list[Path], tmp_path: Path
) -> None:
    """One of two shards fits: it stays, and samples of the other cost what they weigh."""
    limit = sum(path.stat().st_size for path in pair_shards) - 1
    cache = ShardCache(tmp_path, limit)
    ours = [entry for address in addresses for entry in index_shard(address, cache)]
    theirs = [entry for path in pair_shards for entry in index_shard(path)]
    s3.door.seen.clear()
    s3.door.sent = 0
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            assert read_fields(a, cache) == read_fields(b)
            assert sum(held(tmp_path).values()) <= limit
    assert 0 < s3.door.seen["GET"] <= 3 * len(ours)
    assert s3.door.sent < 3 * sum(e.extent[1] - e.extent[0] for e in ours)


def test_a_sample_read_by_range_is_checked(
    s3: S3Server, addresses: list[str], pair_shards: list[Path], tmp_path: Path
) -> None:
    data = pair_shards[0].read_bytes()
    cache = ShardCache(tmp_path, len(data) + 20_000)
    entry = index_shard(addresses[0], cache)[0]
    index_shard(addresses[1], cache)
    at = entry.extent[0] + 5
    s3.put(BUCKET, pair_shards[0].name, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    (tmp_path / entry.remote.name).unlink(missing_ok=True)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="damaged: bytes .* are not those of its index"):
        read_fields(entry, cache)


def test_a_shard_that_is_not_what_was_published_is_refused(
    s3: S3Server, pair_shards: list[Path], tmp_path: Path
) -> None:
    data = pair_shards[0].read_bytes()
    address = put(s3, "other.tar", data)
    s3.put(BUCKET, "other.tar", data[:-1] + b"x")
    with pytest.raises(UserError, match="other.tar is damaged: its bytes are not those"):
        index_shard(address, ShardCache(tmp_path, WIDE))
    assert held(tmp_path) == {}


@pytest.mark.parametrize("how", ["short", "flipped", "empty"])
def test_a_damaged_copy_is_fetched_anew(
    s3: S3Server, addresses: list[str], tmp_path: Path, how: str
) -> None:
    """As a power cut leaves it; each process looks at a copy once before it trusts it."""
    entry = index_shard(addresses[0], ShardCache(tmp_path, WIDE))[0]
    want = read_fields(entry, ShardCache(tmp_path, WIDE))
    copy = tmp_path / addresses[0].rpartition("=")[2]
    data = copy.read_bytes()
    copy.write_bytes(
        {"short": data[:-512], "flipped": bytes([data[0] ^ 1]) + data[1:], "empty": b""}[how]
    )
    s3.door.seen.clear()
    assert read_fields(entry, ShardCache(tmp_path, WIDE)) == want
    assert s3.door.seen["GET"] == 1 and copy.read_bytes() == data


def test_a_shard_larger_than_the_folder_and_an_absent_one_say_so(
    addresses: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="set FOCUSDPO_CACHE_GIB higher"):
        index_shard(addresses[0], ShardCache(tmp_path, 1000))
    with pytest.raises(UserError, match="nowhere.tar does not exist"):
        index_shard(f"s3://{BUCKET}/nowhere.tar", ShardCache(tmp_path, WIDE))


def test_an_address_without_digest_is_known_by_its_tag(
    s3: S3Server, pair_shards: list[Path], tmp_path: Path
) -> None:
    address = f"s3://{BUCKET}/changing.tar"
    cache = ShardCache(tmp_path, WIDE)
    for path in pair_shards:
        s3.put(BUCKET, "changing.tar", path.read_bytes())
        assert [e.key for e in index_shard(address, cache)] == [e.key for e in index_shard(path)]


@pytest.mark.parametrize(
    "faults", [{"refuse": 3}, {"cut": 3}, {"short": 3}, {"refuse": 2, "short": 2}]
)
def test_a_store_that_fails_for_a_while_is_asked_again(
    s3: S3Server, addresses: list[str], pair_shards: list[Path], tmp_path: Path,
    faults: dict[str, int],
) -> None:  # fmt: skip
    s3.fail(**faults)
    found = index_shard(addresses[0], ShardCache(tmp_path, WIDE))
    assert [e.spans for e in found] == [e.spans for e in index_shard(pair_shards[0])]


FETCH = """
import sys
from focusdpo.model.shard_cache import ShardCache
cache = ShardCache(sys.argv[1], int(sys.argv[2]))
for address in sys.argv[3:]:
    with cache.whole(cache.shard(address)) as file:
        data = file.read()
"""


def fetcher(folder: Path, limit: int, *addresses: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(folder), str(limit), *addresses],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_several_processes_fetch_a_shard_once(s3: S3Server, tmp_path: Path) -> None:
    address = put(s3, "wanted.tar", bytes(2**20))
    s3.fail(slow=0.2)
    processes = [fetcher(tmp_path, WIDE, address) for _ in range(3)]
    assert [process.communicate() and process.returncode for process in processes] == [0] * 3
    assert s3.door.seen["GET"] == 1


def test_kill_9_while_a_shard_comes_leaves_nothing_that_is_used(
    s3: S3Server, pair_shards: list[Path], tmp_path: Path
) -> None:
    data = pair_shards[0].read_bytes()
    address, other = put(s3, "one.tar", data), put(s3, "two.tar", data + bytes(512))
    s3.fail(slow=1.0, only="none")
    process = fetcher(tmp_path, WIDE, address)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("*.part")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.suffix for path in tmp_path.iterdir() if path.is_file()] == [".part"]
    s3.fail()
    # Its room counts until somebody needs it.
    cache = ShardCache(tmp_path, len(data) + 600)
    with cache.whole(cache.shard(other)) as file:
        assert file.read() == data + bytes(512)
    with cache.whole(cache.shard(address)) as file:
        assert file.read() == data


def test_bytes_stay_readable_while_others_throw_copies_out(s3: S3Server, tmp_path: Path) -> None:
    shards = [put(s3, f"{i}.tar", bytes([i]) * 60_000) for i in range(4)]
    cache = ShardCache(tmp_path, 130_000)
    failures: list[str] = []

    def read(own: int) -> None:
        for turn in range(12):
            which = (own + turn) % 4
            with cache.whole(cache.shard(shards[which])) as file:
                if file.read() != bytes([which]) * 60_000:
                    failures.append(f"{own} {turn}")
            if sum(held(tmp_path).values()) > 130_000:
                failures.append("too much")

    threads = [threading.Thread(target=read, args=(own,)) for own in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=8),
    limit=st.integers(400, 1500),
    wanted=st.lists(st.integers(0, 7), min_size=1, max_size=25),
)
def test_the_folder_keeps_what_was_used_last_within_its_bound(
    sizes: list[int], limit: int, wanted: list[int]
) -> None:
    memory = fsspec.filesystem("memory")
    contents = [bytes([at]) * size for at, size in enumerate(sizes)]
    for at, data in enumerate(contents):
        memory.pipe_file(f"/lru/{at}", data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = ShardCache(folder, limit)
        shards = [
            cache.shard(with_digest(f"memory://lru/{at}", digest(data)))
            for at, data in enumerate(contents)
        ]
        last_used: list[int] = []
        for at in (one % len(sizes) for one in wanted):
            with cache.whole(shards[at]) as file:
                assert file.read() == contents[at]
            last_used = [one for one in last_used if one != at] + [at]
            while sum(sizes[one] for one in last_used) > limit:
                last_used.pop(0)
            assert held(folder) == {shards[one].name: sizes[one] for one in last_used}


def test_settings_come_from_the_environment() -> None:
    given = {"FOCUSDPO_CACHE_DIR": "/x", "FOCUSDPO_CACHE_GIB": "0.5"}
    assert CacheConfig.from_environment(given) == CacheConfig(dir="/x", gib=0.5)
    with pytest.raises(UserError, match="FOCUSDPO_CACHE_GIB: .*greater than 0"):
        CacheConfig.from_environment({"FOCUSDPO_CACHE_GIB": "0"})


TRAINING = {
    "steps": 4,
    "batch_pairs": 4,
    "lr": 1e-3,
    "mixed_precision": "no",
    "tensorboard": False,
    "cache_mib": 0,
    "lora": {"rank": 2, "targets": ["to_q", "to_v"]},
    "objective": {"beta": 100.0},
}


@pytest.mark.parametrize("gib", ["1", "0.00011"])
def test_training_from_a_bucket_gives_the_adapter_of_a_local_root(
    addresses: list[str], pair_shards: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], gib: str,
) -> None:  # fmt: skip
    """To the bit; also when the folder holds only one of the shards."""
    monkeypatch.setenv("FOCUSDPO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FOCUSDPO_CACHE_GIB", gib)
    config = TrainConfig.model_validate(TRAINING)
    for name, shards in (("local", pair_shards), ("remote", addresses)):
        train(tiny_backbone(), shards, config, tmp_path / name, dataset_version="v1")
    local, remote = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in sorted((tmp_path / name / "adapter").iterdir())
        }
        for name in ("local", "remote")
    )
    assert local == remote and local
    assert sum(held(tmp_path / "cache").values()) <= float(gib) * 2**30
    told = "".join(capfd.readouterr())
    assert not any(secret in told for secret in (SECRET, TOKEN, KEY_ID))
