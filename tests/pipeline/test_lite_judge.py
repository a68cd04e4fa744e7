"""The small judge of photographs: its regions and its encoder; on photographs where these are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.image_encoder import NETWORK, ImageEncoder
from focusdpo.pipeline.adapters.segmenters.saliency import SaliencySegmenter, _prepared, regions


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


@pytest.mark.parametrize("shape", [(1024, 1024), (320, 320), (90, 700), (333, 211)])
def test_regions_are_those_of_the_whole_map_scaled(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for width in (6.0, 12.0, 24.0):
        plane = ndimage.gaussian_filter(rng.normal(size=(320, 320)), width).astype(np.float32)
        plane = (plane - plane.min()) / (plane.max() - plane.min())
        labels, count = ndimage.label(ndimage.binary_opening(plane > 0.5, iterations=2))
        expected = []
        for number in range(1, count + 1):
            near = ndimage.binary_dilation(labels == number, iterations=2)
            soft = Image.fromarray(np.where(near, plane, np.float32(0)))
            expected.append(np.asarray(soft.resize(shape[::-1], Image.Resampling.BILINEAR)) > 0.5)
        found = regions(plane, shape)
        assert found, "some region is larger than a speck"
        for one in found:
            assert any((one.mask == other).all() for other in expected)


def test_a_picture_is_normalised_as_the_network_was_taught() -> None:
    picture = np.random.default_rng(1).integers(0, 200, (320, 320, 3)).astype(np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((picture / picture.max() - mean) / std).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(_prepared(picture), expected, rtol=1e-5, atol=1e-6)
    assert np.isfinite(_prepared(np.zeros_like(picture))).all()


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
