"""build-dataset on a bucket gives the bytes of a local build: alone, failed by its store, and
beside another builder. Kills there are struck by tests/chaos."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from pathlib import Path

import in_process
import pytest
from s3_server import BUCKET, KEY_ID, SECRET, TOKEN, S3Server
from small_root import small_version
from toy_root import TOY_CLI, Toy

from focusdpo.store import versions
from focusdpo.store.artefacts import Store
from focusdpo.store.versions import Superseded

Capture = pytest.CaptureFixture[str]
SECRETS = (SECRET, TOKEN, KEY_ID)


@pytest.fixture
def root(s3: S3Server) -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/deep"


def below(s3: S3Server, root: str) -> dict[str, bytes]:
    """Every file of a root that a build decides, past the protocol; as `Toy.files`."""
    prefix = f"{root.removeprefix(f's3://{BUCKET}/')}/"
    found = {
        key.removeprefix(prefix): data
        for key, data in s3.objects(BUCKET).items()
        if key.startswith(prefix)
    }
    return {
        key: data
        for key, data in found.items()
        if not key.startswith(".")
        and key.rpartition("/")[2] not in ("metrics.prom", "build.json")
        and not (key.startswith("stages/") and key.endswith(".json"))
    }


def run(toy: Toy, root: str | Path, *more: str) -> subprocess.Popen[str]:
    toy.root = root  # type: ignore[assignment]
    command = [*TOY_CLI, *toy.arguments, "--json", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[dict[str, object], str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert not [secret for secret in SECRETS if secret in out + err]
    return json.loads(out.splitlines()[-1]), err


def run_here(toy: Toy, root: str, capsys: Capture) -> dict[str, object]:
    """The same in this process, where no process is what is tested."""
    toy.root = root  # type: ignore[assignment]
    code, out, err = in_process.run([*toy.arguments, "--json"], capsys)
    assert code == 0, err
    assert not [secret for secret in SECRETS if secret in out + err]
    return dict(json.loads(out.splitlines()[-1]))


def same(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    """Equal byte for byte, but for what tells when, how long and into which root."""
    told = {"manifest.json", "config.yaml", "lineage.parquet"}
    told.add("twin.tar")  # these once more
    assert one.keys() == other.keys()
    assert [k for k in one if one[k] != other[k] and k.rpartition("/")[2] not in told] == []


@pytest.fixture
def local(toy: Toy, toy_made: Path) -> dict[str, bytes]:
    """An undisturbed build on a local disk."""
    return Toy(toy.subjects, toy_made).files()


def test_a_bucket_gets_the_bytes_of_a_local_root(
    s3: S3Server, root: str, toy: Toy, local: dict[str, bytes], capsys: Capture
) -> None:
    s3.fail(refuse=3)  # the first requests of all
    result, _ = ended(run(toy, root))
    assert result["made"]["generate"] == 6  # type: ignore[index]
    same(below(s3, root), local)
    mine = root.rpartition("/")[2]  # the bucket holds other tests' roots, too
    assert not [key for key in s3.objects(BUCKET) if key.startswith(mine) and ".leases" in key]
    s3.door.seen.clear()
    again = run_here(toy, root, capsys)
    assert again["made"] == {} and again["new"] is False
    assert s3.door.seen["PUT"] == 1  # metrics.prom: when the last build ended
    for command in (["inspect", root, "--verify"], ["doctor", "--root", root]):
        _, out, err = in_process.run(command, capsys)
        assert root in out + err and "damaged" not in out + err
    page = Path(toy.subjects).parent / "page.html"
    code, _, err = in_process.run(["report", "--root", root, "--out", str(page)], capsys)
    assert code == 0, err
    assert page.stat().st_size > 10_000
    assert not [secret for secret in SECRETS if secret in page.read_text() + err]


@pytest.mark.parametrize("tars", [0, 25])
def test_a_store_that_stays_away_ends_the_build_without_a_version(
    s3: S3Server, root: str, toy: Toy, local: dict[str, bytes], tars: int,
    monkeypatch: pytest.MonkeyPatch, capsys: Capture,
) -> None:  # fmt: skip
    """In a sentence. A partition that it took is no reason for a version without it: the next run
    ends as an undisturbed one."""
    with monkeypatch.context() as patched:
        patched.setenv("FOCUSDPO_STORAGE_ATTEMPTS", "2")
        process = run(toy, root)
        while process.poll() is None and tars:
            if sum(key.endswith(".tar") for key in below(s3, root)) >= tars:
                break
            time.sleep(0.005)
        s3.fail(refuse=10**6)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 2 and "Traceback" not in err
    assert "failed 2 times, at last with " in err and "Run the same command again" in err
    assert json.loads(out.splitlines()[-1])["exit_code"] == 2
    assert not [key for key in below(s3, root) if key.startswith(("versions", "shards", "LATEST"))]
    s3.fail()
    if tars:  # without one it is a first build
        run_here(toy, root, capsys)
        same(below(s3, root), local)


@pytest.mark.parametrize("where", ["local", "s3"])
def test_two_builders_share_the_work_of_one_root(
    s3: S3Server, toy: Toy, tmp_path: Path, where: str, local: dict[str, bytes]
) -> None:
    """Each artefact is computed once, and both end with the same version."""
    root = tmp_path / "shared" if where == "local" else f"s3://{BUCKET}/{uuid.uuid4().hex}"
    builders = [run(toy, root) for _ in range(2)]
    results = [ended(builder)[0] for builder in builders]
    assert results[0]["version"] == results[1]["version"]
    same(toy.files() if where == "local" else below(s3, str(root)), local)
    for stage in ("generate", "score", "pair"):
        counts = [result["made"].get(stage, 0) for result in results]  # type: ignore[attr-defined]
        assert sum(counts) == 6, f"{stage}: {counts}"


def test_of_two_who_publish_neither_is_passed_over(s3: S3Server, root: str) -> None:
    """One whose lease ran out is told, and publishes again as the other's child."""
    first = small_version(root)
    store = Store.open(root)
    files = store.files
    real = files.swap

    def late(path: str, data: bytes, tag: str | None, *, sync: bool = True) -> str | None:
        if path == "LATEST":
            real("LATEST", b"another\n", tag)
        return real(path, data, tag, sync=sync)

    files.swap = late  # type: ignore[method-assign]
    with pytest.raises(Superseded, match="another builder published"):
        versions.publish(
            store, first.rows[:-1], subjects=first.subjects(), artefacts=[], config={}, rejects={}
        )
    assert files.read("LATEST") == b"another\n"
