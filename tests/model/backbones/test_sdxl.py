"""The SDXL + IP-Adapter-Plus backbone against diffusers' own pipelines on the same tiny files:
predicting, painting and repainting."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from tiny_sdxl import (
    as_shown,
    noise,
    save_base,
    save_tiny_sdxl,
    scheduler,
    subjects,
    tiny_config,
    tiny_pipeline,
)
from torch import Tensor

from focusdpo.model.backbone import References
from focusdpo.model.backbones.offload import PromptCache
from focusdpo.model.backbones.sdxl_backbone import SdxlBackbone, time_ids
from focusdpo.model.backbones.sdxl_conditioning import framed
from focusdpo.model.backbones.sdxl_ip_adapter import build
from focusdpo.model.backbones.sdxl_noise import DiffusionNoise
from focusdpo.model.tokens import pack, unpack

PROMPTS = ["a cat and a dog on grass", "a car"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> SdxlBackbone:
    return build(tiny_config(folder), "cpu")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> StableDiffusionXLPipeline:
    return tiny_pipeline(folder)


def test_prediction_is_that_of_a_direct_call(
    backbone: SdxlBackbone, pipeline: StableDiffusionXLPipeline
) -> None:
    images, masks = subjects()
    noisy = torch.randn((2, 16, 16), generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.25, 0.901])
    embeds, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    shown = [
        pipeline.prepare_ip_adapter_image_embeds(
            [[as_shown(image[b], mask[b]) for image, mask in zip(images, masks, strict=True)]],
            None,
            torch.device("cpu"),
            1,
            False,
        )[0]
        for b in range(2)
    ]
    ids = pipeline._get_add_time_ids((64, 64), (0, 0), (64, 64), torch.float32, 16)
    with torch.no_grad():
        wanted = pipeline.unet(
            unpack(noisy, (4, 4)),
            torch.tensor([250, 901]),
            encoder_hidden_states=embeds,
            added_cond_kwargs={
                "text_embeds": pooled,
                "time_ids": ids.repeat(2, 1),
                "image_embeds": [torch.cat(shown)],
            },
        ).sample
        found = backbone.predict(
            noisy,
            sigma,
            backbone.encode_prompts(PROMPTS),
            backbone.encode_references(images, masks),
        )
    torch.testing.assert_close(found.output_BNC, pack(wanted), atol=2e-5, rtol=1e-4)


def test_prompts_are_diffusers_prompts(
    backbone: SdxlBackbone, pipeline: StableDiffusionXLPipeline
) -> None:
    embeds, free, pooled, free_pooled = pipeline.encode_prompt(PROMPTS)
    found = backbone.encode_prompts(PROMPTS)
    torch.testing.assert_close(found.embeds_BTD, embeds, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.pooled_BD, pooled, atol=1e-6, rtol=1e-5)
    doubled = backbone._text.doubled(found)
    torch.testing.assert_close(doubled.embeds_BTD, torch.cat([free, embeds]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(doubled.pooled_BD[:2], free_pooled)


def test_without_trained_zeros_the_unconditional_prompt_is_the_empty_text(folder: Path) -> None:
    backbone = build(tiny_config(folder), "cpu")
    backbone._text.model._zero_empty = False
    given = backbone.encode_prompts(PROMPTS)
    empty = backbone.encode_prompts(["", ""])
    assert torch.equal(backbone._text.doubled(given).embeds_BTD[:2], empty.embeds_BTD)


def test_a_prompt_that_is_cut_is_told_once(
    backbone: SdxlBackbone, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        backbone.encode_prompts(["a dog on grass", "a cat on sand " * 30])
    (told,) = caplog.messages
    assert told.startswith("CLIP reads the first ") and "a cat on sand a cat" in told


def test_a_prompt_is_encoded_once_and_alone(backbone: SdxlBackbone) -> None:
    together = backbone.encode_prompts(["a dog on grass", "a cat"])
    assert not backbone._text.missing(["a cat"])
    assert torch.equal(backbone.encode_prompts(["a cat"]).embeds_BTD, together.embeds_BTD[1:])
    cache, backbone._text.model._known = backbone._text.model._known, PromptCache(0)
    backbone.encode_prompts(["a cat"])
    assert backbone._text.missing(["a cat"])
    backbone._text.model._known = cache


def test_time_ids_are_diffusers_time_ids(pipeline: StableDiffusionXLPipeline) -> None:
    """Per image: original size, crop, target size; no mixing of rows."""
    wanted = pipeline._get_add_time_ids((70, 90), (3, 5), (64, 128), torch.float32, 16)
    assert time_ids((70, 90), (3, 5), (64, 128)).tolist() == wanted[0].tolist()
    seen: list[Tensor] = []

    def look(_module: Any, _args: Any, kwargs: Any) -> None:
        seen.append(kwargs["added_cond_kwargs"]["time_ids"])

    handle = pipeline.unet.register_forward_pre_hook(look, with_kwargs=True)
    pipeline(
        PROMPTS[0],
        ip_adapter_image=[[as_shown(*(part[0][0] for part in subjects()))]],
        height=64,
        width=64,
        original_size=(70, 90),
        crops_coords_top_left=(3, 5),
        num_inference_steps=1,
        output_type="latent",
    )
    handle.remove()
    assert seen[0].tolist() == [[70, 90, 3, 5, 64, 64]] * 2


def test_time_ids_reach_the_unet(folder: Path) -> None:
    config = tiny_config(folder, original_size=(70, 90), crop_top_left=(3, 5))
    backbone = build(config, "cpu")
    seen: list[Tensor] = []

    def look(_module: Any, _args: Any, kwargs: Any) -> None:
        seen.append(kwargs["added_cond_kwargs"]["time_ids"])

    backbone.transformer.register_forward_pre_hook(look, with_kwargs=True)
    prompts = backbone.encode_prompts(PROMPTS)
    nobody = References((), (), ())
    backbone.predict(torch.zeros(2, 16, 16), torch.tensor([0.5, 0.1]), prompts, nobody)
    assert seen[0].tolist() == [[70, 90, 3, 5, 64, 64]] * 2


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_noise_and_target_are_those_of_the_ddpm_scheduler(prediction: str, zero_snr: bool) -> None:
    own = scheduler(prediction_type=prediction, rescale_betas_zero_snr=zero_snr)
    ours, theirs = DiffusionNoise(own), DDPMScheduler.from_config(own.config)
    generator = torch.Generator().manual_seed(1)
    clean, drawn = torch.randn((2, 5, 16, 16), generator=generator)
    sigma = torch.tensor([1e-4, 0.2502, 0.5, 0.75, 0.9999])
    steps = torch.tensor([0, 250, 500, 750, 999])
    assert torch.equal(ours.timesteps(sigma), steps)
    assert torch.equal(ours.timesteps(torch.tensor([0.0, 1.0])), torch.tensor([0, 999]))
    torch.testing.assert_close(
        ours.add(clean, drawn, sigma), theirs.add_noise(clean, drawn, steps), atol=1e-6, rtol=1e-5
    )
    wanted = drawn if prediction == "epsilon" else theirs.get_velocity(clean, drawn, steps)
    torch.testing.assert_close(ours.target(clean, drawn, sigma), wanted, atol=1e-6, rtol=1e-5)


def test_references_count_but_their_order_does_not(backbone: SdxlBackbone) -> None:
    """All image tokens of an image are attended to together: a set, as in diffusers."""
    references = backbone.encode_references(*subjects())
    prompts = backbone.encode_prompts(PROMPTS)
    noisy, sigma = torch.ones(2, 16, 16), torch.tensor([0.5, 0.6])

    def predict(order: tuple[int, ...]) -> Tensor:
        chosen = [
            tuple(part[i] for i in order)
            for part in (references.tokens, references.masks, references.grids, references.embeds)
        ]
        with torch.no_grad():
            return backbone.predict(noisy, sigma, prompts, References(*chosen)).output_BNC

    both = predict((0, 1))
    torch.testing.assert_close(predict((1, 0)), both, atol=1e-5, rtol=1e-4)
    for one in ((0,), (1,), ()):
        assert (predict(one) - both).abs().max() > 1e-3
    assert (predict((0, 0)) - predict((0,))).abs().max() < 1e-5  # the same softmax


def test_references_are_laid_on_white_and_padded_to_a_square() -> None:
    image, mask = torch.zeros(3, 40, 60), torch.zeros(40, 60)
    mask[10:30, 20:50] = 1
    shown, inside = framed(image, mask, "subject")
    assert shown.shape == (3, 36, 36)  # 30 wide, 3 of margin on each side
    assert inside.sum() == 20 * 30
    assert torch.equal(shown[0] == 0, inside.bool())
    assert (shown[:, ~inside.bool()] == 1).all()
    whole, inside = framed(image, mask, "whole")
    assert whole.shape == (3, 60, 60)
    assert torch.equal(inside[10:50], mask)
    everything, inside = framed(image, torch.zeros(40, 60), "subject")
    assert (everything[:, 10:50] == 0).all()
    assert inside[10:50].all()


def test_encoding_keeps_the_batch_whatever_its_size(
    backbone: SdxlBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.rand((3, 3, 64, 64), generator=torch.Generator().manual_seed(4)) * 2 - 1
    together = backbone.encode_images(images)
    monkeypatch.setattr("focusdpo.model.backbones.sdxl_backbone._PIXELS_AT_ONCE", 1)
    torch.testing.assert_close(backbone.encode_images(images), together, atol=1e-5, rtol=1e-4)
    assert backbone.decode(together).shape == images.shape


def test_half_precision_keeps_to_its_type(folder: Path) -> None:
    backbone = build(tiny_config(folder, dtype="bf16", steps=2), "cpu")
    references = backbone.encode_references(*subjects())
    prompts = backbone.encode_prompts(PROMPTS)
    sigma = torch.tensor([0.3, 0.7])
    output = backbone.predict(torch.ones(2, 16, 16), sigma, prompts, references).output_BNC
    assert output.dtype == references.embeds[0].dtype == torch.bfloat16
    assert references.tokens[0].dtype == torch.float32
    assert torch.isfinite(backbone.generate(PROMPTS, *subjects(), [1, 2])).all()


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


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_guidance_asked_for_is_as_if_it_were_the_settings(
    folder: Path, backbone: SdxlBackbone, guidance: float
) -> None:
    images, masks = subjects()
    seeds = [1, 2]
    other = build(tiny_config(folder, guidance=guidance), "cpu")
    wanted = other.generate(PROMPTS, images, masks, seeds)
    found = backbone.generate(PROMPTS, images, masks, seeds, guidance=guidance)
    torch.testing.assert_close(found, wanted)
    regions = torch.zeros(2, *backbone.image_size)
    regions[:, :32] = 1
    repainted = other.inpaint(wanted, regions, PROMPTS, images, masks, seeds)
    asked = backbone.inpaint(wanted, regions, PROMPTS, images, masks, seeds, guidance=guidance)
    torch.testing.assert_close(asked, repainted)
    assert not torch.allclose(wanted, backbone.generate(PROMPTS, images, masks, seeds), atol=1e-3)


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
