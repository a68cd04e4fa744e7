"""The small judge of photographs: its regions and its encoder; on photographs where these are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.image_encoder import NETWORK, ImageEncoder
from focusdpo.pipeline.adapters.segmenters.saliency import SaliencySegmenter, regions


def test_regions_of_a_map() -> None:
    plane = np.zeros((320, 320), np.float32)
    plane[40:140, 20:120] = 0.9
    plane[60:160, 200:300] = 0.8
    plane[250:262, 250:262] = 1.0  # a piece that was cut off
    plane[100:102, 100:220] = 0.9  # a thin bridge between the two
    found = regions(plane, (160, 640))
    assert [one.class_name for one in found] == ["", ""]
    left, right = sorted(found, key=lambda one: one.box)
    assert np.allclose(left.box, (40, 20, 240, 70), atol=8)
    assert np.allclose(right.box, (400, 30, 600, 80), atol=8)
    assert left.mask.shape == (160, 640) and not (left.mask & right.mask).any()
    assert left.confidence > right.confidence
    assert regions(np.zeros((320, 320), np.float32), (50, 50)) == []


def test_the_encoder_sees_the_subject_alone(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    weights = tmp_path / "encoder.safetensors"
    save_file(timm.create_model(NETWORK, pretrained=False).state_dict(), weights)
    encoder = ImageEncoder(weights, "--lite")
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 255, (2, 90, 120, 3)).astype(np.uint8)
    mask = np.zeros((90, 120), np.bool_)
    mask[20:70, 30:80] = True
    other = np.where(mask[..., None], first, second)
    vectors = encoder.embed([first, other, second], [mask] * 3)
    assert vectors.shape == (3, 1280)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert ImageEncoder(weights, "--lite").fingerprint == encoder.fingerprint
    (tmp_path / "wrong.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(UserError, match="--lite"):
        ImageEncoder(tmp_path / "wrong.safetensors", "--lite")


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "saliency.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match="no ONNX network"):
        SaliencySegmenter(tmp_path / "saliency.onnx", "--lite")
    with pytest.raises(UserError, match="is absent"):
        SaliencySegmenter(tmp_path / "gone.onnx", "--lite")


LITE, PHOTOGRAPHS = (os.environ.get(f"FOCUSDPO_TEST_{name}") for name in ("LITE", "PHOTOGRAPHS"))


@pytest.mark.slow
@pytest.mark.skipif(
    not (LITE and PHOTOGRAPHS),
    reason="FOCUSDPO_TEST_LITE and FOCUSDPO_TEST_PHOTOGRAPHS name no weights and photographs",
)
def test_planted_faults_are_found_on_photographs() -> None:
    import subprocess
    import sys

    assert LITE and PHOTOGRAPHS
    command = [sys.executable, "-m", "benchmarks.judges.lite_check", LITE, PHOTOGRAPHS]
    run = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "LOW" not in run.stdout and "FALSE ALARMS" not in run.stdout, run.stdout
