"""Points: what both adapters give is what the authors' own calls give on the same weights, and what
is kept of a picture changes no answer."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_detectors import (
    SIDE,
    original_detector,
    original_sam,
    pictures,
    write_detector_folder,
    write_original_detector,
    write_sam2_folder,
    write_sam_folder,
    write_text_folder,
)
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.models_config import PARTS
from focusdpo.pipeline.adapters.segmenters import grounding_sam, grounding_sam_hf
from focusdpo.pipeline.adapters.segmenters.detections import DetectionConfig
from focusdpo.pipeline.adapters.segmenters.grounded_segmenter import (
    GroundedSegmenter,
    MaskModel,
)
from focusdpo.pipeline.adapters.segmenters.original_sam import PackageSam
from focusdpo.pipeline.adapters.segmenters.transformers_sam import load_sam
from focusdpo.pipeline.parts import PointSegmenter

PROMPTS = {
    "one": ([[40, 30]], [1]),
    "edge": ([[0, 0]], [1]),
    "two": ([[40, 30], [60.5, 70.25]], [1, 1]),
    "not there": ([[40, 30], [70, 80], [5, 90]], [1, 0, 0]),
}
KINDS = ("package", "sam", "sam2")


def prompt(name: str) -> tuple[np.ndarray, np.ndarray]:
    points, labels = PROMPTS[name]
    return np.array(points, np.float64), np.array(labels, np.int64)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, MaskModel]:
    """SAM twice with the same weights, and SAM 2; a decoder of the weights that it starts with
    would draw much the same wherever the points are."""
    root = tmp_path_factory.mktemp("sams")
    sam = original_sam()
    sam2 = load_sam(write_sam2_folder(root / "sam2"), "f", "cpu")
    for name, weights in sam2.model.named_parameters():
        if name.startswith(("mask_decoder.", "prompt_encoder.")) and weights.dim() > 1:
            weights.mul_(6)
    return {
        "package": PackageSam(sam),
        "sam": load_sam(write_sam_folder(root / "sam", sam.state_dict()), "f", "cpu"),
        "sam2": sam2,
    }


def segmenter_of(mask_model: MaskModel) -> GroundedSegmenter:
    """No word is asked, so there is no detector."""
    return GroundedSegmenter(None, mask_model, DetectionConfig(), fingerprint="")


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("at", range(3))
def test_the_package_s_own_predictor_gives_the_same(models, name, at):
    """To the bit, at three sizes: SamPredictor.predict, of one point the proposal of the highest
    predicted IoU, of several the single mask."""
    from segment_anything import SamPredictor

    image, (points, labels) = pictures()[at], prompt(name)
    predictor = SamPredictor(models["package"].sam)
    predictor.set_image(image)
    masks, quality, _ = predictor.predict(points, labels, multimask_output=len(points) == 1)
    assert len(masks) == (3 if len(points) == 1 else 1)
    ours = segmenter_of(models["package"]).segment_points(image, points, labels)
    np.testing.assert_array_equal(ours, masks[quality.argmax()])


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("at", range(3))
def test_transformers_own_sam_processing_gives_the_same(models, name, at):
    """Its resizing is torchvision's where ours is Pillow's: a few pixels on the edge."""
    from transformers import SamImageProcessor, SamProcessor

    image, (points, labels) = pictures()[at], prompt(name)
    size = {"size": {"longest_edge": SIDE}, "pad_size": {"height": SIDE, "width": SIDE}}
    processor = SamProcessor(SamImageProcessor(**size))
    inputs = processor(
        images=image, input_points=[[points.tolist()]], input_labels=[[labels.tolist()]],
        return_tensors="pt",
    )  # fmt: skip
    assert inputs["input_points"].shape == (1, 1, len(points), 2)
    sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
    with torch.inference_mode():
        out = models["sam"].model(**inputs, multimask_output=len(points) == 1)
    masks = processor.image_processor.post_process_masks(
        out.pred_masks, *sizes, pad_size=size["pad_size"]
    )[0][0]
    ours = segmenter_of(models["sam"]).segment_points(image, points, labels)
    assert (ours != masks[int(out.iou_scores[0, 0].argmax())].numpy()).mean() < 0.005


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("at", range(3))
def test_transformers_own_sam2_processing_gives_the_same(models, name, at):
    """Its processor's points and masks, on pixels of our view: it resizes 8 bits, we floats."""
    from transformers import Sam2ImageProcessor, Sam2Processor

    mask_model, image, (points, labels) = models["sam2"], pictures()[at], prompt(name)
    processor = Sam2Processor(Sam2ImageProcessor(), target_size=SIDE)
    inputs = processor(
        input_points=[[points.tolist()]], input_labels=[[labels.tolist()]],
        original_sizes=[list(image.shape[:2])], return_tensors="pt",
    )  # fmt: skip
    sizes, pixels = inputs.pop("original_sizes"), mask_model.view.pixels(image)[None]
    one = len(points) == 1
    with torch.inference_mode():
        out = mask_model.model(pixel_values=pixels, **inputs, multimask_output=one)
        (known,), scaled = (
            mask_model.encode(pixels),
            mask_model.view.places(points, image.shape[:2]),
        )
        ours, other = (
            mask_model.propose_at(known, scaled, torch.from_numpy(own), one)[0]
            for own in (labels, 1 - labels)
        )
    torch.testing.assert_close(ours, out.pred_masks[0], rtol=1e-4, atol=1e-5)
    assert (other - ours).abs().max() > 0.01, "labels matter"
    masks = processor.post_process_masks(out.pred_masks, sizes)[0][0]
    mask = segmenter_of(mask_model).segment_points(image, points, labels)
    np.testing.assert_array_equal(mask, masks[int(out.iou_scores[0, 0].argmax())].numpy())


@pytest.mark.parametrize("name", PROMPTS)
def test_both_sams_give_equal_masks_on_the_same_weights(models, name):
    points, labels = prompt(name)
    for image in pictures():
        one, other = (
            segmenter_of(models[kind]).segment_points(image, points, labels)
            for kind in ("package", "sam")
        )
        assert (one != other).sum() <= 2


class Counting:
    """A mask model that counts the pictures it encodes."""

    def __init__(self, model: MaskModel) -> None:
        self._model, self.view, self.encoded = model, model.view, 0

    def encode(self, pixels: Tensor) -> list[Any]:
        self.encoded += len(pixels)
        return self._model.encode(pixels)

    def propose_at(self, *given: Any) -> tuple[Tensor, Tensor]:
        return self._model.propose_at(*given)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_encoded_once_and_answers_stay_the_same_to_the_bit(models, kind):
    counting = Counting(models[kind])
    kept, images = segmenter_of(counting), pictures()[:3]
    for _ in range(2):
        for image in images:
            for name in PROMPTS:
                fresh = segmenter_of(models[kind]).segment_points(image, *prompt(name))
                answer = kept.segment_points(image.copy(), *prompt(name))
                np.testing.assert_array_equal(answer, fresh)
    assert counting.encoded == 3


def test_what_is_kept_is_bounded_and_the_oldest_goes_first(models):
    counting = Counting(models["package"])
    segmenter, (points, labels) = segmenter_of(counting), prompt("one")
    images = [np.full((32, 32, 3), grey, np.uint8) for grey in range(6)]
    for image in images:
        segmenter.segment_points(image, points % 32, labels)
    assert counting.encoded == 6 and len(segmenter._pointed) == segmenter._pointed.MOST == 4
    segmenter.segment_points(images[2], points % 32, labels)
    assert counting.encoded == 6
    segmenter.segment_points(images[0], points % 32, labels)
    assert counting.encoded == 7
    # images[2] was asked for just now, so images[3] made room
    segmenter.segment_points(images[2], points % 32, labels)
    assert counting.encoded == 7


@given(
    st.sampled_from(KINDS),
    st.integers(0, 3),
    st.lists(st.tuples(st.floats(0, 79), st.floats(0, 95), st.booleans()), min_size=1, max_size=32),
)
def test_any_points_give_a_mask_of_the_picture_s_size(models, kind, at, given):
    image = pictures()[at]
    points = np.array([[x, y] for x, y, _ in given])
    labels = np.array([int(belongs) for *_, belongs in given])
    mask = segmenter_of(models[kind]).segment_points(image, points, labels)
    assert mask.dtype == np.bool_ and mask.shape == image.shape[:2]


@pytest.mark.parametrize(
    ("points", "labels"),
    [(np.zeros((0, 2)), np.zeros(0, int)), (np.zeros((2, 2)), np.ones(1, int)),
     (np.zeros(2), np.ones(1, int)), (np.zeros((1, 3)), np.ones(1, int))],
)  # fmt: skip
def test_points_without_labels_are_our_own_mistake(models, points, labels):
    with pytest.raises(ValueError, match="one label a point"):
        segmenter_of(models["package"]).segment_points(pictures()[0], points, labels)


def test_broken_weights_are_told(tmp_path):
    broken = load_sam(write_sam_folder(tmp_path / "sam"), "f", "cpu")
    broken.model.prompt_encoder.point_embed[1].weight.fill_(torch.nan)
    with pytest.raises(UserError, match="NaN"):
        segmenter_of(broken).segment_points(pictures()[0], *prompt("one"))


def test_what_the_modules_say_of_points_is_so(tmp_path):
    """Both built from files; bfloat16 too, whose encoder runs under autocast."""
    detector = write_detector_folder(tmp_path / "detector")
    sam = write_sam_folder(tmp_path / "sam")
    for dtype in ("float32", "bfloat16"):
        config = grounding_sam_hf.GroundingSamHfConfig(
            detector=str(detector), sam=str(sam), dtype=dtype
        )
        built = grounding_sam_hf.build(config, "cpu")
        assert isinstance(built, PointSegmenter) is grounding_sam_hf.TAKES_POINTS
        assert built.segment_points(pictures()[0], *prompt("two")).shape == (96, 96)
    own = {PARTS["segmenter"].module(kind) for kind in PARTS["segmenter"]}
    assert own == {grounding_sam.__name__, grounding_sam_hf.__name__}, "and there is no third"


@pytest.mark.skipif(
    importlib.util.find_spec("groundingdino") is None, reason="groundingdino-py is not installed"
)
def test_the_original_checkpoints_take_points(tmp_path):
    write_text_folder(tmp_path / "text")
    sam = original_sam()
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    write_original_detector(original_detector(tmp_path / "text"), tmp_path / "detector.pth")
    config = grounding_sam.GroundingSamConfig(
        detector=str(tmp_path), detector_file="detector.pth", sam=str(tmp_path / "sam.pth"),
        text_encoder=str(tmp_path / "text"),
    )  # fmt: skip
    built = grounding_sam.build(config, "cpu")
    assert isinstance(built, PointSegmenter) is grounding_sam.TAKES_POINTS
    for name in PROMPTS:
        want = segmenter_of(PackageSam(sam)).segment_points(pictures()[2], *prompt(name))
        np.testing.assert_array_equal(built.segment_points(pictures()[2], *prompt(name)), want)
