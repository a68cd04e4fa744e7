"""Files of the authors' Grounding DINO and SAM: wrong ones are refused, none is run. What needs
groundingdino-py is skipped without it."""

from __future__ import annotations

import builtins
import importlib.util
import os
import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file
from tiny_detectors import (
    BERT,
    original_detector,
    original_sam,
    write_original_detector,
    write_text_folder,
)

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.segmenters import grounding_sam as adapter
from focusdpo.pipeline.adapters.segmenters import original_grounding_dino
from focusdpo.pipeline.adapters.segmenters.original_sam import check_sam

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("groundingdino") is None,
    reason='groundingdino-py is not installed: pip install "focusdpo[groundingdino]"',
)


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
    }
    return adapter.GroundingSamConfig(**given | fields)


def tensors_of(file):
    return torch.load(file, weights_only=True)


@needs_package
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("module.transformer.enc_output.weight"), "missing.*enc_output"),
        (lambda s: s.pop("module.transformer.level_embed"), "no tensor transformer.level_embed"),
        (lambda s: s.update({"module.more": torch.zeros(1)}), "not expected, first: more"),
        (lambda s: s.update({"module.feat_map.bias": torch.zeros(1)}), "feat_map.bias is"),
    ],
)
def test_wrong_detector_files_are_refused(root, detector_file, tmp_path, change, message):
    state = dict(tensors_of(detector_file)["model"])
    change(state)
    torch.save({"model": state}, tmp_path / "detector.pth")
    with pytest.raises(UserError, match=message) as error:
        adapter.build(config_of(root, detector=str(tmp_path)), "cpu")
    assert str(error.value).startswith("models.segmenter.detector: ")


@needs_package
def test_another_bert_is_refused(root, detector_file, tmp_path):
    from transformers import BertConfig

    text = write_text_folder(tmp_path / "text")
    BertConfig(**BERT | {"num_hidden_layers": 3}).save_pretrained(text)
    with pytest.raises(UserError, match="missing.*bert.encoder.layer.2"):
        adapter.build(config_of(root, text_encoder=str(text)), "cpu")


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "groundingdino"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "groundingdino", None)
    with pytest.raises(UserError, match=r"focusdpo\[groundingdino\].*grounding-sam-hf"):
        original_grounding_dino.package()


def test_an_opencv_without_libgl_is_explained(monkeypatch):
    name = "groundingdino.models.GroundingDINO.groundingdino"
    original = builtins.__import__

    def without_libgl(wanted, *more):
        if wanted == name:
            raise ImportError("libGL.so.1: cannot open shared object file")
        return original(wanted, *more)

    monkeypatch.setattr(builtins, "__import__", without_libgl)
    with pytest.raises(UserError, match="libGL.so.1.*opencv-python-headless"):
        original_grounding_dino.package()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("mask_decoder.iou_token.weight"), "missing.*iou_token"),
        (lambda s: s.pop("image_encoder.pos_embed"), "no tensor image_encoder.pos_embed"),
        (lambda s: s.update(more=torch.zeros(1)), "not expected, first: more"),
        (
            lambda s: s.update({"mask_decoder.iou_token.weight": torch.zeros(1, 7)}),
            "another shape.*iou_token",
        ),
    ],
)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_wrong_sam_files_are_refused(root, tmp_path, change, message, ending):
    state = dict(tensors_of(root / "sam.pth"))
    change(state)
    file = tmp_path / f"sam.{ending}"
    (torch.save if ending == "pth" else save_file)(state, file)
    with pytest.raises(UserError, match=f"models.segmenter.sam: .*{message}"):
        adapter.checks(config_of(root, sam=str(file)))["segmenter: SAM"]()


def test_another_sam_than_asked_for_is_refused(root):
    with pytest.raises(UserError, match="asks for vit_h"):
        check_sam(root / "sam.pth", "f", "vit_h")


class _Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_files_with_code_in_them_are_refused_and_not_run(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": _Bomb()}, tmp_path / "torch.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": _Bomb()}))
    for name in ("torch.pth", "plain.pth"):
        with pytest.raises(UserError, match="plain tensors"):
            check_sam(tmp_path / name, "f")
    assert not (tmp_path / "exploded").exists()


def test_files_that_are_cut_off_or_empty_of_tensors_are_refused(root, tmp_path):
    whole = (root / "sam.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut.pth cannot be read"):
        check_sam(tmp_path / "cut.pth", "f")
    torch.save({"step": 3}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="no named tensors"):
        check_sam(tmp_path / "other.pth", "f")


def test_files_in_torch_s_old_format_are_read(root, tmp_path):
    state = tensors_of(root / "sam.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert check_sam(tmp_path / "old.pth", "f") == check_sam(root / "sam.pth", "f")


def test_what_is_missing_is_named_with_the_command(root, tmp_path):
    config = config_of(tmp_path, text_encoder=str(tmp_path), sam=str(tmp_path))
    rows = adapter.checks(config)
    with pytest.raises(UserError, match="models.segmenter.sam: .*focusdpo fetch"):
        rows["segmenter: SAM"]()
    with pytest.raises(UserError, match="models.segmenter.text_encoder: .*config.json"):
        rows["segmenter: text encoder"]()
    (write_text_folder(tmp_path) / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="models.segmenter.text_encoder: .*tokenizer.json"):
        rows["segmenter: text encoder"]()
    with pytest.raises(UserError, match="models.segmenter.detector: .*detector.pth"):
        adapter.fingerprint(config_of(tmp_path, text_encoder=str(root / "text")))
