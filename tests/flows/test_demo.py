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
from in_process import run, told
from PIL import Image

from focusdpo.flows.generate.inference import read_about
from focusdpo.store.versions import open_version

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

Capture = pytest.CaptureFixture[str]
Demo = tuple[Path, dict[str, Any]]
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


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """As a user starts it: a process, with a Prefect server of its own."""
    out = tmp_path_factory.mktemp("main") / "demo"
    command = [sys.executable, "-m", "focusdpo.flows.cli", "demo", "--out", str(out)]
    ended = subprocess.run(
        [*command, "--prefect", "--json", *SMALL],
        capture_output=True,
        text=True,
        timeout=2000,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
    return out, json.loads(ended.stdout.rstrip().splitlines()[-1])


def test_the_demo_leaves_all_four_parts(demo: Demo) -> None:
    out, said = demo
    assert said["build"]["pairs"] > 0 and said["train"]["steps"] == 4
    assert (out / "train/adapter/pytorch_lora_weights.safetensors").is_file()
    assert said["evaluate"]["scenes"] == 8
    page = (out / "report.html").read_text()
    assert "<html" in page and "data:image/png" in page
    for name in ("dataset/first.png", "evaluate/grid.png", "evaluate/scenes.parquet", "demo.json"):
        assert (out / name).stat().st_size > 0
    with Image.open(out / "dataset/first.png") as image:
        assert image.width > 100
    assert yaml.safe_load((out / "config.yaml").read_text())["train"]["steps"] == 4
    assert 0 < said["peak_gib"] < 4


def test_the_demo_again_computes_nothing(demo: Demo, capsys: Capture) -> None:
    out, first = demo
    again = told(["demo", "--out", str(out), *SMALL], capsys)
    assert again["build"]["made"] == {} and not again["build"]["new"]
    assert again["train"]["steps"] == 4 and again["evaluate"]["resumed"]
    assert again["evaluate"]["rows"] == first["evaluate"]["rows"]


def test_two_demos_are_equal_to_the_bit(demo: Demo, tmp_path: Path, capsys: Capture) -> None:
    """Without the engine, in another folder: the same shards, adapter and pictures."""
    out, _ = demo
    other = tmp_path / "other"
    told(["demo", "--out", str(other), "--no-prefect", *SMALL], capsys)
    weights = "train/adapter/pytorch_lora_weights.safetensors"
    assert (other / weights).read_bytes() == (out / weights).read_bytes()
    names = [path.relative_to(out) for path in out.glob("dataset/shards/*.tar")]
    names += [path.relative_to(out) for path in out.glob("evaluate/images/*/*.png")]
    assert len(names) > 16
    for name in names:
        assert (other / name).read_bytes() == (out / name).read_bytes(), name


def test_generate_paints_with_and_without_the_adapter(
    demo: Demo, tmp_path: Path, capsys: Capture
) -> None:
    out, _ = demo
    subject = sorted(path for path in (out / "subjects").iterdir() if path.is_dir())[0]
    word = yaml.safe_load((subject / "subject.yaml").read_text())["class_name"]
    picture = ["generate", "--reference", str(next(subject.glob("*.png"))), "--class-name", word]
    told([*picture, "--out", str(tmp_path / "base.png")], capsys)
    adapter = str(out / "train/adapter")
    told([*picture, "--adapter", adapter, "--out", str(tmp_path / "adapted.png")], capsys)
    base, adapted = (read_about(tmp_path / name) for name in ("base.png", "adapted.png"))
    assert base.fingerprint == adapted.fingerprint, "of the model below"
    assert base.adapter_digest is None and adapted.adapter_digest is not None
    assert (tmp_path / "base.png").read_bytes() != (tmp_path / "adapted.png").read_bytes()


@pytest.mark.parametrize("damage", ["truncate", "garbage"])
def test_a_damaged_adapter_is_named(
    damage: str, demo: Demo, tmp_path: Path, capsys: Capture
) -> None:
    out, _ = demo
    shutil.copytree(out / "train/adapter", tmp_path / "adapter")
    weights = tmp_path / "adapter/pytorch_lora_weights.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2] if damage == "truncate" else b"x" * 100)
    given = ["--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "e"), *SMALL[-2:]]
    code, _, errors = run(["evaluate", "--no-prefect", *given], capsys)
    assert code == 2, errors[-3000:]
    assert "adapter" in errors and "Traceback" not in errors


def test_a_damaged_checkpoint_is_passed_over_or_named(
    demo: Demo, tmp_path: Path, capsys: Capture
) -> None:
    """Training interrupted with its newest checkpoint cut short: it must not go on from it."""
    out, _ = demo
    copy = tmp_path / "train"
    shutil.copytree(out / "train", copy)
    (copy / "run.json").unlink()
    newest = sorted((copy / "checkpoints").iterdir())[-1]
    for file in newest.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-100])
    given = [*SMALL[4:8], "--root", str(out / "dataset"), "--out", str(copy)]
    code, _, errors = run(["train", "--no-prefect", *given], capsys)
    assert "Traceback" not in errors
    if code == 0:
        weights = "adapter/pytorch_lora_weights.safetensors"
        assert (copy / weights).read_bytes() == (out / "train" / weights).read_bytes()
    else:
        assert code == 2 and newest.name in errors


def test_the_dataset_of_the_demo_is_whole(demo: Demo) -> None:
    out, _ = demo
    version = open_version(str(out / "dataset"))
    version.verify()
    for row in version.rows:
        sample = version.read(row)
        outside = ~sample.images.prior
        if row.source == "disrupt":
            assert (sample.images.win[outside] == sample.images.lose[outside]).all()
