"""Grounding DINO and SAM through transformers: records, same-class scenes, what is checked,
fingerprinted and refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_detectors import (
    original_sam,
    pictures,
    write_detector_folder,
    write_sam2_folder,
    write_sam_folder,
)

from focusdpo.data_schemas.candidates import Sampled
from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.segmenters import grounding_sam_hf as adapter
from focusdpo.pipeline.adapters.segmenters.detections import (
    DetectionConfig,
    resized,
    view_size,
)
from focusdpo.pipeline.adapters.segmenters.grounded_segmenter import (
    GroundedSegmenter,
    SquareView,
)
from focusdpo.pipeline.adapters.segmenters.original_sam import PackageSam
from focusdpo.pipeline.segment import SegmentConfig, segment

LOOSE = DetectionConfig(
    box_threshold=0.05, text_threshold=0.05, shorter_side=96, longer_side=160, max_boxes=6
)
WORDS = [("cat", "red disc"), ("person",), ("dogs", "cat"), ("old cat", "disc", "dog")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The detector's, SAM's (weights of segment-anything's model) and SAM 2's folder."""
    root = tmp_path_factory.mktemp("hf")
    return (
        write_detector_folder(root / "detector"),
        write_sam_folder(root / "sam", original_sam().state_dict()),
        write_sam2_folder(root / "sam2"),
    )


def config_of(folders, sam=1, **fields):
    return adapter.GroundingSamHfConfig(
        detector=str(folders[0]), sam=str(folders[sam]), **({"detection": LOOSE} | fields)
    )


@pytest.fixture(scope="module")
def segmenter(folders):
    return adapter.build(config_of(folders), "cpu")


def same_records(a, b, pixels=0):
    """Equal but for so many pixels of a mask."""
    assert [[d.class_name for d in row] for row in a] == [[d.class_name for d in row] for row in b]
    for one, other in zip(sum(a, []), sum(b, []), strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1.1e-4)
        assert (one.mask != other.mask).sum() <= pixels
        if not pixels:
            assert one.box == other.box


def test_records_are_what_a_stage_expects(folders, segmenter):
    images = pictures()
    records = segmenter.segment(images, WORDS)
    assert sum(map(len, records)) >= 8
    for image, words, row in zip(images, WORDS, records, strict=True):
        assert [d.confidence for d in row] == sorted((d.confidence for d in row), reverse=True)
        for one in row:
            assert one.class_name in words and 0.05 <= one.confidence <= 1
            assert one.mask.dtype == bool and one.mask.shape == image.shape[:2]
            x0, y0, x1, y1 = one.box
            assert one.mask[y0:y1, x0:x1].sum() == one.mask.sum()
    assert segmenter.fingerprint == adapter.fingerprint(config_of(folders))
    models = (segmenter.detector.model, segmenter.mask_model.model)
    assert not any(p.requires_grad for m in models for p in m.parameters())
    assert not any(m.training for m in models)


def test_an_image_s_records_do_not_depend_on_its_batch(folders, segmenter):
    alone = adapter.build(config_of(folders, batch=1, mask_batch=1), "cpu")
    whole = segmenter.segment(pictures(), WORDS)
    same_records(whole, alone.segment(pictures(), WORDS), pixels=1)
    same_records(whole[::-1], segmenter.segment(pictures()[::-1], WORDS[::-1]), pixels=1)


def test_nothing_asked_nothing_found(segmenter):
    assert segmenter.segment([], []) == []
    first = segmenter.segment(pictures()[:2], [(), ("cat",)])
    assert first[0] == [] and first[1]


def test_boxes_and_words_equal_transformers_own_post_processing(folders, segmenter):
    """On one-token words, where its phrases are words, and without suppression."""
    from transformers import GroundingDinoImageProcessorPil, GroundingDinoProcessor

    config = LOOSE.model_copy(update={"nms_iou": 1.0, "max_boxes": 99, "box_threshold": 0.2})
    ours = GroundedSegmenter(
        segmenter.detector, segmenter.mask_model, config, fingerprint=""
    ).boxes(pictures()[:1], [("cat", "disc")])[0]
    detector = segmenter.detector
    processor = GroundingDinoProcessor(GroundingDinoImageProcessorPil(), detector.tokenizer)
    image = pictures()[0]
    view = resized(image, view_size(image.shape[:2], 96, 160))
    text = detector.tokenizer("a cat. a disc.", return_tensors="pt")
    with torch.inference_mode():
        out = detector.model(pixel_values=torch.from_numpy(view)[None], **text)
    theirs = processor.post_process_grounded_object_detection(
        out, threshold=0.2, text_threshold=0.05, target_sizes=[image.shape[:2]]
    )[0]
    order = theirs["scores"].argsort(descending=True, stable=True)
    # Its score may come from a token of no word; where it does, ours is lower.
    assert len(ours.words) == len(order) > 3
    best = dict(zip(ours.confidences, ours.corners, strict=True))
    matched = 0
    for at in order:
        score, box = float(theirs["scores"][at]), theirs["boxes"][at].numpy()
        near = min(best, key=lambda c: np.abs(best[c] - np.clip(box, 0, 96)).max())
        np.testing.assert_allclose(best[near], np.clip(box, 0, 96), atol=1e-3)
        assert near <= score + 1e-5
        matched += abs(near - score) < 1e-5
    assert matched >= 3


@pytest.mark.parametrize("multimask", [False, True])
def test_sam_of_transformers_and_of_segment_anything_give_equal_records(
    folders, segmenter, multimask
):
    """The same weights; a pixel on the edge of a mask may fall on either side of 0."""
    config = LOOSE.model_copy(update={"multimask": multimask})
    detector = segmenter.detector
    theirs = GroundedSegmenter(detector, PackageSam(original_sam()), config, fingerprint="")
    ours = GroundedSegmenter(detector, segmenter.mask_model, config, fingerprint="")
    same_records(ours.segment(pictures(), WORDS), theirs.segment(pictures(), WORDS), pixels=2)


def test_sam_equals_the_package_s_own_predictor(segmenter):
    from segment_anything import SamPredictor

    sam, image = original_sam(), pictures()[1]
    (boxes,) = segmenter.boxes([image], [("cat", "disc")])
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    corners = torch.from_numpy(boxes.corners)
    corners = predictor.transform.apply_boxes_torch(corners, image.shape[:2])
    want, _, _ = predictor.predict_torch(None, None, boxes=corners, multimask_output=False)
    ours = GroundedSegmenter(segmenter.detector, PackageSam(sam), LOOSE, fingerprint="")
    (masks,) = ours._masks([image], [boxes])
    assert len(masks) > 2
    for mask, other in zip(masks, want[:, 0].numpy(), strict=True):
        assert (mask != other).sum() <= 1


@pytest.mark.parametrize("multimask", [False, True])
def test_sam2_equals_transformers_own_processing(folders, multimask):
    from transformers import Sam2ImageProcessor, Sam2Processor

    detection = LOOSE.model_copy(update={"multimask": multimask})
    segmenter = adapter.build(config_of(folders, sam=2, detection=detection), "cpu")
    assert isinstance(segmenter.mask_model.view, SquareView)
    image = pictures()[1]
    (boxes,) = segmenter.boxes([image], [("cat", "disc")])
    size = {"height": 128, "width": 128}
    processor = Sam2Processor(Sam2ImageProcessor(size=size), target_size=128)
    inputs = processor(images=image, input_boxes=[boxes.corners.tolist()], return_tensors="pt")
    model = segmenter.mask_model.model
    with torch.inference_mode():
        out = model(**inputs.to(torch.float32), multimask_output=multimask)
    whole = processor.post_process_masks(out.pred_masks, inputs["original_sizes"])[0].numpy()
    (masks,) = segmenter._masks([image], [boxes])
    best = out.iou_scores[0].argmax(dim=1)
    for mask, proposals, at in zip(masks, whole, best, strict=True):
        # It resizes 8 bits where ours resizes floats.
        assert (mask != proposals[at]).mean() < 0.02


def test_the_image_part_of_a_sam2_video_folder_is_read(folders, tmp_path):
    """facebook/sam2.1-hiera-* hold the video model."""
    video = write_sam2_folder(tmp_path / "video", video=True)
    config = config_of((folders[0], video))
    assert "Sam2VideoModel" in adapter.checks(config)["segmenter: SAM"]()
    segmenter = adapter.build(config, "cpu")
    saved = load_file(video / "model.safetensors")
    decoder = segmenter.mask_model.model.mask_decoder.state_dict()
    for name, tensor in decoder.items():
        torch.testing.assert_close(tensor, saved[f"mask_decoder.{name}"], rtol=0, atol=0)
    assert segmenter.segment(pictures()[:1], WORDS[:1])[0]


def test_bfloat16_finds_much_the_same(folders, segmenter):
    coarse = adapter.build(config_of(folders, dtype="bfloat16"), "cpu")
    fine, rough = (s.boxes(pictures()[:1], [("cat", "disc")])[0] for s in (segmenter, coarse))
    assert coarse.detector.model.dtype == torch.float32
    assert fine.confidences[0] == pytest.approx(rough.confidences[0], abs=0.1)
    assert coarse.segment(pictures()[:1], WORDS[:1])[0]


def test_numbers_that_are_not_finite_are_an_error(folders):
    broken = adapter.build(config_of(folders), "cpu")
    broken.detector.model.model.text_projection.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="NaN"):
        broken.segment(pictures()[:1], [("cat",)])


def test_subjects_of_one_word_are_assigned_by_identity(segmenter, toy, world):
    """Two discs and a scene of two disc subjects: who is where follows from who looks like whom,
    not from the word, the order or the confidence."""
    canvas = toy.picture([("disc", 0, 0), ("disc", 240, 2)])
    world.images["generate/k/c0.png"] = canvas
    config = SegmentConfig(min_confidence=0.05, min_area=0.001, max_overlap=0.99)

    def run(*names):
        scene = world.scene(*names)
        sampled = [Sampled(id="c0", scene_id=scene.id, index=0, seed=0, image="generate/k/c0.png")]
        output = segment(
            [scene],
            world.subjects,
            sampled,
            world.read,
            segmenter,
            toy.Identity(),
            config,
            "segment/k",
        )
        keep = {i.subject_id: output.images[i.mask.rpartition("/")[2]] for i in output.records}
        return {i.subject_id: i for i in output.records}, keep

    found, masks = run("red", "blue")
    assert all(one.found != "missing" and one.class_name == "disc" for one in found.values())
    swapped, masks_swapped = run("blue", "red")
    for name in ("red", "blue"):
        assert found[name].box == swapped[name].box
        np.testing.assert_array_equal(masks[name], masks_swapped[name])
    assert (masks["red"] != masks["blue"]).any()
    hues = {name: canvas[mask > 0].mean(axis=0) for name, mask in masks.items()}
    redder = {name: hue[0] - hue[2] for name, hue in hues.items()}
    assert redder["red"] > redder["blue"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"batch": 1}, True),
        ({"mask_batch": 1}, True),
        ({"dtype": "bfloat16"}, False),
        ({"detection": LOOSE.model_copy(update={"nms_iou": 0.7})}, False),
        ({"detection": LOOSE.model_copy(update={"multimask": True})}, False),
        ({"sam": 2}, False),
    ],
)
def test_the_fingerprint_knows_what_changes_a_result(folders, change, same):
    first = adapter.fingerprint(config_of(folders))
    assert (adapter.fingerprint(config_of(folders, **change)) == first) is same


def test_checks_say_what_was_found(folders):
    rows = adapter.checks(config_of(folders))
    assert "GroundingDinoForObjectDetection" in rows["segmenter: Grounding DINO"]()
    assert "SamModel" in rows["segmenter: SAM"]()
    assert "Sam2Model" in adapter.checks(config_of(folders, sam=2))["segmenter: SAM"]()
    assert [field for field, _, _ in adapter.sources(config_of(folders))] == [
        "models.segmenter.detector",
        "models.segmenter.sam",
    ]


def _another_class(folder):
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"architectures": ["BertModel"]}))


def _a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut_off(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _a_lost_shard(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def _tensors(change):
    def edit(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def _another_vocabulary(folder):
    from transformers import BertTokenizer

    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", ".")
    BertTokenizer(vocab={word: at for at, word in enumerate(words)}).save_pretrained(folder)


WRONG = [
    (0, _another_vocabulary, "not that of bert-base-uncased"),
    (0, _another_class, "BertModel, expected GroundingDino"),
    (0, _a_pickle, "pickle"),
    (0, _cut_off, "promises"),
    (0, _a_lost_shard, "model-00002-of-00002"),
    (0, lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
    (0, _tensors(lambda s: s.pop("model.text_projection.weight")), "not the weights of"),
    (0, _tensors(lambda s: s.pop("model.enc_output.weight")), "missing.*enc_output"),
    (0, _tensors(lambda s: s.update(more=torch.zeros(1))), "not expected.*more"),
    (0, _tensors(lambda s: s.update({"model.level_embed": torch.zeros(1)})), "another shape"),
    (1, _another_class, "BertModel, expected Sam"),
    (1, _a_pickle, "pickle"),
    (1, _tensors(lambda s: s.pop("vision_encoder.pos_embed")), "missing.*pos_embed"),
]


@pytest.mark.parametrize(("which", "edit", "message"), WRONG)
def test_wrong_folders_are_refused(folders, tmp_path, which, edit, message):
    copies = list(folders)
    copies[which] = shutil.copytree(folders[which], tmp_path / "copy")
    edit(copies[which])
    field = ("models.segmenter.detector", "models.segmenter.sam")[which]
    with pytest.raises(UserError, match=message) as error:
        adapter.build(config_of(copies), "cpu")
    assert str(error.value).startswith(field)


def test_a_source_that_is_not_here_names_the_command():
    config = adapter.GroundingSamHfConfig(detector="nobody/nothing-of-the-kind")
    with pytest.raises(UserError, match="focusdpo fetch"):
        adapter.checks(config)["segmenter: Grounding DINO"]()


def test_a_sam2_folder_that_was_saved_on_a_cpu_is_whole(folders, segmenter, tmp_path):
    """Its table of positions is there once, under the name of the pictures' encoder."""
    folder = shutil.copytree(folders[2], tmp_path / "sam2")
    own = (folders[0], folders[1], folder)
    tensors = load_file(folder / "model.safetensors")
    twin = "prompt_encoder.shared_embedding.positional_embedding"
    tensors[twin] = tensors["shared_image_embedding.positional_embedding"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    whole = adapter.build(config_of(own, sam=2), "cpu")
    del tensors[twin]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    once = adapter.build(config_of(own, sam=2), "cpu")
    words = [WORDS[0]]
    for one, other in zip(
        whole.segment(pictures()[:1], words)[0], once.segment(pictures()[:1], words)[0], strict=True
    ):
        assert np.array_equal(one.mask, other.mask) and one.confidence == other.confidence
    tensors.pop("shared_image_embedding.positional_embedding")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="2 tensors missing"):
        adapter.build(config_of(own, sam=2), "cpu")
