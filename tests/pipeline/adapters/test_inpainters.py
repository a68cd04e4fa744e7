"""Inpainters on tiny random checkpoints: the same as calling diffusers' own pipelines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxFillPipeline, StableDiffusionXLInpaintPipeline
from PIL import Image as Pictures
from safetensors.torch import load_file, save_file
from tiny_fill import flux_fill_config, save_flux_fill, save_sdxl_inpaint, sdxl_config
from tiny_sdxl import save_base

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters import inpainters
from focusdpo.pipeline.adapters.inpainter_config import BackboneInpainterConfig
from focusdpo.pipeline.parts import Image, Mask, ReferenceImage

PROMPTS = ["a cat on grass", "a dog and a car", "a red car"]


class Painter:
    """Stands where a backbone's painter stands, and tells what it was asked."""

    fingerprint = "painter"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def inpaint(
        self,
        images: Sequence[Image],
        masks: Sequence[Mask],
        prompts: Sequence[str],
        references: Sequence[Sequence[ReferenceImage]],
        seeds: Sequence[int],
    ) -> list[Image]:
        self.asked += [len(row) for row in references]
        return list(images)


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fill")
    return save_flux_fill(folder / "fill", folder / "base")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl")
    return save_sdxl_inpaint(folder / "inpaint", folder / "base")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("plain"))


def scene(height: int = 64, width: int = 64, count: int = 3) -> tuple[list[Image], list[Mask]]:
    rng = np.random.default_rng(0)
    images, masks = [], []
    for index in range(count):
        images.append(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
        mask = np.zeros((height, width), bool)
        mask[8 : 40 + 4 * index, 16:48] = True
        masks.append(mask)
    return images, masks


def directly(
    pipeline: Any, image: Image, mask: Mask, prompt: str, seed: int, **options: Any
) -> Any:
    """The pipeline's own call for one picture."""
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(
        prompt=prompt,
        image=Pictures.fromarray(image),
        mask_image=Pictures.fromarray(mask.astype(np.uint8) * 255),
        height=image.shape[0],
        width=image.shape[1],
        generator=torch.Generator().manual_seed(seed),
        **options,
    ).images[0]
    return np.asarray(found).astype(int)


def apart(one: Image, other: Any) -> int:
    return int(np.abs(one.astype(int) - other).max())


def check_against(pipeline: Any, inpainter: Any, options: dict[str, Any], width: int) -> None:
    """Each item of a batch is the pipeline's picture for it, and depends on its seed and words."""
    images, masks = scene(64, width)
    references: list[list[ReferenceImage]] = [[], [], []]
    painted = inpainter.inpaint(images, masks, PROMPTS, references, [1, 2, 3])
    assert [p.shape for p in painted] == [(64, width, 3)] * 3 and painted[0].dtype == np.uint8
    for i in range(3):
        alone = directly(pipeline, images[i], masks[i], PROMPTS[i], i + 1, **options)
        assert apart(painted[i], alone) <= 1
    other = inpainter.inpaint(images[:1], masks[:1], PROMPTS[:1], [[]], [9])
    assert apart(painted[0], other[0].astype(int)) > 4
    said = inpainter.inpaint(images[:1], masks[:1], PROMPTS[2:], [[]], [1])
    assert apart(painted[0], said[0].astype(int)) > 1


def test_flux_fill_is_diffusers_pipeline(flux: Path) -> None:
    pipeline = FluxFillPipeline.from_pretrained(flux, dtype=torch.float32)
    inpainter = inpainters.build(flux_fill_config(flux), "cpu", Painter())
    options = {"num_inference_steps": 3, "guidance_scale": 30.0, "max_sequence_length": 12}
    check_against(pipeline, inpainter, options, width=96)


def test_sdxl_inpaint_is_diffusers_pipeline(sdxl: Path) -> None:
    pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(sdxl, add_watermarker=False)
    inpainter = inpainters.build(sdxl_config(sdxl, negative_prompt="a dog"), "cpu", Painter())
    options = {
        "num_inference_steps": 4,
        "guidance_scale": 8.0,
        "strength": 0.99,
        "negative_prompt": "a dog",
    }
    check_against(pipeline, inpainter, options, width=72)


def test_plain_sdxl_repaints_by_masked_sampling(plain: Path) -> None:
    pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(plain, add_watermarker=False)
    inpainter = inpainters.build(sdxl_config(plain), "cpu", Painter())
    options = {"num_inference_steps": 4, "guidance_scale": 8.0, "strength": 0.99}
    check_against(pipeline, inpainter, options, width=64)


def test_swaps_go_to_the_backbone_and_text_to_the_fill_model(sdxl: Path) -> None:
    painter = Painter()
    inpainter: Any = inpainters.build(sdxl_config(sdxl), "cpu", painter)
    images, masks = scene(count=2)
    reference = ReferenceImage(images[0], masks[0])
    swapped = inpainter.inpaint(images, masks, PROMPTS[:2], [[reference], [reference]], [1, 2])
    assert painter.asked == [1, 1] and swapped[0] is images[0]
    inpainter.inpaint(images, masks, PROMPTS[:2], [[], []], [1, 2])
    assert painter.asked == [1, 1]
    with pytest.raises(UserError, match="takes no references"):
        inpainter.fill.inpaint(images[:1], masks[:1], PROMPTS[:1], [[reference]], [1])
    assert inpainter.fingerprint not in (inpainter.fill.fingerprint, painter.fingerprint)


def test_the_backbone_itself_is_an_inpainter() -> None:
    painter, config = Painter(), BackboneInpainterConfig()
    assert inpainters.build(config, "cpu", painter) is painter
    assert inpainters.fingerprint(config) == "backbone" and inpainters.sources(config) == []
    assert [check() for check in inpainters.checks(config).values()]


def test_wrong_pictures_are_refused(flux: Path) -> None:
    inpainter = inpainters.build(flux_fill_config(flux), "cpu", Painter())
    images, masks = scene(64, 72, 1)
    with pytest.raises(UserError, match=r"72 x 64.*multiples of 16"):
        inpainter.inpaint(images, masks, PROMPTS[:1], [[]], [1])
    images, masks = scene(count=2)
    with pytest.raises(UserError, match="a mask of 32 x 64"):
        inpainter.inpaint(images[:1], [masks[0][:, :32]], PROMPTS[:1], [[]], [1])
    with pytest.raises(UserError, match="2 prompts"):
        inpainter.inpaint(images, masks, PROMPTS[:2], [[], []], [1])
    assert inpainter.inpaint([], [], [], [], []) == []


def test_sizes_may_differ_within_a_call(sdxl: Path) -> None:
    inpainter = inpainters.build(sdxl_config(sdxl, batch=4), "cpu", Painter())
    (small, _, last), (mask, _, other) = scene()
    (wide,), (hole,) = scene(64, 96, 1)
    painted = inpainter.inpaint(
        [small, wide, last], [mask, hole, other], PROMPTS, [[], [], []], [1, 2, 3]
    )
    assert [p.shape[1] for p in painted] == [64, 96, 64]
    alone = inpainter.inpaint([last], [other], PROMPTS[2:], [[]], [3])
    assert apart(painted[2], alone[0].astype(int)) <= 1


def test_fingerprint_tells_weights_and_settings(flux: Path, tmp_path: Path) -> None:
    first = inpainters.fingerprint(flux_fill_config(flux))
    built: Any = inpainters.build(flux_fill_config(flux), "cpu", Painter())
    assert built.fill.fingerprint == first
    moved = shutil.copytree(flux, tmp_path / "moved")
    assert inpainters.fingerprint(flux_fill_config(moved, batch=5, offload=True)) == first
    assert inpainters.fingerprint(flux_fill_config(flux, steps=4)) != first
    assert inpainters.fingerprint(flux_fill_config(flux, guidance=20.0)) != first
    (moved / "tokenizer" / "tokenizer_config.json").write_text("{}")
    assert inpainters.fingerprint(flux_fill_config(moved)) != first


def test_variants_are_told_apart(tmp_path: Path) -> None:
    folder = save_sdxl_inpaint(tmp_path / "both", tmp_path / "base", variant="fp16")
    half, whole = sdxl_config(folder, variant="fp16"), sdxl_config(folder)
    assert inpainters.fingerprint(half) != inpainters.fingerprint(whole)
    assert all(
        "weights in 1 files" in check() for check in list(inpainters.checks(half).values())[1:]
    )
    inpainters.build(half, "cpu", Painter())
    for file in folder.glob("*/*.fp16.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match="set variant to what is there"):
        inpainters.build(half, "cpu", Painter())
    wanted = dict.fromkeys(inpainters.sources(half)[0][2] or [])
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in wanted
    assert "text_encoder/model.fp16.safetensors" in wanted


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_a_tensor(folder: Path) -> None:
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("proj_out.weight")
    save_file(tensors, file)


def with_one_more(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"more": torch.zeros(1)}, file)


def as_pickle(folder: Path) -> None:
    file = folder / "text_encoder_2" / "model.safetensors"
    file.rename(file.with_suffix(".bin"))


def cut(folder: Path) -> None:
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another pipeline": (
        lambda f: edit(f / "model_index.json", _class_name="FluxPipeline"),
        "FluxPipeline, expected FluxFillPipeline",
    ),
    "plain FLUX": (
        lambda f: edit(f / "transformer" / "config.json", in_channels=16),
        "reads 16 channels.*288",
    ),
    "a missing tensor": (without_a_tensor, "proj_out.weight"),
    "one tensor more": (with_one_more, "not expected, first: more"),
    "a pickle": (as_pickle, "a pickle"),
    "a cut file": (cut, "promises"),
    "no tokeniser": (lambda f: shutil.rmtree(f / "tokenizer_2"), "tokenizer_2 is absent"),
    "no schedule": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json"),
    "another encoder": (
        lambda f: edit(f / "text_encoder" / "config.json", hidden_size=24),
        "of another shape",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_refused(flux: Path, tmp_path: Path, name: str) -> None:
    harm, message = BROKEN[name]
    folder = shutil.copytree(flux, tmp_path / "harmed")
    harm(folder)
    with pytest.raises(UserError, match=message) as caught:
        inpainters.build(flux_fill_config(folder), "cpu", Painter())
    assert str(caught.value).startswith("models.inpainter.source")


def test_an_absent_or_foreign_source_is_refused(flux: Path) -> None:
    with pytest.raises(UserError, match="focusdpo fetch"):
        inpainters.fingerprint(flux_fill_config(Path("nobody/nothing")))
    with pytest.raises(UserError, match="expected StableDiffusionXLInpaintPipeline"):
        inpainters.build(sdxl_config(flux), "cpu", Painter())
