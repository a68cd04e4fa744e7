"""The authors' packages and files: run beside transformers 5, equal to transformers' classes.
What needs groundingdino-py is skipped without it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_detectors import (
    BERT,
    original_detector,
    original_sam,
    pictures,
    write_detector_folder,
    write_original_detector,
    write_sam_folder,
    write_text_folder,
)

from focusdpo.pipeline.adapters.segmenters import grounding_sam as adapter
from focusdpo.pipeline.adapters.segmenters import (
    grounding_sam_hf,
    original_grounding_dino,
)
from focusdpo.pipeline.adapters.segmenters.detections import DetectionConfig
from focusdpo.pipeline.adapters.segmenters.original_sam import (
    load_sam,
    make_sam,
    sam_sizes,
)

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("groundingdino") is None,
    reason='groundingdino-py is not installed: pip install "focusdpo[groundingdino]"',
)
LOOSE = DetectionConfig(
    box_threshold=0.05, text_threshold=0.05, shorter_side=96, longer_side=160, max_boxes=6
)
WORDS = [("cat", "red disc"), ("person",), ("dogs", "cat"), ("old cat", "disc", "dog")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """BERT's folder and SAM's file."""
    folder = tmp_path_factory.mktemp("original")
    write_text_folder(folder / "text")
    torch.save(original_sam().state_dict(), folder / "sam.pth")
    return folder


@pytest.fixture(scope="module")
def detector_file(root):
    return write_original_detector(original_detector(root / "text"), root / "detector.pth")


def config_of(root, **fields):
    given = {
        "detector": str(root),
        "detector_file": "detector.pth",
        "text_encoder": str(root / "text"),
        "sam": str(root / "sam.pth"),
        "detection": LOOSE,
    }
    return adapter.GroundingSamConfig(**given | fields)


def tensors_of(file):
    return torch.load(file, weights_only=True)


def test_the_text_encoder_is_bert_with_a_mask_per_pair_of_tokens():
    """Bit for bit what BertModel gives under the same mask, under the same parameter names; and a
    phrase's features do not know the other phrases."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    bert = BertModel(BertConfig(**BERT)).eval()
    own = original_grounding_dino.TextEncoder(bert).eval()
    assert own.state_dict().keys() == bert.state_dict().keys()
    ids = torch.tensor([[101, 200, 203, 1012, 204, 1012, 102]])
    blocks = torch.eye(7, dtype=torch.bool)
    blocks[1:4, 1:4] = blocks[4:6, 4:6] = True
    places = torch.tensor([[0, 0, 1, 2, 0, 1, 0]])
    with torch.inference_mode():
        out = own(ids, blocks[None], torch.zeros_like(ids), places)["last_hidden_state"]
        added = torch.zeros(1, 1, 7, 7).masked_fill(~blocks, torch.finfo(torch.float32).min)
        want = bert(input_ids=ids, attention_mask=added, position_ids=places).last_hidden_state
        other = own(ids.clone().index_fill_(1, torch.tensor([4]), 205), blocks[None], None, places)
    assert torch.equal(out, want)
    assert torch.equal(out[:, :4], other["last_hidden_state"][:, :4])
    assert not torch.equal(out[:, 4], other["last_hidden_state"][:, 4])


@needs_package
def test_building_leaves_the_package_as_it_was(root, detector_file, capsys):
    module = original_grounding_dino.package()
    from groundingdino.util import get_tokenlizer

    before = module.BertModelWarper, get_tokenlizer.get_pretrained_language_model
    model = original_grounding_dino.load_grounding_dino(detector_file, root / "text", "f")
    assert isinstance(model.bert, original_grounding_dino.TextEncoder)
    assert (module.BertModelWarper, get_tokenlizer.get_pretrained_language_model) == before
    with pytest.raises(OSError):
        original_detector(root / "nothing")
    assert (module.BertModelWarper, get_tokenlizer.get_pretrained_language_model) == before
    assert capsys.readouterr().out == ""
    saved = {n.removeprefix("module."): t for n, t in tensors_of(detector_file)["model"].items()}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[name]), name


@needs_package
@pytest.mark.parametrize("multimask", [False, True])
def test_both_adapters_give_equal_records(root, detector_file, tmp_path, multimask):
    """The same weights under both names. Their arithmetic differs in the last bits (3e-7 in a
    confidence, 2e-5 pixels in a corner), so that a pixel whose logit is 0 may fall on either side:
    words, order and confidences are equal, masks but for two pixels."""
    detection = LOOSE.model_copy(update={"multimask": multimask})
    state = {
        n.removeprefix("module."): t
        for n, t in tensors_of(detector_file)["model"].items()
        if n.removeprefix("module.") not in original_grounding_dino.IGNORED
    }
    theirs = grounding_sam_hf.GroundingSamHfConfig(
        detector=str(write_detector_folder(tmp_path / "detector", state)),
        sam=str(write_sam_folder(tmp_path / "sam", tensors_of(root / "sam.pth"))),
        detection=detection,
    )
    a = adapter.build(config_of(root, detection=detection), "cpu")
    b = grounding_sam_hf.build(theirs, "cpu")
    for one, other in zip(a.boxes(pictures(), WORDS), b.boxes(pictures(), WORDS), strict=True):
        assert one.words == other.words
        np.testing.assert_allclose(one.confidences, other.confidences, atol=2e-6)
        np.testing.assert_allclose(one.corners, other.corners, atol=1e-4)
    ours, others = a.segment(pictures(), WORDS), b.segment(pictures(), WORDS)
    assert sum(map(len, ours)) >= 8
    for one, other in zip(sum(ours, []), sum(others, []), strict=True):
        assert one.class_name == other.class_name
        assert one.confidence == pytest.approx(other.confidence, abs=1.1e-4)
        assert (one.mask != other.mask).sum() <= 2


@needs_package
def test_an_image_s_boxes_do_not_depend_on_its_batch(root, detector_file):
    whole, alone = (adapter.build(config_of(root, batch=n), "cpu") for n in (8, 1))
    for one, other in zip(
        whole.boxes(pictures(), WORDS), alone.boxes(pictures(), WORDS), strict=True
    ):
        assert one.words == other.words
        np.testing.assert_allclose(one.confidences, other.confidences, atol=2e-6)
        np.testing.assert_allclose(one.corners, other.corners, atol=1e-4)


@needs_package
def test_bfloat16_finds_much_the_same(root, detector_file):
    fine, rough = (
        adapter.build(config_of(root, dtype=t), "cpu").boxes(pictures()[:1], [("cat", "disc")])[0]
        for t in ("float32", "bfloat16")
    )
    assert fine.confidences[0] == pytest.approx(rough.confidences[0], abs=0.1)


@needs_package
def test_checks_and_fingerprint(root, detector_file):
    config = config_of(root)
    found = {name: row() for name, row in adapter.checks(config).items()}
    assert found["segmenter: package groundingdino"].startswith("groundingdino-py")
    assert "20 queries" in found["segmenter: Grounding DINO"]
    assert "2 layers of width 32, 128 pixels" in found["segmenter: SAM"]
    key = adapter.fingerprint(config)
    assert adapter.build(config, "cpu").fingerprint == key
    assert adapter.fingerprint(config_of(root, batch=1)) == key
    assert adapter.fingerprint(config_of(root, dtype="bfloat16")) != key
    wider = LOOSE.model_copy(update={"box_threshold": 0.5})
    assert adapter.fingerprint(config_of(root, detection=wider)) != key


@needs_package
def test_safetensors_of_the_same_weights_do_as_well(root, detector_file, tmp_path):
    state = {n: t.clone() for n, t in tensors_of(detector_file)["model"].items()}
    save_file(state, tmp_path / "detector.safetensors")
    config = config_of(root, detector=str(tmp_path / "detector.safetensors"))
    (one,) = adapter.build(config, "cpu").boxes(pictures()[:1], WORDS[:1])
    (other,) = adapter.build(config_of(root), "cpu").boxes(pictures()[:1], WORDS[:1])
    np.testing.assert_array_equal(one.corners, other.corners)


@needs_package
@pytest.mark.parametrize("name", ["GroundingDINO_SwinT_OGC", "GroundingDINO_SwinB_cfg"])
def test_the_published_detectors_are_known_by_their_shapes(root, monkeypatch, name):
    """What is built equals the package's own builder with its own configuration, over a small
    BERT; without weights but Swin's."""
    import importlib
    from types import SimpleNamespace

    from groundingdino.models.GroundingDINO import groundingdino as module

    def with_memory(args, original=module.build_backbone):
        with torch.device("cpu"):
            return original(args)

    fields = vars(importlib.import_module(f"groundingdino.config.{name}"))
    args = SimpleNamespace(**fields | {"text_encoder_type": str(root / "text")})
    monkeypatch.setattr(module, "build_backbone", with_memory)
    with original_grounding_dino._stand_ins(module), torch.device("meta"):
        published = module.build_groundingdino(args)
    shapes = {n: tuple(t.shape) for n, t in published.state_dict().items()}
    sizes = original_grounding_dino.grounding_dino_sizes(shapes, "f")
    assert sizes.described() == f"Grounding DINO on Swin-{name[18]}, 900 queries"
    with torch.device("meta"):
        own = original_grounding_dino.make_grounding_dino(sizes, root / "text")
    assert {n: tuple(t.shape) for n, t in own.state_dict().items()} == shapes
    for one, other in zip(own.modules(), published.modules(), strict=True):
        assert type(one) is type(other)
        for field in ("num_heads", "n_heads", "n_points", "n_levels", "window_size", "shift_size"):
            assert getattr(one, field, None) == getattr(other, field, None)


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_the_published_sams_are_known_by_their_shapes(name):
    """What is built equals segment-anything's own registry, without weights."""
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        published = sam_model_registry[name]()
        shapes = {n: tuple(t.shape) for n, t in published.state_dict().items()}
        sizes = sam_sizes(shapes, "f")
        own = make_sam(sizes)
    assert sizes.name == name
    assert name != "vit_h" or len(shapes) == 594  # as sam_vit_h_4b8939.pth holds
    assert {n: tuple(t.shape) for n, t in own.state_dict().items()} == shapes
    assert own.image_encoder.img_size == published.image_encoder.img_size == 1024
    for one, other in zip(own.image_encoder.blocks, published.image_encoder.blocks, strict=True):
        assert one.window_size == other.window_size
        assert one.attn.num_heads == other.attn.num_heads
    for one, other in zip(own.modules(), published.modules(), strict=True):
        assert type(one) is type(other)
        assert getattr(one, "eps", None) == getattr(other, "eps", None)
        assert getattr(one, "num_heads", None) == getattr(other, "num_heads", None)


def test_sam_is_loaded_whole(root):
    model, saved = load_sam(root / "sam.pth", "f"), tensors_of(root / "sam.pth")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[name])
    assert not model.training and not any(p.requires_grad for p in model.parameters())
