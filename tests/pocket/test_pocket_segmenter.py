"""The segmenter: its part, its rules for words, its figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_scorers import arrays, save_random, small_scenes

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.figures import iou
from focusdpo.pocket.models.bodies import box_of
from focusdpo.pocket.models.segmenter import (
    PocketSegmenter,
    SegmentConfig,
    SegmenterModelConfig,
    SegmenterNet,
    claims,
)

TINY = SegmenterModelConfig(words=("cat", "fish", "car"), widths=(8, 16), depths=(1, 1), size=32)


@pytest.fixture
def part(tmp_path: Path) -> PocketSegmenter:
    torch.manual_seed(0)
    net = SegmenterNet(TINY)
    return PocketSegmenter(save_random("segmenter", net, TINY, tmp_path))


def test_maps_have_the_size_of_the_scene(part: PocketSegmenter) -> None:
    logits, centres, offsets = part.net.bodies(torch.rand(2, 3, 96, 96))
    assert logits.shape == centres.shape == (2, 96, 96)
    assert offsets.shape == (2, 2, 96, 96)


def test_detections_are_sorted_boxed_and_independent_of_the_batch(part: PocketSegmenter) -> None:
    scenes, _ = small_scenes(4)
    images = arrays(scenes.images)
    words = [["cat", "object"], ["fish", "owl"], ["car"], ["object"]]
    found = part.segment(images, words)
    for row, asked in zip(found, words, strict=True):
        assert {d.class_name for d in row} <= set(asked)
        confidences = [d.confidence for d in row]
        assert confidences == sorted(confidences, reverse=True)
        assert all(d.box == box_of(d.mask) and 0.25 <= d.confidence <= 1 for d in row)
    alone = part.segment(images[1:2], words[1:2])[0]
    assert [d.box for d in alone] == [d.box for d in found[1]]
    assert part.segment([], []) == []


INDEX = {"cat": 0, "fish": 1, "car": 2}


def fit(row: list[float], asked: list[str], expect: float = 1 / 3) -> list[float]:
    """Of a scene with one body."""
    config = SegmentConfig(expect=expect)
    return list(claims(np.array([row], np.float32), asked, INDEX, config)[0])


def test_a_word_it_does_not_know_claims_what_no_other_explains() -> None:
    # One of three words asked, expected in a third of the cases: the prior changes nothing. The
    # only body is the known word's best one, so that nothing is left of it.
    assert fit([0.9, 0.05, 0.05], ["cat", "owl"]) == pytest.approx([0.9, 0.0])
    assert fit([0.9, 0.05, 0.05], ["owl", "whale"]) == pytest.approx([1.0, 1.0])
    two = np.array([[0.9, 0.05, 0.05], [0.05, 0.05, 0.9]], np.float32)
    both = claims(two, ["cat", "owl"], INDEX, SegmentConfig(expect=1 / 3))
    np.testing.assert_allclose(both, [[0.9, 0.0], [0.05, 0.95]], atol=1e-6)


def test_asked_words_are_expected() -> None:
    unsure = [0.3, 0.1, 0.6]
    shy, bold = (fit(unsure, ["cat", "fish"], expect) for expect in (0.5, 0.9))
    assert shy[0] < bold[0]
    assert bold[0] / bold[1] == pytest.approx(3.0)
    assert fit(unsure, ["cat", "fish", "car"], 0.3) == pytest.approx(unsure)


def test_fingerprint_follows_the_config(part: PocketSegmenter, tmp_path: Path) -> None:
    other = PocketSegmenter(tmp_path, SegmentConfig(confidence=0.5))
    assert other.fingerprint != part.fingerprint


def test_images_of_another_size_are_refused(part: PocketSegmenter) -> None:
    with pytest.raises(UserError, match="32, 32"):
        part.segment([np.zeros((32, 32, 3), np.uint8)], [["cat"]])


def test_iou_of_known_masks() -> None:
    first, second = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert iou(first, second) == 0
    first[:2], second[1:3] = True, True
    assert iou(first, second) == pytest.approx(1 / 3)
