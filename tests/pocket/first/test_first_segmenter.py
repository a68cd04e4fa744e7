"""The segmenter: its part, its rules for words, its figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_scorers import arrays, save_random, small_scenes

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.first.bodies import box_of
from focusdpo.pocket.first.figures import iou, segmenter_figures
from focusdpo.pocket.first.identities import class_names
from focusdpo.pocket.first.recipes.samples import scene_batch
from focusdpo.pocket.first.recipes.segmenter import body_crops
from focusdpo.pocket.first.segmenter import (
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
    logits, offsets = part.net.bodies(torch.rand(2, 3, 64, 64))
    assert logits.shape == (2, 64, 64)
    assert offsets.shape == (2, 2, 64, 64)


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


def test_a_word_it_does_not_know_claims_what_no_other_explains() -> None:
    sure_cat = np.array([0.9, 0.05, 0.05], np.float32)
    # One of three words asked, expected in a third of the cases: the prior changes nothing.
    assert claims(sure_cat, ["cat", "owl"], INDEX, 1 / 3) == pytest.approx([0.9, 0.1])
    assert claims(sure_cat, ["fish", "owl"], INDEX, 1 / 3) == pytest.approx([0.05, 0.95])
    assert claims(sure_cat, ["owl", "whale"], INDEX, 1 / 3) == pytest.approx([1.0, 1.0])
    assert claims(sure_cat, ["cat", "object"], INDEX, 1 / 3)[1] == 1.0


def test_asked_words_are_expected() -> None:
    unsure = np.array([0.3, 0.1, 0.6], np.float32)
    shy, bold = (claims(unsure, ["cat", "fish"], INDEX, expect) for expect in (0.5, 0.9))
    assert shy[0] < bold[0]
    assert bold[0] / bold[1] == pytest.approx(3.0)
    assert claims(unsure, ["cat", "fish", "car"], INDEX, 0.3) == pytest.approx(list(unsure))


def test_fingerprint_follows_the_config(part: PocketSegmenter, tmp_path: Path) -> None:
    other = PocketSegmenter(tmp_path, SegmentConfig(confidence=0.5))
    assert other.fingerprint != part.fingerprint


def test_images_of_another_size_are_refused(part: PocketSegmenter) -> None:
    with pytest.raises(UserError, match="32, 32"):
        part.segment([np.zeros((32, 32, 3), np.uint8)], [["cat"]])


def test_body_crops_name_what_they_show() -> None:
    batch = scene_batch(3, 4, class_names("train"), "train")
    crops, names = body_crops(batch, 32, 10, 1)
    assert crops.shape == (10, 3, 32, 32)
    assert set(names) <= {one.class_name for row in batch.identities for one in row}


def test_iou_of_known_masks() -> None:
    first, second = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert iou(first, second) == 0
    first[:2], second[1:3] = True, True
    assert iou(first, second) == pytest.approx(1 / 3)


@pytest.mark.slow
def test_packaged_weights_reach_what_is_wanted() -> None:
    assert [figure for figure in segmenter_figures(PocketSegmenter()) if not figure.ok] == []
