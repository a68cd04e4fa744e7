"""FLUX.1 + UNO from checkpoints in the public layout, against diffusers' own pipeline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from PIL import Image
from tiny_flux import (
    TEXT_TOKENS,
    edit_json,
    make_flux,
    make_uno,
    shard_transformer,
    tiny_config,
    uno_tensors,
)
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import (
    add_policy,
    load_adapter,
    policy_parameters,
    reference_policy,
    remove_policy,
    set_scale,
)
from focusdpo.model.backbone import References
from focusdpo.model.backbones import flux_uno
from focusdpo.model.backbones.flux import fit_long_side
from focusdpo.model.backbones.flux_uno_backbone import (
    FluxUnoBackbone,
    middle_blocks,
)
from focusdpo.model.training.config import LoraConfig, TrainConfig
from focusdpo.model.training.run import train
from focusdpo.store.samples import Sample

PROMPTS = ["a cat and a dog on grass", "a red car"]


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_flux(tmp_path_factory.mktemp("dev"))


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_flux(tmp_path_factory.mktemp("schnell"), distilled=False)


@pytest.fixture(scope="module")
def uno(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_uno(tmp_path_factory.mktemp("uno"))


@pytest.fixture(scope="module")
def shared(dev: Path, uno: Path) -> FluxUnoBackbone:
    """Read only: tests that put an adapter on it take it off again."""
    return flux_uno.build(tiny_config(dev, uno), "cpu")


@pytest.fixture
def copy(dev: Path, tmp_path: Path) -> Path:
    """A base to damage."""
    return shutil.copytree(dev, tmp_path / "base")


def pipeline(folder: Path) -> Any:
    loaded = FluxPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def slots(count: int, size: tuple[int, int] = (64, 64)) -> tuple[list[Tensor], list[Tensor]]:
    """8-bit pictures, two a slot, and masks of their left half."""
    generator = torch.Generator().manual_seed(3)
    shape = (2, 3, *size)
    images = [torch.randint(0, 256, shape, generator=generator) / 127.5 - 1 for _ in range(count)]
    masks = [torch.zeros(2, *size) for _ in range(count)]
    for mask in masks:
        mask[..., : size[1] // 2] = 1
    return images, masks


def noise(seed: int = 5) -> Tensor:
    return torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(seed))


def direct(
    transformer: Any, backbone: FluxUnoBackbone, references: References, guidance: float | None
) -> Tensor:
    """diffusers' transformer with everything laid out by hand, UNO's ids among it."""
    prompts = backbone.encode_prompts(PROMPTS)
    rows, offset = [(0, r, c) for r in range(4) for c in range(4)], 4
    for height, width in references.grids:
        rows += [(0, offset + r, offset + c) for r in range(height) for c in range(width)]
        assert height == width
        offset += height
    output: Tensor = transformer(
        hidden_states=torch.cat([noise(), *references.tokens], 1),
        encoder_hidden_states=prompts.embeds_BTD,
        pooled_projections=prompts.pooled_BD,
        timestep=torch.tensor([0.3, 0.8]),
        guidance=None if guidance is None else torch.full((2,), guidance),
        img_ids=torch.tensor(rows, dtype=torch.float32),
        txt_ids=torch.zeros(TEXT_TOKENS, 3),
    ).sample
    return output[:, :16]


def predicted(backbone: FluxUnoBackbone, references: References) -> Tensor:
    prompts = backbone.encode_prompts(PROMPTS)
    return backbone.predict(noise(), torch.tensor([0.3, 0.8]), prompts, references).output_BNC


@torch.no_grad()
def test_predict_is_the_diffusers_transformer(dev: Path) -> None:
    backbone = flux_uno.build(tiny_config(dev, None), "cpu")
    references = backbone.encode_references(*slots(2))
    wanted = direct(pipeline(dev).transformer, backbone, references, 1.0)
    assert torch.equal(predicted(backbone, references), wanted)


@torch.no_grad()
def test_schnell_takes_no_guidance_and_refuses_what_it_could_not_heed(schnell: Path) -> None:
    backbone = flux_uno.build(tiny_config(schnell, None), "cpu")
    images, masks = slots(1)
    references = backbone.encode_references(images, masks)
    wanted = direct(pipeline(schnell).transformer, backbone, references, None)
    assert torch.equal(predicted(backbone, references), wanted)
    with pytest.raises(UserError, match="generate.guidance: 1.5, but this base"):
        backbone.generate(PROMPTS, images, masks, [1, 2], guidance=1.5)


@torch.no_grad()
def test_merged_uno_is_the_unmerged_sum(dev: Path, uno: Path, shared: FluxUnoBackbone) -> None:
    """diffusers loads UNO's file as an adapter beside the weights; ours lies in the weights."""
    references = shared.encode_references(*slots(2))
    loaded = pipeline(dev)
    without = direct(loaded.transformer, shared, references, 1.0)
    loaded.load_lora_weights(str(uno), weight_name="dit_lora.safetensors", adapter_name="uno")
    wanted = direct(loaded.transformer, shared, references, 1.0)
    ours = predicted(shared, references)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    assert (ours - without).abs().mean() > 0.05


@pytest.mark.parametrize("name", ["dev", "schnell"])
def test_sampler_is_the_pipelines(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    backbone = flux_uno.build(tiny_config(folder, None, steps=4, guidance=4.0), "cpu")
    start = noise()
    options = {
        "prompt": PROMPTS,
        "height": 64,
        "width": 64,
        "num_inference_steps": 4,
        "guidance_scale": 4.0,
        "latents": start,
        "max_sequence_length": TEXT_TOKENS,
    }
    loaded = pipeline(folder)
    latents = loaded(**options, output_type="latent").images
    pixels = loaded(**options, output_type="pt").images
    nothing = References((), (), ())
    ours = backbone._sample(start, backbone.sigmas(1.0), PROMPTS, nothing)
    torch.testing.assert_close(ours, latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.decode(ours) / 2 + 0.5, pixels, rtol=1e-4, atol=1e-4)


def test_uno_samples_as_the_pipeline_with_the_adapter(
    dev: Path, uno: Path, shared: FluxUnoBackbone
) -> None:
    loaded = pipeline(dev)
    loaded.load_lora_weights(str(uno), weight_name="dit_lora.safetensors")
    latents = loaded(
        prompt=PROMPTS,
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=4.0,
        latents=noise(),
        max_sequence_length=TEXT_TOKENS,
        output_type="latent",
    ).images
    ours = shared._sample(noise(), shared.sigmas(1.0), PROMPTS, References((), (), ()))
    torch.testing.assert_close(ours, latents, rtol=1e-3, atol=1e-4)


def test_repaint_schedule_is_the_image_to_image_pipelines(dev: Path) -> None:
    backbone = flux_uno.build(tiny_config(dev, None, steps=10), "cpu")
    loaded = FluxImg2ImgPipeline(**pipeline(dev).components)
    whole = backbone.sigmas(1.0)
    loaded.scheduler.set_timesteps(sigmas=np.linspace(1, 0.1, 10), mu=0.4375)
    for strength in (0.35, 0.6, 1.0):
        timesteps, left = loaded.get_timesteps(10, strength, "cpu")
        levels = backbone.sigmas(strength)
        assert len(levels) == left + 1 and torch.equal(levels, whole[10 - left :])
        assert torch.isclose(levels[0], whole[10 - len(timesteps)])


def test_shift_can_be_that_of_unos_released_sampler(dev: Path) -> None:
    true = flux_uno.build(tiny_config(dev, None), "cpu").sigmas(1.0)
    unos = flux_uno.build(tiny_config(dev, None, shift_tokens=4096), "cpu").sigmas(1.0)
    even = torch.linspace(1, 1 / 3, 3)
    shifted = np.exp(1.15) / (np.exp(1.15) + 1 / even - 1)
    torch.testing.assert_close(unos[:-1], shifted.float())
    assert (unos[1:-1] > true[1:-1]).all() and unos[-1] == 0


@torch.no_grad()
def test_sampling_and_training_have_their_own_guidance(
    dev: Path, uno: Path, shared: FluxUnoBackbone
) -> None:
    references = shared.encode_references(*slots(1))
    prompts, level = shared.encode_prompts(PROMPTS), torch.tensor([0.3, 0.8])
    one = direct(shared.transformer, shared, references, 1.0)
    four = direct(shared.transformer, shared, references, 4.0)
    assert torch.equal(shared.predict(noise(), level, prompts, references).output_BNC, one)
    step = torch.tensor([0.8, 0.0])
    sampled = shared._sample(noise(), step, PROMPTS, references)
    inside = shared._predict(noise(), step[:1].expand(2), prompts, references, 4.0).output_BNC
    torch.testing.assert_close(sampled, noise() - 0.8 * inside)
    assert not torch.allclose(one, four, atol=1e-3)
    asked = shared._sample(noise(), step, PROMPTS, references, guidance=1.0)
    first = shared._predict(noise(), step[:1].expand(2), prompts, references, 1.0).output_BNC
    torch.testing.assert_close(asked, noise() - 0.8 * first)
    assert flux_uno.build(tiny_config(dev, uno, train_guidance=4.0), "cpu").train_guidance == 4.0


def test_references_are_as_large_as_uno_makes_them(shared: FluxUnoBackbone) -> None:
    grids = [shared.encode_references(*slots(n, (128, 128))).grids for n in (1, 2, 3)]
    assert grids == [((4, 4),), ((2, 2),) * 2, ((2, 2),) * 3]
    assert shared.encode_references([], []).grids == ()
    wide = shared.encode_references(*slots(1, (80, 128)))
    assert wide.grids == ((2, 4),) and wide.tokens[0].shape == (2, 8, 16)
    assert wide.masks[0].tolist() == [[1, 1, 0, 0] * 2] * 2


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (150, 150), (64, 64), (97, 61)])
def test_framing_is_unos(size: tuple[int, int]) -> None:
    """UNO's preprocess_ref, written with Pillow alone."""
    images, masks = slots(1, size)
    pixels = ((images[0] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for row in range(2):
        picture = Image.fromarray(pixels[row])
        scale = 64 / max(picture.size)
        picture = picture.resize(
            [64 if s == max(picture.size) else int(scale * s) for s in picture.size],
            Image.Resampling.LANCZOS,
        )
        width, height = (side // 16 * 16 for side in picture.size)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
        framed, mask = fit_long_side(images[0], masks[0], 64, 16)
        wanted = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1
        torch.testing.assert_close(framed[row], wanted)
        assert mask.shape == (2, height, width)


def test_a_reference_too_thin_for_a_token_is_refused() -> None:
    with pytest.raises(UserError, match="400 x 20 pixels is too long and thin"):
        fit_long_side(torch.zeros(1, 3, 20, 400), torch.zeros(1, 20, 400), 64, 16)


def test_references_are_told_by_their_place(shared: FluxUnoBackbone) -> None:
    images, masks = slots(2)
    first = shared.generate(PROMPTS, images, masks, [1, 2])
    again = shared.generate(PROMPTS, images, masks, [1, 2])
    swapped = shared.generate(PROMPTS, images[::-1], masks[::-1], [1, 2])
    assert torch.equal(first, again) and first.shape == (2, 3, 64, 64)
    assert not torch.allclose(first, swapped, atol=1e-3)


def test_repainting_keeps_what_lies_outside(shared: FluxUnoBackbone) -> None:
    picture, mask = slots(1)[0][0], torch.zeros(2, 64, 64)
    kept = shared.inpaint(picture, mask, PROMPTS, [], [], [1, 2])
    torch.testing.assert_close(kept, shared.decode(shared.encode_images(picture)))
    whole = shared.inpaint(picture, mask + 1, PROMPTS, [], [], [1, 2])
    torch.testing.assert_close(whole, shared.generate(PROMPTS, [], [], [1, 2]))


@torch.no_grad()
def test_the_reference_policy_is_uno_bit_for_bit(shared: FluxUnoBackbone) -> None:
    references = shared.encode_references(*slots(2))
    before = predicted(shared, references)
    assert not any(p.requires_grad for p in shared.transformer.parameters())
    config = LoraConfig(rank=2, alpha=2, targets=shared.lora_targets)
    try:
        add_policy(shared.transformer, config, seed=0)
        policy = policy_parameters(shared.transformer)
        learning = {n for n, p in shared.transformer.named_parameters() if p.requires_grad}
        # Per double block 8 layers, per single block q, k, v and the output; A and B of each.
        assert learning == set(policy) and len(policy) == 2 * (3 * 8 + 2 * 4)
        for parameter in policy.values():
            parameter.data += 0.3
        assert not torch.allclose(predicted(shared, references), before, atol=1e-3)
        with reference_policy(shared.transformer):
            assert torch.equal(predicted(shared, references), before)
        assert {n for n, p in shared.transformer.named_parameters() if p.requires_grad} == learning
    finally:
        remove_policy(shared.transformer)
    assert torch.equal(predicted(shared, references), before)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_training_runs_and_the_pipeline_takes_the_adapter(
    dev: Path, uno: Path, pair_samples: list[Sample], tmp_path: Path, dtype: str
) -> None:
    config = TrainConfig.model_validate(
        {
            "steps": 2,
            "batch_pairs": 2,
            "lr": 1e-2,
            "warmup": 0,
            "mixed_precision": "no" if dtype == "fp32" else "bf16",
            "gradient_checkpointing": dtype == "bf16",
            "lora": {"rank": 2},
            "tensorboard": False,
        }
    )
    settings = tiny_config(dev, uno, dtype=dtype)
    backbone = flux_uno.build(settings, "cpu")
    assert {p.dtype for p in backbone.transformer.parameters()} == {backbone.dtype}
    result = train(backbone, pair_samples, config, tmp_path)
    assert result.steps == 2
    if dtype == "bf16":
        return
    references = backbone.encode_references(*slots(2))
    base = predicted(backbone, references)
    load_adapter(backbone, tmp_path / "adapter")
    ours = predicted(backbone, references)
    assert not torch.allclose(ours, base, atol=1e-5)
    loaded = pipeline(dev)
    loaded.load_lora_weights(str(uno), weight_name="dit_lora.safetensors", adapter_name="uno")
    loaded.fuse_lora(adapter_names=["uno"])
    loaded.unload_lora_weights()
    loaded.load_lora_weights(str(tmp_path / "adapter"), adapter_name="policy")
    with torch.no_grad():
        theirs = direct(loaded.transformer, backbone, references, 1.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    set_scale(backbone.transformer, 0.0)
    torch.testing.assert_close(predicted(backbone, references), base)


def test_bf16_predicts_in_float32(dev: Path, uno: Path, shared: FluxUnoBackbone) -> None:
    half = flux_uno.build(tiny_config(dev, uno, dtype="bf16"), "cpu")
    references = half.encode_references(*slots(2))
    ours = predicted(half, references)
    assert (
        ours.dtype == torch.float32 and half.encode_prompts(PROMPTS).pooled_BD.dtype == half.dtype
    )
    torch.testing.assert_close(ours, predicted(shared, references), rtol=0.1, atol=0.3)


def test_offload_changes_no_result(dev: Path, uno: Path, shared: FluxUnoBackbone) -> None:
    lent = flux_uno.build(tiny_config(dev, uno, offload=True), "cpu")
    assert lent.fingerprint == shared.fingerprint
    arguments: Sequence[Any] = (PROMPTS, *slots(2), [1, 2])
    assert torch.equal(lent.generate(*arguments), shared.generate(*arguments))


def test_fingerprint_is_known_without_loading(
    dev: Path, uno: Path, shared: FluxUnoBackbone, tmp_path: Path
) -> None:
    first = flux_uno.fingerprint(tiny_config(dev, uno))
    assert first == shared.fingerprint
    moved = shutil.copytree(dev, tmp_path / "moved")
    assert flux_uno.fingerprint(tiny_config(moved, uno, prompt_cache=str(tmp_path))) == first
    changes: list[dict[str, Any]] = [
        {"steps": 4},
        {"guidance": 3.0},
        {"train_guidance": 2.0},
        {"image_size": (64, 80)},
        {"reference_sizes": (64,)},
        {"dtype": "bf16"},
        {"quantise": "4bit"},
        {"max_text_tokens": 8},
        {"shift_tokens": 16},
    ]
    found = {flux_uno.fingerprint(tiny_config(dev, uno, **change)) for change in changes}
    found.add(flux_uno.fingerprint(tiny_config(dev, None)))
    edit_json(moved / "scheduler" / "scheduler_config.json", base_shift=0.6)
    found.add(flux_uno.fingerprint(tiny_config(moved, uno)))
    assert len(found) == len(changes) + 2 and first not in found


def test_checks_say_what_was_found(dev: Path, uno: Path) -> None:
    told = {name: check() for name, check in flux_uno.checks(tiny_config(dev, uno)).items()}
    assert "dev" in told["pipeline"] and "rank 4, 3 double and 2 single blocks" in told["uno"]
    assert "FluxTransformer2DModel" in told["transformer"] and "1 files" in told["transformer"]
    assert "uno" not in flux_uno.checks(tiny_config(dev, None))


def test_sources_leave_the_single_file_weights_out() -> None:
    found = flux_uno.sources(flux_uno.FluxUnoConfig())
    fields = [(field, source) for field, source, _ in found]
    assert fields == [
        ("models.backbone.base", "black-forest-labs/FLUX.1-dev"),
        ("models.backbone.uno", "bytedance-research/UNO"),
    ]
    assert "transformer/*" in (found[0][2] or []) and "*.safetensors" not in (found[0][2] or [])


def test_sharded_weights_are_read_and_a_missing_shard_is_named(
    copy: Path, uno: Path, shared: FluxUnoBackbone
) -> None:
    shards = shard_transformer(copy)
    assert len(shards) > 1
    sharded = flux_uno.build(tiny_config(copy, uno), "cpu")
    references = shared.encode_references(*slots(1))
    assert torch.equal(predicted(sharded, references), predicted(shared, references))
    shards[0].unlink()
    with pytest.raises(UserError, match=rf"models.backbone.base.*{shards[0].name}"):
        flux_uno.build(tiny_config(copy, uno), "cpu")


def broken(config: flux_uno.FluxUnoConfig) -> str:
    with pytest.raises(UserError) as error:
        flux_uno.build(config, "cpu")
    return str(error.value)


def test_wrong_bases_are_named_before_anything_loads(copy: Path, tmp_path: Path) -> None:
    config = tiny_config(copy, None)
    edit_json(copy / "transformer" / "config.json", num_layers=4)
    assert "tensors missing, first: transformer_blocks.3" in broken(config)
    edit_json(
        copy / "transformer" / "config.json", num_layers=3, _class_name="SD3Transformer2DModel"
    )
    assert "SD3Transformer2DModel, expected FluxTransformer2DModel" in broken(config)
    edit_json(copy / "transformer" / "config.json", _class_name="FluxTransformer2DModel")
    edit_json(copy / "model_index.json", _class_name="StableDiffusionXLPipeline")
    assert "StableDiffusionXLPipeline, expected FluxPipeline" in broken(config)
    edit_json(copy / "model_index.json", _class_name="FluxPipeline")
    shutil.rmtree(copy / "tokenizer_2")
    assert "tokenizer_2 lacks spiece.model or tokenizer.json" in broken(config)
    absent = tiny_config(tmp_path / "nowhere", None)
    assert "nowhere does not exist" in broken(absent)
    assert "focusdpo fetch" in broken(absent.model_copy(update={"base": "nobody/nothing"}))


def test_a_base_of_another_text_encoder_is_refused(copy: Path) -> None:
    edit_json(copy / "text_encoder_2" / "config.json", num_layers=3)
    assert "tensors missing" in broken(tiny_config(copy, None))


def test_a_lora_of_another_model_is_refused(dev: Path, tmp_path: Path) -> None:
    tensors = uno_tensors()
    name = "single_blocks.1.processor.proj_lora.down.weight"
    mixed = make_uno(tmp_path / "mixed", tensors | {name: torch.zeros(5, 120)})
    assert "models.backbone.uno" in (message := broken(tiny_config(dev, mixed)))
    assert "mixes LoRA ranks [4, 5]" in message
    narrow = make_uno(tmp_path / "narrow", tensors | {name: torch.zeros(4, 96)})
    assert "1 of another shape" in broken(tiny_config(dev, narrow))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no dit_lora.safetensors" in broken(tiny_config(dev, empty))


def test_tokenisers_are_read_in_their_older_layout(copy: Path, shared: FluxUnoBackbone) -> None:
    """FLUX.1's own repositories hold vocab.json and merges.txt for CLIP."""
    folder = copy / "tokenizer"
    about = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(about["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in about["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer.json").unlink()
    older = flux_uno.build(tiny_config(copy, None), "cpu").encode_prompts(PROMPTS)
    now = shared.encode_prompts(PROMPTS)
    assert torch.equal(older.pooled_BD, now.pooled_BD)
    assert torch.equal(older.embeds_BTD, now.embeds_BTD)


def test_blocks_and_sizes_are_checked_against_the_base(dev: Path) -> None:
    assert "no block 'double.3'" in broken(tiny_config(dev, None, blocks=("double.3",)))
    assert "no block 'x'" in broken(tiny_config(dev, None, blocks=("x",)))
    with pytest.raises(ValueError, match="multiples of 16"):
        tiny_config(dev, None, image_size=(60, 64))
    assert middle_blocks(19) == tuple(f"double.{i}" for i in range(6, 12))
    assert middle_blocks(1) == ("double.0",)


def test_quantised_weights_need_their_package_and_a_gpu(dev: Path, uno: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    message = broken(tiny_config(dev, uno, quantise="4bit"))
    assert "models.backbone.quantise: 4bit needs" in message and "none" in message
