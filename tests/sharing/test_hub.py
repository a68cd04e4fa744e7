"""Uploads by huggingface_hub itself, to its protocol on loopback; no network, no secret shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kept_root
import pytest
import yaml
from datasets import load_dataset
from hub_server import TOKEN, Hub, hub_server

from focusdpo.flows.cli import main
from focusdpo.store.artefacts import Store
from focusdpo.store.versions import DatasetVersion

REPO = "team/pairs"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as running:
        yield running


@pytest.fixture
def version(tmp_path: Path) -> DatasetVersion:
    store = Store.open(tmp_path / "data")
    kept_root.register(store, "one", "two")
    return kept_root.build(store)


def export(hub: Hub, root: Path, *more: str, **environment: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, because huggingface_hub reads its settings once."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "focusdpo.flows.cli", "-v", "export", "dataset"),
            *("--root", str(root), "--to", "hub", "--repo", REPO, "--json", *more),
        ],
        env={**os.environ, **hub.environment, "HF_HOME": str(root.parent / "hf"), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.mark.slow
def test_a_dataset_is_published_in_one_commit(
    hub: Hub, version: DatasetVersion, tmp_path: Path
) -> None:
    done = export(hub, tmp_path / "data", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["url"].startswith(f"{hub.url}/datasets/{REPO}/commit/")
    repository = hub.repositories[REPO]
    assert repository.private and repository.kind == "dataset"
    assert repository.commits == [f"Dataset version {version.id}"]
    local = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert repository.files == local
    write(tmp_path / "copy", repository.files)
    loaded = load_dataset(str(tmp_path / "copy"), split="train", cache_dir=str(tmp_path / "cache"))
    assert set(loaded["pair_id"]) == version.ids()
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.slow
def test_the_same_again_changes_nothing_and_a_new_version_replaces_all(
    hub: Hub, version: DatasetVersion, tmp_path: Path
) -> None:
    assert export(hub, tmp_path / "data", "--public").returncode == 0
    first = dict(hub.repositories[REPO].files)
    assert not hub.repositories[REPO].private
    assert export(hub, tmp_path / "data").returncode == 0
    assert hub.repositories[REPO].files == first and len(hub.repositories[REPO].commits) == 1
    kept_root.build(version.store, setting=1)
    done = export(hub, tmp_path / "data")
    assert done.returncode == 0, done.stderr
    tars = {name for name in hub.repositories[REPO].files if name.endswith(".tar")}
    assert tars and not tars & set(first), "shards of the old version should be gone"
    assert len(hub.repositories[REPO].commits) == 2


@pytest.mark.parametrize(
    ("word", "status", "message"),
    [
        ("create", 403, "the token may not write there"),
        ("preupload", 404, "no such repository or owner"),
        ("commit", 409, "somebody else changed the repository"),
        ("validate-yaml", 400, "Invalid metadata in README.md"),
    ],
)
def test_what_the_hub_refuses_is_told(
    hub: Hub, version: DatasetVersion, tmp_path: Path, word: str, status: int, message: str
) -> None:
    hub.refuse[word] = status
    done = export(hub, tmp_path / "data")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert not any(one.commits for one in hub.repositories.values())


def test_a_wrong_token_is_told_and_not_shown(
    hub: Hub, version: DatasetVersion, tmp_path: Path
) -> None:
    done = export(hub, tmp_path / "data", HF_TOKEN="hf_wrong-and-secret")
    assert done.returncode == 2 and "the token is not valid" in done.stderr
    assert "hf_wrong" not in done.stdout + done.stderr


def test_no_network_is_told(hub: Hub, version: DatasetVersion, tmp_path: Path) -> None:
    done = export(hub, tmp_path / "data", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2 and "the Hub cannot be reached" in done.stderr
    assert "nothing was published" in done.stderr and "Traceback" not in done.stderr


def test_offline_and_signed_out_are_told_before_anything_is_made(
    hub: Hub, version: DatasetVersion, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = export(hub, tmp_path / "data", "--out", str(out), HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and "HF_HUB_OFFLINE is set" in done.stderr
    done = export(hub, tmp_path / "data", "--out", str(out), HF_TOKEN="")
    assert done.returncode == 2 and "run `hf auth login` or set HF_TOKEN" in done.stderr
    assert not out.exists() and not hub.seen


def test_the_cards_front_matter_is_what_the_hub_knows(
    version: DatasetVersion, tmp_path: Path
) -> None:
    """huggingface_hub reads it back as it stands."""
    from huggingface_hub import DatasetCard

    with pytest.raises(SystemExit) as stop:
        main(["export", "dataset", "--root", str(tmp_path / "data"), "--out", f"{tmp_path}/out"])
    assert not stop.value.code
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "other" and card.data.task_categories == ["text-to-image"]
    written = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert card.data.to_dict() == written


@pytest.mark.slow
def test_an_adapter_is_published(hub: Hub, tmp_path: Path) -> None:
    from pocket_adapter import pocket_adapter

    adapter = pocket_adapter(tmp_path / "run" / "adapter")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "focusdpo.flows.cli", "export", "adapter", "--json"),
            *("--adapter", str(adapter), "--to", "hub", "--repo", "team/adapter"),
        ],
        env={**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "hf")},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["team/adapter"]
    assert repository.kind == "model" and repository.private and len(repository.commits) == 1
    weights = "pytorch_lora_weights.safetensors"
    assert repository.files[weights] == (adapter / weights).read_bytes()
    assert {"README.md", "adapter.json", weights} == set(repository.files)
