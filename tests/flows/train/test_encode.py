"""Encoding beforehand, and what null means for looks and sample pictures, from the command line."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import toy_trainer
from plain_build import execute, prepare
from toy_root import HUES, Toy

from focusdpo.data_schemas.errors import UserError
from focusdpo.evaluation import validation
from focusdpo.flows import wiring
from focusdpo.flows.cli import main
from focusdpo.flows.config import BuildRun, EncodeRun, TrainRun
from focusdpo.flows.settings import resolve
from focusdpo.flows.train.encode import encoded_folder
from focusdpo.flows.train.run import _with_looks
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.store.versions import DatasetVersion, open_version

TRAIN = ("steps=2", "batch_pairs=2", "warmup=0", "mixed_precision=no", "tensorboard=false")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with pairs in both splits."""
    folder = tmp_path_factory.mktemp("made")
    toy = Toy(folder / "subjects", folder / "root")
    toy.add(**HUES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(wiring.SUITES, "pocket", "toy_trainer")
        wiring.resident_parts.cache_clear()
        execute(prepare(resolve(BuildRun, toy.tree(shard={"val_share": 0.5}))))
    wiring.resident_parts.cache_clear()
    return toy.root


@pytest.fixture
def built(toy: Toy, made: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetVersion:
    """A copy of its own of `made`."""
    monkeypatch.setitem(wiring.SUITES, "pocket", "toy_trainer")
    monkeypatch.setattr(validation, "_BASES", {})
    shutil.copytree(made, toy.root)
    return open_version(toy.root)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, dict[str, Any]]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out.rstrip().rpartition("\n")[2])
    return ended.value.code, found


def test_a_training_after_encode_encodes_nothing(
    toy: Toy,
    built: DatasetVersion,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep = ("--set", "train.source=both")
    keep += ("--set", f"train.encoded.folder={tmp_path / 'encoded'}")
    code, first = told(capsys, "encode", "--root", str(toy.root), *keep)
    assert code in (0, None) and first["pairs"] == len(built.rows) and first["made"] > 0
    code, again = told(capsys, "encode", "--root", str(toy.root), *keep)
    assert (again["made"], again["missing"]) == (0, 0)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("an encoder was asked")

    toy_trainer.backbone()  # its fingerprint asks the text encoder once
    for name in ("encode_images", "encode_prompts", "encode_references"):
        monkeypatch.setattr(FluxBackbone, name, never)
    changes = [word for one in TRAIN for word in ("--set", f"train.{one}")]
    out = str(tmp_path / "run")
    code, trained = told(
        capsys, "train", "--root", str(toy.root), "--out", out, "--no-prefect", *keep, *changes
    )
    assert code in (0, None) and trained["steps"] == 2


def test_room_for_a_part_is_told_and_used(
    toy: Toy, built: DatasetVersion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    keep = ("--set", f"train.encoded.folder={kept}", "--set", "train.encoded.gib=0.00002")
    keep += ("--set", "train.source=both")
    code, found = told(capsys, "encode", "--root", str(toy.root), *keep)
    assert code == 3 and 0 < found["missing"] <= found["pairs"]
    assert 0 < sum(file.stat().st_size for file in kept.glob("*/*")) <= 0.00002 * 2**30


def test_the_embedded_models_keep_nothing_on_disk_by_themselves(
    toy: Toy, built: DatasetVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = told(capsys, "encode", "--root", str(toy.root))
    assert code == 2 and "train.encoded.folder" in found["error"]


def checkpoints(root: str | Path, **train: Any) -> TrainRun:
    tree = {"preset": "flux-uno", "root": str(root), "out": "runs/one", "train": train}
    return resolve(TrainRun, tree)


@pytest.mark.parametrize(
    ("root", "wanted", "folder"),
    [
        ("data", "auto", "data/encoded"),
        ("data", "none", None),
        ("data", "/kept", "/kept"),
        ("s3://bucket/data", "auto", "/cache/shards-encoded"),
    ],
)
def test_where_encodings_lie(
    root: str, wanted: str, folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOCUSDPO_CACHE_DIR", "/cache/shards")
    run = checkpoints(root, encoded={"folder": wanted})
    found = encoded_folder(run)
    assert found == (None if folder is None else Path(folder))
    tree = {"preset": "flux-uno", "root": root, "train": {"encoded": {"folder": wanted}}}
    assert encoded_folder(resolve(EncodeRun, tree)) == found, "where the training looks"


def test_checkpoints_are_looked_at_by_themselves(built: DatasetVersion) -> None:
    config = _with_looks(checkpoints("data"), built)
    assert (config.validation.every, config.previews.every) == (100, 250)
    pocket = resolve(TrainRun, {"root": "data", "out": "runs/one"})
    config = _with_looks(pocket, built)
    assert (config.validation.every, config.previews.every) == (0, 0)
    with pytest.raises(UserError, match="expected score or held_out_accuracy"):
        _with_looks(checkpoints("data", validation={"metric": "identity"}), built)


def test_a_version_without_validation_pairs_is_told_of(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(wiring.SUITES, "pocket", "toy_trainer")
    execute(prepare(resolve(BuildRun, toy.tree(shard={"val_share": 0.0}))))
    version = open_version(toy.root)
    with caplog.at_level(logging.WARNING):
        assert _with_looks(checkpoints(toy.root), version).validation.every == 0
    assert "no pair in its validation split" in caplog.text
    for looks in ({"every": 50}, {"patience": 3}, {"keep": "best"}):
        with pytest.raises(UserError, match="shard.val_share above 0"):
            _with_looks(checkpoints(toy.root, validation=looks), version)
