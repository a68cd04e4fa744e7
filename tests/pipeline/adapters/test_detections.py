"""What both segmentation adapters share: prompts, words of boxes, overlaps, views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_detectors import write_text_folder
from torchvision import transforms
from torchvision.ops import nms

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.segmenters.detections import (
    Boxes,
    DetectionConfig,
    boxes_of,
    choose_mask,
    corners_of,
    detections_of,
    inner_size,
    non_maximum,
    prompt_of,
    resized,
    token_spans,
    view_size,
)

SPREAD = [[0.2, 0.2, 0.2, 0.2], [0.8, 0.2, 0.2, 0.2], [0.2, 0.8, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(write_text_folder(tmp_path_factory.mktemp("text")))


def tokens_of(prompt, tokenizer):
    offsets = tokenizer(prompt.caption, return_offsets_mapping=True)["offset_mapping"]
    return token_spans(prompt, offsets)


def test_a_prompt_has_an_article_and_a_full_stop_for_each_word():
    prompt = prompt_of(["cat", "Old  Dog"])
    assert prompt.caption == "a cat. an old dog."
    assert [prompt.caption[a:b] for a, b in prompt.spans] == ["cat", "old dog"]
    assert prompt.words == ("cat", "Old  Dog")
    assert prompt_of([]).caption == ""


def test_a_full_stop_within_a_word_does_not_end_its_phrase():
    assert prompt_of(["St. Bernard?"]).caption == "a st bernard."


@pytest.mark.parametrize("words", [["?"], [" "], ["cat", "Cat."]])
def test_words_that_a_detector_cannot_tell_are_refused(words):
    with pytest.raises(UserError, match="class name"):
        prompt_of(words)


def test_a_word_owns_its_tokens_and_no_other_word_s(tokenizer):
    """Not by substring: "cat" also stands within "cat person", "dogs" is two tokens."""
    prompt = prompt_of(["cat", "cat person", "dogs"])
    # [CLS] a cat . a cat person . a dog ##s . [SEP]
    assert tokens_of(prompt, tokenizer) == [[2], [5, 6], [9, 10]]


def test_a_caption_that_would_be_cut_off_is_refused(tokenizer):
    with pytest.raises(UserError, match="text tokens"):
        tokens_of(prompt_of([" ".join(["dogs"] * 130)]), tokenizer)


def test_a_word_that_leaves_no_token_is_refused(tokenizer):
    with pytest.raises(UserError, match="tokenizer"):
        tokens_of(prompt_of(["\u200b"]), tokenizer)


def logit(p):
    return np.log(p) - np.log1p(-p)


def found(probabilities, boxes=SPREAD, words=("cat", "red disc"), **config):
    """Columns: [CLS] a cat . a red disc . [SEP] and one of padding."""
    table = np.full((len(probabilities), 10), 0.01, np.float32)
    for row, values in zip(table, probabilities, strict=True):
        for token, value in values.items():
            row[token] = value
    logits = np.concatenate([logit(table[:, :9]), np.full((len(table), 1), -np.inf)], axis=1)
    return boxes_of(
        logits.astype(np.float32),
        np.array(boxes[: len(table)], np.float32),
        prompt_of(words),
        [[2], [5, 6]],
        (100, 200),
        DetectionConfig(**config),
    )


def test_a_box_belongs_to_the_word_whose_token_fits_best():
    boxes = found([{2: 0.6, 5: 0.5}, {2: 0.4, 6: 0.9}, {5: 0.7, 6: 0.1}])
    assert boxes.words == ("red disc", "red disc", "cat")
    np.testing.assert_allclose(boxes.confidences, [0.9, 0.7, 0.6], atol=1e-6)
    np.testing.assert_allclose(
        boxes.corners, [[140, 10, 180, 30], [20, 70, 60, 90], [20, 10, 60, 30]], atol=1e-4
    )


def test_thresholds_of_box_and_text():
    """A box needs any token above the one, and a token of a word above the other."""
    boxes = found([{2: 0.34}, {2: 0.36}, {3: 0.9, 2: 0.24}, {3: 0.9, 2: 0.26}])
    np.testing.assert_allclose(boxes.confidences, [0.36, 0.26], atol=1e-6)
    assert found([{3: 0.9}, {1: 0.9}]).words == ()


def test_boxes_without_area_and_boxes_over_the_limit_are_left_out():
    boxes = [[0.5, 0.5, 0, 0.2], [1.3, 0.5, 0.2, 0.2], *SPREAD[:2]]
    rows = [{2: 0.9}, {2: 0.8}, {2: 0.6}, {2: 0.7}]
    np.testing.assert_allclose(found(rows, boxes).confidences, [0.7, 0.6], atol=1e-6)
    assert len(found(rows, boxes, max_boxes=1).words) == 1


def test_of_equal_boxes_the_better_word_stays():
    boxes = found([{2: 0.6}, {6: 0.7}], [[0.5, 0.5, 0.4, 0.4], [0.5, 0.51, 0.4, 0.4]])
    assert boxes.words == ("red disc",)


@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.5, 0.8]))
def test_suppression_equals_torchvision_s(seed, iou):
    rng = np.random.default_rng(seed)
    shares = rng.random((30, 4)).astype(np.float32)
    corners = corners_of(shares, (64, 48))
    corners = corners[((corners[:, 2:] - corners[:, :2]) > 0.5).all(axis=1)]
    scores = torch.linspace(1, 0, len(corners))
    assert non_maximum(corners, iou) == nms(torch.from_numpy(corners), scores, iou).tolist()


@given(st.integers(0, 10_000))
def test_corners_equal_torchvision_s_and_stay_within(seed):
    from torchvision.ops import box_convert

    shares = np.random.default_rng(seed).random((9, 4)).astype(np.float32)
    own = corners_of(shares, (30, 50))
    want = box_convert(torch.from_numpy(shares), "cxcywh", "xyxy") * torch.tensor([50, 30] * 2)
    want = torch.minimum(want.clamp(min=0), torch.tensor([50.0, 30.0] * 2))
    np.testing.assert_allclose(own, want.numpy(), atol=1e-4)


def test_the_most_trusted_mask_and_its_tight_box():
    masks = np.zeros((3, 6, 8), bool)
    masks[1, 2:4, 3:7] = True
    mask = choose_mask(masks, np.array([0.1, 0.9, 0.9], np.float32))
    assert mask is not masks[2] and mask.sum() == 8
    boxes = Boxes(("cat", "dog"), (0.123456, 0.9), np.zeros((2, 4), np.float32))
    (one,) = detections_of(boxes, [mask, masks[0]])
    assert (one.class_name, one.box, one.confidence) == ("cat", (3, 2, 7, 4), 0.1235)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (500, 500), (300, 1200), (800, 1000)])
def test_the_detector_s_view_equals_the_published_transform(size):
    """RandomResize([800], max_size=1333), ToTensor, Normalize: shorter side 800, torchvision."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    rows, columns = view_size(size, 800, 1333)
    if max(size) / min(size) * 800 <= 1333:
        assert min(rows, columns) == 800
    else:
        assert (rows, columns) == (333, 1332)
    small = transforms.functional.to_pil_image(image)
    small = transforms.functional.resize(small, [rows, columns])
    want = transforms.functional.normalize(
        transforms.functional.to_tensor(small), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    np.testing.assert_allclose(resized(image, (rows, columns)), want.numpy(), atol=2e-6)


@pytest.mark.parametrize("size", [(480, 640), (641, 480), (7, 5), (1200, 333)])
def test_sizes_round_as_in_the_published_code(size):
    from segment_anything.utils.transforms import ResizeLongestSide
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
        get_size_with_aspect_ratio,
    )

    assert inner_size(size, 1024) == ResizeLongestSide.get_preprocess_shape(*size, 1024)
    theirs = get_size_with_aspect_ratio(size, 800, 1333)
    assert np.abs(np.subtract(view_size(size, 800, 1333), theirs)).max() <= 1
