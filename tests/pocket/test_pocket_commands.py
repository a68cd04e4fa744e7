"""`focusdpo pocket`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.commands.pocket import app
from focusdpo.pocket.classes import class_names


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_the_worlds_preview_shows_scenes_with_their_prompts(tmp_path: Path) -> None:
    told = run("world-preview", str(tmp_path / "w.png"), "--count", "8")
    assert "8 scenes" in told
    with Image.open(tmp_path / "w.png") as sheet:
        assert sheet.size == (8 * 198, 224)


def test_the_preview_names_every_class_that_was_taught(tmp_path: Path) -> None:
    told = run("world-preview", str(tmp_path / "w.png"), "--count", "1")
    assert set(told.splitlines()[1].split(", ")) == set(class_names("train"))


def test_scenes_have_their_words_under_them(tmp_path: Path) -> None:
    run("world-preview", str(tmp_path / "w.png"), "--count", "9")
    with Image.open(tmp_path / "w.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    scene, row = 192, 192 + 26 + 6
    assert pixels.shape == (2 * row, 8 * (scene + 6))
    words = pixels[scene : row - 6, :scene]
    assert 20 < (words < 100).sum() < words.size / 4
    assert (pixels[row + scene :, scene + 6 :] == 255).all(), "no words where there is no scene"


def test_a_model_is_trained_by_one_command_and_again_goes_on(tmp_path: Path) -> None:
    words = ["train", "autoencoder", "--out", str(tmp_path), "--json"]
    for setting in ("fit_batches=1", "decoder.steps=2", "decoder.batch=4"):
        words += ["--set", setting]
    first, again = (json.loads(run(*words).splitlines()[-1]) for _ in range(2))
    assert first["figures"] == again["figures"]
    assert (tmp_path / "weights" / "autoencoder.safetensors").exists()
    assert "96 x 96" in (tmp_path / "weights" / "autoencoder.md").read_text()


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="oracle: there are"):
        run("train", "oracle", "--out", str(tmp_path))
    with pytest.raises(UserError, match="takes no --set"):
        run("train", "all", "--set", "decoder.steps=1", "--out", str(tmp_path))
    with pytest.raises(UserError, match="judge, generator and all"):
        run("check", "oracle")
    with pytest.raises(UserError, match="no weights of pocket models"):
        run("check", "all", "--weights", str(tmp_path))
    with pytest.raises(UserError, match="missing"):
        run("check", "judge", "--weights", str(tmp_path), "--scenes", "1")


@pytest.mark.slow
def test_what_is_packaged_is_measured_and_what_lacks_is_said() -> None:
    """Below what is wanted stays one figure, which docs/pocket.md tells: two different subjects."""
    told = run("check", "all")
    assert "identity" in told and "generator" in told
    low = [line for line in told.splitlines() if line.startswith("LOW")]
    assert all("class recognised, two classes" in line for line in low), low


@pytest.mark.slow
def test_the_packaged_judge_finds_planted_faults_and_clears_true_renders() -> None:
    """24 scenes of each, so a scene more or less is 4 %: docs/pocket.md has the table of 200."""
    told = json.loads(run("check", "judge", "--scenes", "24", "--json").splitlines()[-1])
    assert len(told["rows"]) == 22
    for row in told["rows"]:
        assert row["failed"] <= 0.05 if row["fault"] == "none" else row["failed"] >= 0.9, row
