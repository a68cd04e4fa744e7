"""The main job on the pocket suite, small: real models, real pictures, real scores."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from focusdpo.flows.generate.inference import read_about
from focusdpo.store.versions import open_version

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

SMALL = [
    "--set",
    "world.subjects=4",
    "--set",
    "compose={pair_rate: 0.6, triple_rate: 0.0, variants: 1}",
    "--set",
    "train.steps=4",
    "--set",
    "train.save_every=2",
    "--set",
    "held_out={singles: 2, pairs: 4, same_class_pairs: 1, triples: 1}",
]


def focusdpo(*arguments: str) -> dict[str, Any]:
    """The last line of a command that must end well."""
    ended = subprocess.run(
        [sys.executable, "-m", "focusdpo.flows.cli", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=2000,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
    found: dict[str, Any] = json.loads(ended.stdout.rstrip().splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("main") / "demo"
    return out, focusdpo("demo", "--out", str(out), "--prefect", *SMALL)


def test_the_demo_leaves_all_four_parts(demo: tuple[Path, dict[str, Any]]) -> None:
    out, told = demo
    assert told["build"]["pairs"] > 0 and told["train"]["steps"] == 4
    assert (out / "train/adapter/pytorch_lora_weights.safetensors").is_file()
    assert told["evaluate"]["scenes"] == 8
    page = (out / "report.html").read_text()
    assert "<html" in page and "data:image/png" in page
    for name in ("dataset/first.png", "evaluate/grid.png", "evaluate/scenes.parquet", "demo.json"):
        assert (out / name).stat().st_size > 0
    with Image.open(out / "dataset/first.png") as image:
        assert image.width > 100
    assert yaml.safe_load((out / "config.yaml").read_text())["train"]["steps"] == 4
    assert 0 < told["peak_gib"] < 4


def test_the_demo_again_computes_nothing(demo: tuple[Path, dict[str, Any]]) -> None:
    out, first = demo
    again = focusdpo("demo", "--out", str(out), *SMALL)
    assert again["build"]["made"] == {} and not again["build"]["new"]
    assert again["train"]["steps"] == 4 and again["evaluate"]["resumed"]
    assert again["evaluate"]["rows"] == first["evaluate"]["rows"]


def test_two_demos_are_equal_to_the_bit(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Without the engine, in another folder: the same shards, adapter and pictures."""
    out, _ = demo
    other = tmp_path / "other"
    focusdpo("demo", "--out", str(other), "--no-prefect", *SMALL)
    weights = "train/adapter/pytorch_lora_weights.safetensors"
    assert (other / weights).read_bytes() == (out / weights).read_bytes()
    names = [path.relative_to(out) for path in out.glob("dataset/shards/*.tar")]
    names += [path.relative_to(out) for path in out.glob("evaluate/images/*/*.png")]
    assert len(names) > 16
    for name in names:
        assert (other / name).read_bytes() == (out / name).read_bytes(), name


def test_generate_paints_with_and_without_the_adapter(
    demo: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, _ = demo
    subject = sorted(path for path in (out / "subjects").iterdir() if path.is_dir())[0]
    word = yaml.safe_load((subject / "subject.yaml").read_text())["class_name"]
    common = ["--reference", str(next(subject.glob("*.png"))), "--class-name", word]
    focusdpo("generate", *common, "--out", str(tmp_path / "base.png"))
    focusdpo(
        "generate",
        *common,
        *("--adapter", str(out / "train/adapter"), "--out", str(tmp_path / "adapted.png")),
    )
    base, adapted = (read_about(tmp_path / name) for name in ("base.png", "adapted.png"))
    assert base.fingerprint == adapted.fingerprint, "of the model below"
    assert base.adapter_digest is None and adapted.adapter_digest is not None
    assert (tmp_path / "base.png").read_bytes() != (tmp_path / "adapted.png").read_bytes()


@pytest.mark.parametrize("damage", ["truncate", "garbage"])
def test_a_damaged_adapter_is_named(
    damage: str, demo: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, _ = demo
    shutil.copytree(out / "train/adapter", tmp_path / "adapter")
    weights = tmp_path / "adapter/pytorch_lora_weights.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2] if damage == "truncate" else b"x" * 100)
    ended = subprocess.run(
        [sys.executable, "-m", "focusdpo.flows.cli", "evaluate", "--no-prefect"]
        + ["--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "e"), *SMALL[-2:]],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr[-3000:]
    assert "adapter" in ended.stderr and "Traceback" not in ended.stderr


def test_a_damaged_checkpoint_is_passed_over_or_named(
    demo: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Training interrupted with its newest checkpoint cut short: it must not go on from it."""
    out, _ = demo
    run = tmp_path / "train"
    shutil.copytree(out / "train", run)
    (run / "run.json").unlink()
    newest = sorted((run / "checkpoints").iterdir())[-1]
    for file in newest.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-100])
    ended = subprocess.run(
        [sys.executable, "-m", "focusdpo.flows.cli", "train", "--no-prefect", *SMALL[4:8]]
        + ["--root", str(out / "dataset"), "--out", str(run)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert "Traceback" not in ended.stderr
    if ended.returncode == 0:
        weights = "adapter/pytorch_lora_weights.safetensors"
        assert (run / weights).read_bytes() == (out / "train" / weights).read_bytes()
    else:
        assert ended.returncode == 2 and newest.name in ended.stderr


def test_the_dataset_of_the_demo_is_whole(demo: tuple[Path, dict[str, Any]]) -> None:
    out, _ = demo
    version = open_version(str(out / "dataset"))
    version.verify()
    for row in version.rows:
        sample = version.read(row)
        outside = ~sample.images.prior
        if row.source == "disrupt":
            assert (sample.images.win[outside] == sample.images.lose[outside]).all()
