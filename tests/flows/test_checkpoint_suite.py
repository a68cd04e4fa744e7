"""The whole job on checkpoints in their public layouts: small random weights, real photographs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import in_process
import numpy as np
import pytest
import tiny_suite
from PIL import Image

from focusdpo.data_schemas.candidates import Screened
from focusdpo.flows import checkpoint_suite
from focusdpo.flows.fit import supply
from focusdpo.pipeline.score import SCREENED
from focusdpo.store.artefacts import Store

PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "dreambooth"
SUBJECTS = ("dog", "cat", "rc_car")
GIB = 2**30
SMALL = supply.Machine("cuda", 0.5 * GIB, 0.5 * GIB, 64 * GIB, 64 * GIB, 64 * GIB)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """What a command says last; it must have ended well."""
    return lambda *arguments: in_process.told([str(one) for one in arguments], capsys)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command says on a card without room for it; it must end before the backbone is loaded
    (a build has found masks of photographs by then)."""

    def run(*arguments: Any) -> str:
        with pytest.MonkeyPatch.context() as patch:
            loaded: dict[Any, Any] = {}
            patch.setattr(supply, "this_machine", lambda device: SMALL)
            patch.setattr(checkpoint_suite, "_LOADED", loaded)
            code, _, said = in_process.run([str(one) for one in arguments], capsys)
        assert code == 2 and not {role for _, role in loaded} - {"segmenter"}, said
        return said

    return run


@pytest.fixture(scope="module", params=tiny_suite.KINDS)
def preset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_suite.write_preset(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two photographs each."""
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("the DreamBooth photographs are not beside this repository")
    folder = tmp_path_factory.mktemp("subjects")
    for name in SUBJECTS:
        (folder / name).mkdir()
        for file in sorted((PHOTOGRAPHS / name).glob("*.jpg"))[:2]:
            shutil.copy(file, folder / name / file.name)
        (folder / name / "subject.yaml").write_text("licence: CC BY 4.0\n")
    return folder


def test_doctor_passes(preset: Path, told: Callable[..., dict[str, Any]]) -> None:
    checks = told("doctor", "--preset", preset)["checks"]
    assert all(check["ok"] for check in checks)
    assert {check["name"].partition(":")[0] for check in checks} >= {
        "backbone", "inpainter", "segmenter", "identity", "clip", "safety", "judge_segmenter"
    }  # fmt: skip


def test_doctor_fails_where_the_work_does_not_fit(
    preset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supply, "this_machine", lambda device: SMALL)
    code, out, _ = in_process.run(["doctor", "--preset", str(preset), "--json"], capsys)
    checks = json.loads(out.rstrip().splitlines()[-1])["checks"]
    wrong = {check["name"]: check["told"] for check in checks if not check["ok"]}
    assert code == 3 and set(wrong) == {"fits: build-dataset", "fits: train", "fits: evaluate"}
    assert all("GiB in" in message and "cuda has 0.5" in message for message in wrong.values())


@pytest.mark.slow
def test_subjects_to_an_evaluated_adapter(
    preset: Path,
    photographs: Path,
    tmp_path: Path,
    told: Callable[..., dict[str, Any]],
    refused: Callable[..., str],
) -> None:
    common = ("--preset", preset, "--no-prefect")
    root, adapter = tmp_path / "root", tmp_path / "train" / "adapter"
    build = ("build-dataset", "--root", root, "--subjects", photographs, *common)
    assert re.search(r"build-dataset: \d\.\d GiB in .*, and cuda has 0\.5", refused(*build))
    made = told(*build)
    assert made["pairs"] > 0 and not made["failed"]
    again = told(*build)
    assert again["version"] == made["version"] and again["model_seconds"] == 0
    screened = [
        one
        for key in Store.open(root).keys("score")
        for one in Store.open(root).read("score", key, Screened, SCREENED)
    ]
    assert screened and all(0 < one.unsafe < 1 and not one.refused for one in screened)

    train = ("train", "--root", root, "--out", tmp_path / "train", *common)
    assert re.search(r"train: \d\.\d GiB in .*, and cuda has 0\.5", refused(*train))
    trained = told(*train)
    assert trained["steps"] == 2 and np.isfinite(trained["final"]["loss"])
    assert json.loads((adapter / "adapter.json").read_text())["licences"]

    evaluate = (
        "evaluate", "--adapter", adapter, "--out", tmp_path / "evaluate", *common,
        "--protocol", "dreambench-single/kosmosg", "--data", PHOTOGRAPHS,
        "--set", "dreambench.allow_partial=true", "--set", "dreambench.subjects=[dog, cat]",
        "--set", "dreambench.prompts=2", "--set", "dreambench.images_per_prompt=1",
    )  # fmt: skip
    assert re.search(r"evaluate: \d\.\d GiB in .*, and cuda has 0\.5", refused(*evaluate))
    found = told(*evaluate)
    values = {(row["metric"], row["model"]): row["mean"] for row in found["rows"]}
    assert -1 <= values["dino", "base"] <= 1 and -1 <= values["dino", "adapter"] <= 1

    picture = tmp_path / "picture.png"
    told(
        "generate", "--reference", photographs / "dog" / "00.jpg", "--class-name", "dog",
        "--out", picture, "--adapter", adapter, "--preset", preset,
    )  # fmt: skip
    with Image.open(picture) as image:
        assert image.size == (64, 64) and "a dog on" in image.info["focusdpo:prompt"]

    page = tmp_path / "report.html"
    told("report", "--out", page, "--root", root, "--train", tmp_path / "train")
    assert "Apache-2.0" in page.read_text()
