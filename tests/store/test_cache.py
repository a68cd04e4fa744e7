"""Shards at URLs: a bounded folder of checked copies, whatever other processes and the store do."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_samples import shards_of
from s3_server import BUCKET, KEY_ID, SECRET, TOKEN, S3Server
from tiny_backbone import tiny_backbone

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.model.training.config import TrainConfig
from focusdpo.model.training.run import train
from focusdpo.store.addresses import files_of
from focusdpo.store.artefacts import Store
from focusdpo.store.cache import CacheConfig, RemoteShard, ShardCache, default_cache
from focusdpo.store.local import Files
from focusdpo.store.samples import Copies, Sample, read_fields

WIDE = 10**9


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@dataclass
class Remote:
    """The pairs of `pair_samples` in a bucket, and where their shards lie."""

    files: Files
    store: Store
    shards: dict[str, RemoteShard]
    rows: list[IndexRow]

    def samples(self, cache: ShardCache) -> list[Sample]:
        copies = Copies(cache, self.shards)
        return [Sample(row, self.store, copies) for row in self.rows]


@pytest.fixture
def remote(s3: S3Server, pair_samples: list[Sample]) -> Remote:
    files = files_of(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    shards = {}
    for path in shards_of(pair_samples):
        shards[path.name] = put(files, f"shards/{path.name}", path.read_bytes())
    s3.door.seen.clear()
    return Remote(files, Store(files), shards, [sample.row for sample in pair_samples])


def put(files: Files, path: str, data: bytes) -> RemoteShard:
    files.write(path, data)
    return RemoteShard(files, path, len(data), digest(data))


def held(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in cache.iterdir() if path.is_file()}


def fields(samples: list[Sample]) -> list[dict[str, bytes]]:
    return [read_fields(one.store, one.row, one.copies) for one in samples]


def test_remote_samples_are_the_local_ones_and_come_once(
    s3: S3Server, remote: Remote, pair_samples: list[Sample], tmp_path: Path
) -> None:
    assert fields(remote.samples(ShardCache(tmp_path, WIDE))) == fields(pair_samples)
    assert s3.door.seen == {"GET": 2}, "nothing is asked before it is needed"
    # A new process finds the copies.
    again = remote.samples(ShardCache(tmp_path, WIDE))
    assert fields(again) == fields(pair_samples) and s3.door.seen == {"GET": 2}


def test_too_much_for_the_folder_is_read_by_range(
    s3: S3Server, remote: Remote, pair_samples: list[Sample], tmp_path: Path
) -> None:
    """One of two shards fits: it stays, and samples of the other cost what they weigh."""
    limit = sum(shard.size for shard in remote.shards.values()) - 1
    samples, want = remote.samples(ShardCache(tmp_path, limit)), fields(pair_samples)
    s3.door.sent = 0
    for _ in range(3):
        for sample, wanted in zip(samples, want, strict=True):
            assert fields([sample]) == [wanted]
            assert sum(held(tmp_path).values()) <= limit
    assert 0 < s3.door.seen["GET"] <= 3 * len(samples)
    assert s3.door.sent < 3 * sum(one.row.size for one in samples) + limit


def test_a_sample_read_by_range_is_checked(remote: Remote, tmp_path: Path) -> None:
    two = remote.shards["two.tar"]
    samples = remote.samples(ShardCache(tmp_path, two.size + 20_000))
    fields(samples)  # the first shard fills the folder
    one, last = remote.shards["one.tar"], samples[-1]
    assert one.digest not in held(tmp_path)
    data = bytearray(remote.files.read(one.path))
    data[last.row.offset + 5] ^= 1
    remote.files.write(one.path, bytes(data))
    with pytest.raises(UserError, match=f"sample of pair {last.row.pair_id} is not what was"):
        last.read()


def test_a_shard_that_is_not_what_was_published_is_refused(remote: Remote, tmp_path: Path) -> None:
    two = remote.shards["two.tar"]
    remote.files.write(two.path, remote.files.read(two.path)[:-1] + b"x")
    with pytest.raises(UserError, match="two.tar is damaged: its bytes are not those"):
        remote.samples(ShardCache(tmp_path, WIDE))[0].read()
    assert held(tmp_path) == {}


@pytest.mark.parametrize("how", ["short", "flipped", "empty"])
def test_a_damaged_copy_is_fetched_anew(
    s3: S3Server, remote: Remote, tmp_path: Path, how: str
) -> None:
    """As a power cut leaves it; each process looks at a copy once before it trusts it."""
    want = fields(remote.samples(ShardCache(tmp_path, WIDE))[:1])
    copy = tmp_path / remote.shards["two.tar"].digest
    data = copy.read_bytes()
    copy.write_bytes(
        {"short": data[:-512], "flipped": bytes([data[0] ^ 1]) + data[1:], "empty": b""}[how]
    )
    s3.door.seen.clear()
    assert fields(remote.samples(ShardCache(tmp_path, WIDE))[:1]) == want
    assert s3.door.seen["GET"] == 1 and copy.read_bytes() == data


def test_a_shard_larger_than_the_folder_is_read_by_range_and_an_absent_one_is_named(
    remote: Remote, pair_samples: list[Sample], tmp_path: Path
) -> None:
    small = ShardCache(tmp_path, 1000)
    assert fields(remote.samples(small)) == fields(pair_samples) and held(tmp_path) == {}
    with pytest.raises(UserError, match="set FOCUSDPO_CACHE_GIB higher"):
        small.whole(remote.shards["two.tar"]).__enter__()
    remote.files.remove("shards/two.tar")
    with pytest.raises(UserError, match="two.tar is damaged: the file is missing"):
        remote.samples(ShardCache(tmp_path, WIDE))[0].read()


@pytest.mark.parametrize(
    "faults", [{"refuse": 3}, {"cut": 3}, {"short": 3}, {"refuse": 2, "short": 2}]
)
def test_a_store_that_fails_for_a_while_is_asked_again(
    s3: S3Server, remote: Remote, pair_samples: list[Sample], tmp_path: Path,
    faults: dict[str, int],
) -> None:  # fmt: skip
    s3.fail(**faults)
    found = fields(remote.samples(ShardCache(tmp_path, WIDE))[:1])
    assert found == fields(pair_samples[:1])


FETCH = """
import sys
from focusdpo.store.cache import RemoteShard, ShardCache
from focusdpo.store.addresses import files_of
root, path, size, digest = sys.argv[2:]
with ShardCache(sys.argv[1], 10**9).whole(
    RemoteShard(files_of(root), path, int(size), digest)
) as file:
    data = file.read()
"""


def fetcher(folder: Path, shard: RemoteShard) -> subprocess.Popen[str]:
    where = [shard.files.root, shard.path, str(shard.size), shard.digest]
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(folder), *where],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_several_processes_fetch_a_shard_once(s3: S3Server, tmp_path: Path) -> None:
    shard = put(files_of(f"s3://{BUCKET}/once"), "wanted.tar", bytes(2**20))
    s3.door.seen.clear()
    s3.fail(slow=0.2)
    processes = [fetcher(tmp_path, shard) for _ in range(3)]
    assert [process.communicate() and process.returncode for process in processes] == [0] * 3
    assert s3.door.seen["GET"] == 1


def test_kill_9_while_a_shard_comes_leaves_nothing_that_is_used(
    s3: S3Server, tmp_path: Path
) -> None:
    files, data = files_of(f"s3://{BUCKET}/killed"), bytes(2**20)
    address, other = put(files, "one.tar", data), put(files, "two.tar", data + bytes(512))
    s3.fail(slow=1.0, only="none")
    process = fetcher(tmp_path, address)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("*.part")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.suffix for path in tmp_path.iterdir() if path.is_file()] == [".part"]
    s3.fail()
    # Its room counts until somebody needs it.
    cache = ShardCache(tmp_path, len(data) + 600)
    with cache.whole(other) as file:
        assert file.read() == data + bytes(512)
    with cache.whole(address) as file:
        assert file.read() == data


def test_bytes_stay_readable_while_others_throw_copies_out(s3: S3Server, tmp_path: Path) -> None:
    files = files_of(f"s3://{BUCKET}/others")
    shards = [put(files, f"{i}.tar", bytes([i]) * 60_000) for i in range(4)]
    cache = ShardCache(tmp_path, 130_000)
    failures: list[str] = []

    def read(own: int) -> None:
        for turn in range(12):
            which = (own + turn) % 4
            with cache.whole(shards[which]) as file:
                if file.read() != bytes([which]) * 60_000:
                    failures.append(f"{own} {turn}")
            with FileLock(tmp_path / "locks" / "folder"):  # else a file may be seen under two names
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
    memory = files_of("memory://lru")
    contents = [bytes([at]) * size for at, size in enumerate(sizes)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = ShardCache(folder, limit)
        shards = [put(memory, f"{at}", data) for at, data in enumerate(contents)]
        last_used: list[int] = []
        for at in (one % len(sizes) for one in wanted):
            with cache.whole(shards[at]) as file:
                assert file.read() == contents[at]
            last_used = [one for one in last_used if one != at] + [at]
            while sum(sizes[one] for one in last_used) > limit:
                last_used.pop(0)
            assert held(folder) == {shards[one].digest: sizes[one] for one in last_used}


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
    remote: Remote, pair_samples: list[Sample], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], gib: str,
) -> None:  # fmt: skip
    """To the bit; also when the folder holds only one of the shards."""
    monkeypatch.setenv("FOCUSDPO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("FOCUSDPO_CACHE_GIB", gib)
    config = TrainConfig.model_validate(TRAINING)
    ways = {"local": pair_samples, "remote": remote.samples(default_cache())}
    for name, samples in ways.items():
        train(tiny_backbone(), samples, config, tmp_path / name, dataset_version="v1")
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
