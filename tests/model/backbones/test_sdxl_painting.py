"""Painting and repainting with the SDXL backbone against diffusers' own pipelines."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from tiny_sdxl import (
    as_shown,
    noise,
    save_base,
    save_tiny_sdxl,
    subjects,
    tiny_config,
    tiny_pipeline,
)
from torch import Tensor

from focusdpo.model.backbones.sdxl_backbone import SdxlBackbone
from focusdpo.model.backbones.sdxl_ip_adapter import build
from focusdpo.model.tokens import pack, unpack

PROMPTS = ["a cat and a dog on grass", "a car"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> SdxlBackbone:
    return build(tiny_config(folder), "cpu")


SAMPLERS = {"checkpoint": None, "ddim": DDIMScheduler, "dpm++": DPMSolverMultistepScheduler}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_generate_is_diffusers_pipeline(
    folder: Path, backbone: SdxlBackbone, guidance: float, sampler: str
) -> None:
    changes = {"scheduler": sampler, "guidance": guidance}
    backbone.config, before = tiny_config(folder, **changes), backbone.config
    images, masks = subjects()
    found = backbone.generate(PROMPTS, images, masks, seeds=[5, 7])
    backbone.config = before
    pipeline = tiny_pipeline(folder)
    if SAMPLERS[sampler]:
        pipeline.scheduler = SAMPLERS[sampler].from_config(pipeline.scheduler.config)
    for b, seed in enumerate((5, 7)):
        wanted = pipeline(
            PROMPTS[b],
            ip_adapter_image=[
                [as_shown(image[b], mask[b]) for image, mask in zip(images, masks, strict=True)]
            ],
            latents=noise(seed),
            height=64,
            width=64,
            guidance_scale=guidance,
            num_inference_steps=3,
            output_type="pt",
        ).images
        torch.testing.assert_close((found[b] + 1) / 2, wanted[0], atol=2e-4, rtol=0)


def test_without_references_it_is_sdxl_without_adapter(
    folder: Path, backbone: SdxlBackbone
) -> None:
    plain = StableDiffusionXLPipeline.from_pretrained(folder / "base", local_files_only=True)
    plain.set_progress_bar_config(disable=True)
    wanted = plain(
        PROMPTS[0],
        latents=noise(5),
        height=64,
        width=64,
        guidance_scale=backbone.config.guidance,
        num_inference_steps=3,
        output_type="pt",
    ).images
    found = backbone.generate(PROMPTS[:1], [], [], seeds=[5])
    torch.testing.assert_close((found + 1) / 2, wanted, atol=2e-4, rtol=0)


def test_checkpoints_that_predict_v_paint_as_diffusers_does(folder: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        save_base(tmp_path / "base", prediction="v_prediction")
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    backbone = build(tiny_config(tmp_path), "cpu")
    found = backbone.generate(PROMPTS[:1], [], [], seeds=[5])
    plain = StableDiffusionXLPipeline.from_pretrained(tmp_path / "base", local_files_only=True)
    plain.set_progress_bar_config(disable=True)
    wanted = plain(
        PROMPTS[0],
        latents=noise(5),
        height=64,
        width=64,
        guidance_scale=5.0,
        num_inference_steps=3,
        output_type="pt",
    ).images
    torch.testing.assert_close((found + 1) / 2, wanted, atol=2e-4, rtol=0)
    clean, drawn = torch.randn((2, 1, 16, 16), generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.9])
    assert not torch.equal(backbone.target(clean, drawn, sigma), drawn)


def test_an_image_depends_on_its_own_seed_and_references_alone(backbone: SdxlBackbone) -> None:
    images, masks = subjects()
    both = backbone.generate(PROMPTS, images, masks, [5, 7])
    one = backbone.generate(PROMPTS[1:], [i[1:] for i in images], [m[1:] for m in masks], [7])
    torch.testing.assert_close(both[1:], one, atol=1e-4, rtol=0)
    other = backbone.generate(PROMPTS[1:], [i[1:] for i in images], [m[1:] for m in masks], [8])
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_inpaint_is_diffusers_inpaint_pipeline(
    folder: Path, backbone: SdxlBackbone, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(2)
    image = torch.rand((1, 3, 64, 64), generator=generator) * 2 - 1
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:40] = 1
    images, masks = subjects(batch=1)
    backbone.config, before = tiny_config(folder, strength=strength), backbone.config
    drawn = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(backbone, "_noise", lambda seeds: drawn)
    found = backbone.inpaint(image, mask, PROMPTS[:1], images, masks, [5])
    backbone.config = before
    pipeline = StableDiffusionXLInpaintPipeline(**tiny_pipeline(folder).components)
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        PROMPTS[0],
        image=unpack(backbone.encode_images(image), (4, 4)),
        mask_image=mask[:, None],
        ip_adapter_image=[[as_shown(i[0], m[0]) for i, m in zip(images, masks, strict=True)]],
        generator=torch.Generator().manual_seed(5),
        height=64,
        width=64,
        strength=strength,
        guidance_scale=backbone.config.guidance,
        num_inference_steps=3,
        output_type="latent",
    ).images
    torch.testing.assert_close(found, backbone.decode(pack(wanted)), atol=2e-4, rtol=0)
    assert (found - backbone.decode(backbone.encode_images(image))).abs().max() > 1e-2


def test_latents_outside_a_repaint_are_the_image_s(backbone: SdxlBackbone) -> None:
    seen: list[Tensor] = []
    decode = backbone.codec.decode_latents
    backbone.codec.decode_latents = lambda z: seen.append(z) or decode(z)  # type: ignore
    image = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(4)) * 2 - 1
    mask = torch.zeros(1, 64, 64)
    mask[:, 17:30, 20:22] = 1
    backbone.inpaint(image, mask, PROMPTS[:1], [], [], [1])
    del backbone.codec.decode_latents
    clean = unpack(backbone.encode_images(image), (4, 4))
    same = (seen[0] == clean)[0].all(0)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:4, 2:3] = True  # latents of 8 pixels that the mask touches
    assert torch.equal(~same, inside)


def test_offloaded_encoders_give_the_same(folder: Path, backbone: SdxlBackbone) -> None:
    other = build(tiny_config(folder, offload=True), "cpu")
    assert other.fingerprint == backbone.fingerprint
    images, masks = subjects()
    assert torch.equal(
        other.generate(PROMPTS, images, masks, [1, 2]),
        backbone.generate(PROMPTS, images, masks, [1, 2]),
    )
