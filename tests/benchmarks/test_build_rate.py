"""`bench --gpu --build`: a build's stages timed, on small checkpoints and the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_suite
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.gpu.build_rate import COLUMNS, BuildRate, StageRate
from focusdpo.flows.build.stages import STAGES

Capture = pytest.CaptureFixture[str]


def subjects(folder: Path) -> Path:
    """Two that stand before white."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        pixels = np.full((96, 96, 3), 255, np.uint8)
        pixels[20:70, 20:70] = random.integers(0, 255, (50, 50, 3))
        Image.fromarray(pixels).save(folder / name / "0.png")
    return folder


def run(capsys: Capture, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["--gpu", "--build", "2", *words, "--json"])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_rates_are_of_the_clock_without_loading() -> None:
    stages = (
        StageRate("generate", 8, 4.0, 30.0, 2**30),
        StageRate("score", 12, 1.0, 2.0, None),
    )
    rate = BuildRate({"device": "NVIDIA X"}, "flux-uno", scenes=2, pairs=1, stages=stages)
    assert [one.per_hour for one in stages] == [7200, 43200]
    page = rate.markdown()
    assert page.startswith("# NVIDIA X: a build with preset flux-uno")
    assert "5.0 s and 32.0 s of loading: 1440.0 scenes and 720.0 pairs an hour" in page
    assert "| NVIDIA X | generate | 8 | 7,200 | 4.00 | 80.0% | 30.0 | 1.00 |" in page
    assert "| NVIDIA X | score | 12 | 43,200 | 1.00 | 20.0% | 2.0 | not measured |" in page


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiny_suite.KINDS)
def test_a_build_is_timed_by_stage(kind: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "models").mkdir()
    preset = str(tiny_suite.write_preset(kind, tmp_path / "models"))
    given = ("--preset", preset, "--set", f"subjects={subjects(tmp_path / 'subjects')}")
    out = tmp_path / "out"
    code, shown, err = run(capsys, *given, "--out", str(out))
    assert code == 0, err
    told = json.loads(shown.splitlines()[-1])["build"]
    assert [row["stage"] for row in told["stages"]] == [
        name for name in STAGES if name != "compose"
    ]
    painted = told["stages"][0]
    assert painted["pictures"] == 2 * told["scenes"] and painted["per_hour"] > 0
    assert told["facts"]["device"] == "cpu"
    page = (out / "gpu_build.md").read_text()
    assert page.startswith("# cpu: a build with preset preset") and " | ".join(COLUMNS) in page
    code, _, err = run(capsys, *given, "--out", str(out))
    assert code == 2 and "has results already; --build measures anew" in err


def test_without_photographs_models_or_a_gpu_it_ends_at_once(
    tmp_path: Path, capsys: Capture
) -> None:
    code, _, err = run(capsys, "--out", str(tmp_path / "out"))
    assert code == 2 and "give --preset flux-uno or another of checkpoints" in err
    with pytest.raises(SystemExit):
        main(["--build", "2", "--out", str(tmp_path)])
    assert "--build goes with --gpu" in capsys.readouterr().err
