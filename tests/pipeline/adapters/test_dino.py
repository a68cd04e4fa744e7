"""DINO and DINOv2 on small checkpoints in the public layouts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file
from tiny_encoders import (
    disc,
    pictures,
    save_dino_folder,
    save_dinov2_folder,
    save_timm_folder,
    tiny_timm,
)
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)
from transformers import AutoModel, ViTModel

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import encode_png
from focusdpo.pipeline.adapters import dino, preprocess
from focusdpo.pipeline.adapters.dino import DinoConfig, DinoEncoder, Dinov2Config
from focusdpo.pipeline.score import crop_on_white

PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "dreambooth"
OFFICIAL = Compose(
    [
        Resize(256, interpolation=InterpolationMode.BICUBIC),
        CenterCrop(224),
        ToTensor(),
        Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)
"""As facebookresearch/dino evaluates."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dino_folder(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="session")
def encoder(folder: Path) -> DinoEncoder:
    return dino.build(DinoConfig(source=str(folder), batch=3), "cpu")


def official(images: list[np.ndarray]) -> torch.Tensor:
    return torch.stack([OFFICIAL(Pillow.fromarray(image)) for image in images])


def unit(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features, dim=-1).numpy()


@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 9))
def test_preprocessing_is_bit_equal_to_torchvision(height: int, width: int, seed: int) -> None:
    if max(height, width) > 8 * min(height, width):
        width = height
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    whole = Compose(OFFICIAL.transforms[:2])(Pillow.fromarray(image))
    assert np.array_equal(preprocess.official(image), np.asarray(whole))


def test_the_network_sees_exactly_the_official_numbers(encoder: DinoEncoder) -> None:
    images = pictures(4)
    seen = torch.from_numpy(np.stack([preprocess.official(i) for i in images]))
    assert torch.equal(encoder.looker.normalise(seen), official(images))


def test_whole_pictures_are_cls_tokens_of_the_official_transform(
    encoder: DinoEncoder, folder: Path
) -> None:
    model = ViTModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()
    images = pictures(7)
    with torch.no_grad():
        wanted = unit(model(pixel_values=official(images)).last_hidden_state[:, 0])
    np.testing.assert_allclose(encoder.embed_whole(images), wanted, atol=1e-5)


def test_timm_layout_equals_timms_own_model(tmp_path: Path) -> None:
    model = tiny_timm()
    encoder = dino.build(DinoConfig(source=str(save_timm_folder(tmp_path, model))), "cpu")
    images = pictures(5)
    with torch.no_grad():
        wanted = unit(model(official(images)))
    np.testing.assert_allclose(encoder.embed_whole(images), wanted, atol=1e-5)


def test_official_epsilon_is_used_whatever_the_config_says(folder: Path, tmp_path: Path) -> None:
    about = json.loads((folder / "config.json").read_text())
    assert about["layer_norm_eps"] == 1e-12  # as the public folder ships it
    (tmp_path / "config.json").write_text(json.dumps(about | {"layer_norm_eps": 1e-2}))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    ours = dino.build(DinoConfig(source=str(tmp_path)), "cpu").embed_whole(pictures(2))
    wanted = dino.build(DinoConfig(source=str(folder)), "cpu").embed_whole(pictures(2))
    assert np.array_equal(ours, wanted)


@pytest.mark.parametrize("kind", ["plain", "registers", "swiglu"])
def test_dinov2_equals_transformers(kind: str, tmp_path: Path) -> None:
    folder = save_dinov2_folder(tmp_path, registers=kind == "registers", swiglu=kind == "swiglu")
    config = Dinov2Config(source=str(folder))
    encoder, images = dino.build(config, "cpu"), pictures(3)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = unit(model(pixel_values=official(images)).pooler_output)
    np.testing.assert_allclose(encoder.embed_whole(images), wanted, atol=1e-5)
    assert "2 layers of 48, patch 14" in dino.checks(config)["dinov2"]()


def test_instances_are_the_masked_subject_on_white(encoder: DinoEncoder) -> None:
    images = pictures(3, seed=1)
    masks = [disc(image) for image in images]
    crops = [crop_on_white(i, m, 0.1) for i, m in zip(images, masks, strict=True)]
    vectors = encoder.embed(images, masks)
    assert np.array_equal(vectors, encoder.embed_whole(crops))
    elsewhere = [np.where(m[..., None], i, 255 - i) for i, m in zip(images, masks, strict=True)]
    assert np.array_equal(vectors, encoder.embed(elsewhere, masks))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_crop_policy_decides_what_is_cut(folder: Path) -> None:
    """Official with the default margin keeps a white rim, without margin it cuts the subject."""
    image = np.zeros((90, 60, 3), dtype=np.uint8)
    mask = np.ones((90, 60), dtype=np.bool_)
    kept = preprocess.instance(image, mask, 0.1, "official")
    cut = preprocess.instance(image, mask, 0.0, "official")
    whole = preprocess.instance(image, mask, 0.0, "square")
    assert kept[0].min() > 250 and cut[0].min() == 0
    dark = (whole < 128).all(axis=2)
    assert dark.any(axis=1).all() and abs(dark.mean() - 60 / 90) < 0.02


def test_vectors_do_not_depend_on_the_batch(folder: Path) -> None:
    images = pictures(7)
    one, many = (
        dino.build(DinoConfig(source=str(folder), batch=b), "cpu").embed_whole(images)
        for b in (1, 64)
    )
    np.testing.assert_allclose(one, many, atol=1e-6)


def test_nothing_gives_nothing(encoder: DinoEncoder) -> None:
    assert len(encoder.embed([], [])) == 0 == len(encoder.embed_whole([]))


def test_files_give_what_their_pixels_give(encoder: DinoEncoder, tmp_path: Path) -> None:
    images = pictures(4)
    paths = [tmp_path / f"{at}.png" for at in range(4)]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(encode_png(image))
    assert np.array_equal(encoder.embed_whole(paths), encoder.embed_whole(images))
    paths[2].write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"2\.png: not an image"):
        encoder.embed_whole(paths)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"{PHOTOS} is not here")
def test_dreambench_files_are_read_as_published_scorers_do(encoder: DinoEncoder) -> None:
    """`Image.open(...).convert("RGB")`, then the official transform: the same numbers."""
    files = sorted(PHOTOS.rglob("*.jpg"))[::7]
    opened = [Pillow.open(file).convert("RGB") for file in files]
    seen = torch.from_numpy(np.stack([encoder.stream.prepare(file) for file in files]))
    wanted = torch.stack([OFFICIAL(image) for image in opened])
    assert len(files) > 5 and torch.equal(encoder.looker.normalise(seen), wanted)


def test_transparent_files_are_put_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((20, 20, 4), dtype=np.uint8)
    pixels[:10, :, 3] = 255
    Pillow.fromarray(pixels).save(tmp_path / "half.png")
    image = preprocess.read_image(tmp_path / "half.png")
    assert image[:10].max() == 0 and image[10:].min() == 255


def test_bf16_changes_no_decision(folder: Path) -> None:
    """Cosines move by less than 0.01, so no comparison with a wider margin changes its answer."""
    images = pictures(24, seed=5)
    masks = [disc(image) for image in images]
    exact, quick = (
        dino.build(DinoConfig(source=str(folder), dtype=dtype), "cpu").embed(images, masks)
        for dtype in ("float32", "bfloat16")
    )
    before, after = exact @ exact.T, quick @ quick.T
    assert np.abs(before - after).max() < 0.01
    gaps = before[:, :, None] - before[:, None, :]
    clear = np.abs(gaps) > 0.02
    assert clear.mean() > 0.3  # else nothing was tested
    moved = after[:, :, None] - after[:, None, :]
    assert np.array_equal(np.sign(gaps[clear]), np.sign(moved[clear]))


def test_fingerprint_knows_weights_crop_and_dtype(folder: Path, tmp_path: Path) -> None:
    config = DinoConfig(source=str(folder))
    other = DinoConfig(source=str(save_dino_folder(tmp_path, seed=9)))
    changed = [
        config.model_copy(update=update)
        for update in ({"crop": "square"}, {"margin": 0.2}, {"dtype": "bfloat16"})
    ]
    assert len({dino.fingerprint(c) for c in [config, other, *changed]}) == 5
    assert dino.fingerprint(config) == dino.fingerprint(config.model_copy(update={"batch": 2}))
    assert dino.build(config, "cpu").fingerprint == dino.fingerprint(config)


def test_weights_are_frozen(encoder: DinoEncoder) -> None:
    assert not any(values.requires_grad for values in encoder.model.parameters())
    assert not encoder.model.training and encoder.embed_whole(pictures(2)).dtype == np.float32


def test_fetch_takes_json_and_safetensors_only() -> None:
    wanted = ["config.json", "*.safetensors"]
    assert dino.sources(DinoConfig()) == [
        ("models.identity.source", "timm/vit_small_patch16_224.dino", wanted)
    ]
    assert dino.sources(Dinov2Config())[0][1] == "facebook/dinov2-base"


def damaged(folder: Path, out: Path, case: str) -> Path:
    """A copy of a checkpoint with one thing wrong."""
    out.mkdir()
    about = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    if case == "missing":
        tensors.pop("encoder.layer.1.output.dense.bias")
    elif case == "unexpected":
        tensors["encoder.layer.2.extra"] = torch.zeros(1)
    elif case == "shape":
        tensors["layernorm.weight"] = torch.zeros(3)
    elif case == "class":
        about["architectures"] = ["CLIPModel"]
    elif case == "size":
        about["image_size"] = 384
    (out / "config.json").write_text(json.dumps(about))
    if case == "pickle":
        torch.save(tensors, out / "pytorch_model.bin")
    else:
        save_file(tensors, out / "model.safetensors")
    if case == "cut":
        os.truncate(out / "model.safetensors", 5000)
    return out


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("missing", r"1 tensors missing, first: encoder\.layer\.1\.output\.dense\.bias"),
        ("unexpected", "1 not expected, first: encoder.layer.2.extra"),
        ("shape", r"layernorm\.weight is \(3,\), expected \(128,\)"),
        ("class", "holds CLIPModel, expected ViTModel"),
        ("size", "made for 384 px"),
        ("pickle", "pytorch_model.bin, a pickle"),
        ("cut", "has 5000 bytes, its header promises"),
    ],
)
def test_wrong_checkpoints_are_told_at_once(
    case: str, told: str, folder: Path, tmp_path: Path
) -> None:
    config = DinoConfig(source=str(damaged(folder, tmp_path / "bad", case)))
    for look in (dino.checks(config)["dino"], lambda: dino.build(config, "cpu")):
        with pytest.raises(UserError, match=f"models.identity.source: .*{told}"):
            look()


def test_dinov2_is_no_dino_and_back(folder: Path, tmp_path: Path) -> None:
    v2 = save_dinov2_folder(tmp_path / "v2")
    with pytest.raises(UserError, match="holds Dinov2Model, expected ViTModel"):
        dino.build(DinoConfig(source=str(v2)), "cpu")
    with pytest.raises(UserError, match="holds ViTModel, expected Dinov2Model or"):
        dino.build(Dinov2Config(source=str(folder)), "cpu")


def test_timm_file_of_another_model_is_told(tmp_path: Path) -> None:
    folder = save_timm_folder(tmp_path, tiny_timm())
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"head.weight": torch.zeros(10, 128)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="timm's DINO: 1 not expected, first: head.weight"):
        dino.build(DinoConfig(source=str(folder)), "cpu")


def test_absent_source_tells_how_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="focusdpo fetch"):
        dino.fingerprint(DinoConfig(source="nobody/no-such-model"))
