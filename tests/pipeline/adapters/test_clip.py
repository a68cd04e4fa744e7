"""CLIP through open_clip on a small checkpoint in the layout of the public one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file
from tiny_encoders import pictures, save_clip_folder
from tiny_vlm import byte_tokenizer

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import encode_png
from focusdpo.pipeline.adapters import clip
from focusdpo.pipeline.adapters.clip import ClipConfig
from focusdpo.pipeline.adapters.clip_encoder import ClipEncoder

TEXTS = ["a dog on a wooden table", "a teapot", "a cat and a cat in the snow"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def encoder(folder: Path) -> ClipEncoder:
    return clip.build(ClipConfig(source=str(folder), batch=2), "cpu")


def test_preprocessing_is_bit_equal_to_open_clip(encoder: ClipEncoder, folder: Path) -> None:
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    images = pictures(6, seed=2)
    wanted = torch.stack([preprocess(Pillow.fromarray(image)) for image in images])
    seen = np.stack([encoder.stream.prepare(image) for image in images])
    assert torch.equal(encoder.looker.normalise(torch.from_numpy(seen)), wanted)


@pytest.mark.parametrize("mode", ["squash", "longest"])
def test_checkpoints_own_preprocessing_is_used(mode: str, tmp_path: Path) -> None:
    folder = save_clip_folder(tmp_path)
    about = json.loads((folder / clip.CONFIG).read_text())
    about["preprocess_cfg"] |= {"resize_mode": mode, "mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / clip.CONFIG).write_text(json.dumps(about))
    encoder = clip.build(ClipConfig(source=str(folder)), "cpu")
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    image = pictures(1, seed=4)[0]
    seen = torch.from_numpy(encoder.stream.prepare(image).copy())[None]
    assert torch.equal(encoder.looker.normalise(seen)[0], preprocess(Pillow.fromarray(image)))


def test_vectors_equal_open_clips(encoder: ClipEncoder, folder: Path) -> None:
    name = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    images = pictures(5)
    with torch.no_grad():
        seen = torch.stack([preprocess(Pillow.fromarray(image)) for image in images])
        shown = model.eval().encode_image(seen, normalize=True).numpy()
        said = model.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True).numpy()
    np.testing.assert_allclose(encoder.embed_images(images), shown, atol=1e-5)
    np.testing.assert_allclose(encoder.embed_texts(TEXTS), said, atol=1e-5)


def test_quick_gelu_of_the_config_is_in_force(encoder: ClipEncoder) -> None:
    activation = encoder.model.visual.transformer.resblocks[0].mlp.gelu
    assert type(activation).__name__ == "QuickGELU"


def test_files_and_nothing(encoder: ClipEncoder, tmp_path: Path) -> None:
    image = pictures(1)[0]
    (tmp_path / "a.png").write_bytes(encode_png(image))
    assert np.array_equal(encoder.embed_images([tmp_path / "a.png"]), encoder.embed_images([image]))
    assert len(encoder.embed_images([])) == 0 == len(encoder.embed_texts([]))


def test_bf16_moves_cosines_little(folder: Path) -> None:
    images = pictures(16, seed=5)
    tables = []
    for dtype in ("float32", "bfloat16"):
        encoder = clip.build(ClipConfig(source=str(folder), dtype=dtype), "cpu")
        tables.append(encoder.embed_images(images) @ encoder.embed_texts(TEXTS).T)
    assert np.abs(tables[0] - tables[1]).max() < 0.01


def test_fingerprint_knows_weights_and_dtype(folder: Path, tmp_path: Path) -> None:
    config = ClipConfig(source=str(folder))
    other = save_clip_folder(tmp_path)
    about = json.loads((other / clip.CONFIG).read_text())
    about["preprocess_cfg"]["resize_mode"] = "squash"
    (other / clip.CONFIG).write_text(json.dumps(about))
    found = {
        clip.fingerprint(c)
        for c in (
            config,
            ClipConfig(source=str(other)),
            ClipConfig(source=str(folder), dtype="bfloat16"),
        )
    }
    assert len(found) == 3
    assert clip.build(config, "cpu").fingerprint == clip.fingerprint(config)


def test_doctor_row_tells_what_was_found(folder: Path) -> None:
    row = clip.checks(ClipConfig(source=str(folder)))["clip"]()
    assert row == "open_clip_model.safetensors, 64 wide, patch 32, quick_gelu True"
    assert clip.sources(ClipConfig())[0][1] == "timm/vit_base_patch32_clip_224.openai"


def damaged(out: Path, case: str) -> Path:
    folder = save_clip_folder(out)
    config, weights = folder / clip.CONFIG, folder / clip.NAMES[0]
    about, tensors = json.loads(config.read_text()), load_file(weights)
    if case == "missing":
        tensors.pop("text_projection")
    elif case == "unexpected":
        tensors["visual.more"] = torch.zeros(1)
    elif case == "architecture":
        about["model_cfg"]["vision_cfg"]["layers"] = 3
    elif case == "activation":
        about["model_cfg"].pop("quick_gelu")
    elif case == "no model_cfg":
        about = {"architectures": ["CLIPModel"]}
    elif case == "tokenizer":
        about["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "nobody/words"
    elif case == "strange":
        about["model_cfg"]["windows"] = 3
    config.write_text(json.dumps(about))
    save_file(tensors, weights)
    if case == "pickle":
        weights.unlink()
        torch.save(tensors, folder / "open_clip_pytorch_model.bin")
    elif case == "transformers":
        weights.rename(folder / "model.safetensors")
    elif case == "no config":
        config.unlink()
    return folder


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("missing", "1 tensors missing, first: text_projection"),
        ("unexpected", "1 not expected, first: visual.more"),
        ("architecture", "tensors missing, first: visual.transformer.resblocks.2"),
        ("activation", "says quick_gelu False, models.clip.quick_gelu is True"),
        ("no model_cfg", "has no model_cfg"),
        ("strange", "not one of open_clip's CLIP .*windows"),
        ("tokenizer", "lacks tokenizer.json; put the files of nobody/words's tokenizer there"),
        ("pickle", "a pickle"),
        ("transformers", "lacks open_clip_model.safetensors"),
        ("no config", "open_clip_config.json cannot be read"),
    ],
)
def test_wrong_checkpoints_are_told_at_once(case: str, told: str, tmp_path: Path) -> None:
    config = ClipConfig(source=str(damaged(tmp_path, case)))
    for look in (clip.checks(config)["clip"], lambda: clip.build(config, "cpu")):
        with pytest.raises(UserError, match=f"models.clip.source: .*{told}"):
            look()


def test_tokenizer_of_the_folder_is_used(tmp_path: Path) -> None:
    folder = save_clip_folder(tmp_path)
    about = json.loads((folder / clip.CONFIG).read_text())
    about["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "somebody/words"
    (folder / clip.CONFIG).write_text(json.dumps(about))
    byte_tokenizer(["<pad>", "<end>"], eos="<end>").save_pretrained(folder)
    config = ClipConfig(source=str(folder))
    encoder, before = clip.build(config, "cpu"), clip.fingerprint(config)
    assert encoder.embed_texts(TEXTS).shape == (3, 32)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    assert clip.fingerprint(config) != before
