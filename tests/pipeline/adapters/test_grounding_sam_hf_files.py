"""Folders of Grounding DINO and SAM for transformers: what is checked, fingerprinted, refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_detectors import write_detector_folder, write_sam2_folder, write_sam_folder

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.segmenters import grounding_sam_hf as adapter
from focusdpo.pipeline.adapters.segmenters.detections import DetectionConfig

DEFAULT = DetectionConfig()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The detector's, SAM's and SAM 2's folder."""
    root = tmp_path_factory.mktemp("hf")
    return (
        write_detector_folder(root / "detector"),
        write_sam_folder(root / "sam"),
        write_sam2_folder(root / "sam2"),
    )


def config_of(folders, sam=1, **fields):
    return adapter.GroundingSamHfConfig(detector=str(folders[0]), sam=str(folders[sam]), **fields)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"batch": 1}, True),
        ({"mask_batch": 1}, True),
        ({"dtype": "bfloat16"}, False),
        ({"detection": DEFAULT.model_copy(update={"nms_iou": 0.7})}, False),
        ({"detection": DEFAULT.model_copy(update={"multimask": True})}, False),
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
    (0, _tensors(lambda s: s.pop("model.text_projection.weight")), "another model"),
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
