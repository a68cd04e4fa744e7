"""FLUX.2 Klein on a tiny random checkpoint: the same as diffusers' own pipeline; its files are
identified without loading, and refused when they are not whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_flux import edit_json as edit
from tiny_flux2 import LAYERS, TOKENS, save_tiny_flux2, tiny_config
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import load_adapter
from focusdpo.model.backbone import FeatureConfig
from focusdpo.model.backbones import flux2_klein
from focusdpo.model.backbones.flux2_backbone import (
    Flux2KleinBackbone,
    image_ids,
    lora_targets,
    text_ids,
)
from focusdpo.model.training.config import TrainConfig
from focusdpo.model.training.run import train
from focusdpo.store.samples import Sample

PROMPTS = ["a cat and a dog on grass", "a car and a cat on grass"]


@pytest.fixture(scope="session")
def flux2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_flux2(tmp_path_factory.mktemp("flux2"))


@pytest.fixture(scope="module")
def klein(flux2_folder: Path) -> Flux2KleinBackbone:
    return flux2_klein.build(tiny_config(flux2_folder), "cpu")


@pytest.fixture(scope="module")
def pipeline(flux2_folder: Path) -> Any:
    pipe = Flux2KleinPipeline.from_pretrained(flux2_folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(count: int, seed: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    return [Image.fromarray(np.kron(b, np.ones((8, 8, 1), np.uint8))) for b in blocks]


def as_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


def slots(count: int, seed: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    """One item's references."""
    images = [as_tensor(picture) for picture in pictures(count, seed)]
    return images, [torch.ones(1, 64, 64)] * count


def painted_by(pipe: Any, noise: Tensor, references: list[Image.Image], **options: Any) -> Tensor:
    """The pipeline's picture (1, 3, 64, 64) in [-1, 1] from the noise (1, N, C)."""
    image = pipe(
        image=references or None,
        prompt=PROMPTS[:1],
        height=64,
        width=64,
        latents=noise.transpose(1, 2).unflatten(2, (4, 4)),
        max_sequence_length=TOKENS,
        text_encoder_out_layers=LAYERS,
        output_type="pt",
        **options,
    ).images
    return torch.as_tensor(image) * 2 - 1


def test_ids_are_the_pipelines() -> None:
    latents = [torch.zeros(1, 16, rows, cols) for rows, cols in ((4, 6), (2, 3), (5, 1))]
    wanted = torch.cat(
        [
            Flux2KleinPipeline._prepare_latent_ids(latents[0])[0],
            Flux2KleinPipeline._prepare_image_ids(latents[1:])[0],
        ]
    )
    assert torch.equal(image_ids((4, 6), ((2, 3), (5, 1))), wanted)
    text = Flux2KleinPipeline._prepare_text_ids(torch.zeros(1, 7, 5))[0]
    assert torch.equal(text_ids(7), text)


def test_prompts_are_the_pipelines(klein: Flux2KleinBackbone, pipeline: Any) -> None:
    """With the text encoder's last layer cut off, and one prompt at a time."""
    wanted, _ = pipeline.encode_prompt(
        PROMPTS, max_sequence_length=TOKENS, text_encoder_out_layers=LAYERS
    )
    found = klein.encode_prompts(PROMPTS)
    torch.testing.assert_close(found.embeds_BTD, wanted)
    assert found.pooled_BD.shape == (2, 0)
    assert torch.equal(klein.encode_prompts(PROMPTS[1:]).embeds_BTD, found.embeds_BTD[1:])


def test_latents_are_the_pipelines(klein: Flux2KleinBackbone, pipeline: Any) -> None:
    picture = as_tensor(pictures(1)[0])
    patches = pipeline._encode_vae_image(picture, generator=None)
    packed = pipeline._pack_latents(patches)
    torch.testing.assert_close(klein.encode_images(picture), packed, rtol=1e-5, atol=1e-5)


def test_predict_is_the_transformers_own_pass(klein: Flux2KleinBackbone) -> None:
    noisy = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(4))
    sigma, prompts = torch.tensor([0.3, 0.8]), klein.encode_prompts(PROMPTS)
    images, masks = slots(2)
    references = klein.encode_references([i.repeat(2, 1, 1, 1) for i in images], masks)
    rows = [(t, r, c, 0) for t in (0, 10, 20) for r in range(4) for c in range(4)]
    with torch.no_grad():
        direct = klein.transformer(
            hidden_states=torch.cat([noisy, *references.tokens], 1),
            encoder_hidden_states=prompts.embeds_BTD,
            timestep=sigma,
            img_ids=torch.tensor(rows),
            txt_ids=torch.tensor([(0, 0, 0, i) for i in range(TOKENS)]),
        ).sample
        found = klein.predict(noisy, sigma, prompts, references)
    assert torch.equal(found.output_BNC, direct[:, :16])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_sampling_is_the_pipelines(klein: Flux2KleinBackbone, pipeline: Any, count: int) -> None:
    wanted = painted_by(pipeline, klein._noise([5]), pictures(count), num_inference_steps=4)
    images, masks = slots(count)
    found = klein.generate(PROMPTS[:1], images, masks, [5])
    torch.testing.assert_close(found, wanted.clamp(-1, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [0, 2])
def test_guided_sampling_of_a_base_checkpoint_is_the_pipelines(tmp_path: Path, count: int) -> None:
    folder = save_tiny_flux2(tmp_path, distilled=False)
    base = flux2_klein.build(tiny_config(folder, steps=3, guidance=2.5), "cpu")
    pipe = Flux2KleinPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "guidance_scale": 2.5}
    wanted = painted_by(pipe, base._noise([6]), pictures(count), **options)
    images, masks = slots(count)
    found = base.generate(PROMPTS[:1], images, masks, [6])
    torch.testing.assert_close(found, wanted.clamp(-1, 1), rtol=1e-4, atol=1e-4)
    other = flux2_klein.build(tiny_config(folder, steps=3, guidance=4.0), "cpu")
    asked = other.generate(PROMPTS[:1], images, masks, [6], guidance=2.5)
    torch.testing.assert_close(asked, found, rtol=0, atol=0)
    assert flux2_klein.build(tiny_config(folder), "cpu").sampling.steps == 50


def test_a_distilled_checkpoint_takes_no_guidance(klein: Flux2KleinBackbone) -> None:
    images, masks = slots(1)
    with pytest.raises(
        UserError, match=r"generate.guidance: 2.5, but this checkpoint is distilled"
    ):
        klein.generate(PROMPTS[:1], images, masks, [6], guidance=2.5)
    same = klein.generate(PROMPTS[:1], images, masks, [6], guidance=1.0)
    assert torch.equal(same, klein.generate(PROMPTS[:1], images, masks, [6]))


@pytest.mark.parametrize("block", ["double.1", "single.0"])
def test_captured_keys_are_the_attentions_own(klein: Flux2KleinBackbone, block: str) -> None:
    """After QK norm and before RoPE, image tokens alone; the output does not change by a bit."""
    noisy = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(4))
    inputs = (
        noisy,
        torch.tensor([0.4]),
        klein.encode_prompts(PROMPTS[:1]),
        klein.encode_references(*slots(2)),
    )
    kind, index = block.split(".")
    lists = {"double": "transformer_blocks", "single": "single_transformer_blocks"}
    attention: Any = klein.transformer.get_submodule(f"{lists[kind]}.{index}.attn")
    seen: list[Any] = []
    handle = attention.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        captured = klein.predict(*inputs, capture=FeatureConfig(kind="keys", blocks=(block,)))
        plain = klein.predict(*inputs)
        handle.remove()
        if kind == "double":
            keys = attention.to_k(seen[0])
        else:
            keys = attention.to_qkv_mlp_proj(seen[0])[:, -48:, 32:64]
        wanted = attention.norm_k(keys.unflatten(-1, (2, 16))).flatten(2)
    joined = torch.cat([captured.target_features[0], *captured.reference_features[0]], 1)
    assert torch.equal(joined, wanted)
    assert torch.equal(plain.output_BNC, captured.output_BNC)


def test_an_image_depends_on_its_own_seed_alone(klein: Flux2KleinBackbone) -> None:
    (first,), (mask,) = slots(1)
    second = slots(1, seed=9)[0][0]
    both = klein.generate(PROMPTS, [torch.cat([first, second])], [mask.repeat(2, 1, 1)], [1, 2])
    alone = klein.generate(PROMPTS[1:], [second], [mask], [2])
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(alone, klein.generate(PROMPTS[1:], [second], [mask], [3]), atol=1e-2)


def test_repaint_keeps_latents_outside_the_mask(klein: Flux2KleinBackbone) -> None:
    picture, mask = as_tensor(pictures(1)[0]), torch.zeros(1, 64, 64)
    none = klein.inpaint(picture, mask, PROMPTS[:1], [], [], [1])
    torch.testing.assert_close(none, klein.decode(klein.encode_images(picture)))
    full = klein.inpaint(picture, mask + 1, PROMPTS[:1], [], [], [1])
    torch.testing.assert_close(full, klein.generate(PROMPTS[:1], [], [], [1]))


def test_strength_takes_the_last_steps(klein: Flux2KleinBackbone, pipeline: Any) -> None:
    assert torch.equal(klein.sigmas(0.5), klein.sigmas(1.0)[2:])
    assert len(klein.sigmas(0.01)) == 2
    assert klein.sigmas(1.0)[0] == 1 and klein.sigmas(1.0)[-1] == 0


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "steps": 2,
            "batch_pairs": 2,
            "lr": 1e-2,
            "warmup": 1,
            "mixed_precision": "no",
            "lora": {"rank": 2},
            "objective": {"name": "focus_dpo", "beta": 100.0},
        }
        | changes
    )


def test_an_adapter_trains_and_diffusers_loads_it(
    klein: Flux2KleinBackbone, pipeline: Any, pair_samples: list[Sample], tmp_path: Path
) -> None:
    base = klein.generate(PROMPTS[:1], *slots(2), [5])
    result = train(klein, pair_samples, settings(), tmp_path)
    assert result.steps == 2
    card = load_adapter(klein, tmp_path / "adapter")
    try:
        assert set(card.lora.targets) == set(lora_targets(2))
        ours = klein.generate(PROMPTS[:1], *slots(2), [5])
        pipeline.load_lora_weights(
            tmp_path / "adapter", weight_name="pytorch_lora_weights.safetensors"
        )
        noise = klein._noise([5])
        theirs = painted_by(pipeline, noise, pictures(2), num_inference_steps=4)
        torch.testing.assert_close(ours, theirs.clamp(-1, 1), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(ours, base, atol=1e-3)
    finally:
        klein.transformer.unload_lora()  # type: ignore[operator]
        pipeline.unload_lora_weights()


@pytest.mark.slow
def test_checkpointing_and_half_precision_train_too(
    flux2_folder: Path, pair_samples: list[Sample], tmp_path: Path
) -> None:
    """Checkpointed gradients are the plain ones; a bf16 base trains a float32 LoRA."""
    config = tiny_config(flux2_folder)
    weights = []
    for index, checkpointing in enumerate((False, True)):
        backbone = flux2_klein.build(config, "cpu")
        run = tmp_path / str(index)
        train(backbone, pair_samples, settings(gradient_checkpointing=checkpointing), run)
        weights.append(load_file(run / "adapter" / "pytorch_lora_weights.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)
    half = flux2_klein.build(tiny_config(flux2_folder, dtype="bf16"), "cpu")
    train(half, pair_samples, settings(mixed_precision="bf16"), tmp_path / "half")
    saved = load_file(tmp_path / "half" / "adapter" / "pytorch_lora_weights.safetensors")
    moved = [tensor for name, tensor in saved.items() if "lora_B" in name]
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in moved)
    assert sum(bool(t.abs().max() > 0) for t in moved) > len(moved) // 2


def test_sizes_and_places_leave_results_alone(flux2_folder: Path) -> None:
    offloaded = flux2_klein.build(tiny_config(flux2_folder, offload=True), "cpu")
    plain = flux2_klein.build(tiny_config(flux2_folder, prompt_cache_mib=0), "cpu")
    assert offloaded.fingerprint == plain.fingerprint
    pair = [backbone.encode_prompts(PROMPTS).embeds_BTD for backbone in (offloaded, plain)]
    assert torch.equal(*pair)
    assert plain.encode_prompts(PROMPTS)


def test_half_precision_stays_close(flux2_folder: Path, klein: Flux2KleinBackbone) -> None:
    half = flux2_klein.build(tiny_config(flux2_folder, dtype="bf16", vae_dtype="bf16"), "cpu")
    assert next(half.transformer.parameters()).dtype == torch.bfloat16
    noisy = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(4))
    outputs = []
    for backbone in (half, klein):
        references = backbone.encode_references(*slots(1))
        prompts = backbone.encode_prompts(PROMPTS[:1])
        with torch.no_grad():
            found = backbone.predict(noisy, torch.tensor([0.5]), prompts, references)
        outputs.append(found.output_BNC)
    assert outputs[0].dtype == torch.float32
    assert (outputs[0] - outputs[1]).norm() < 0.15 * outputs[1].norm()
    assert torch.isfinite(half.generate(PROMPTS[:1], *slots(1), [5])).all()
    assert half.fingerprint != klein.fingerprint


def test_a_long_prompt_is_refused(klein: Flux2KleinBackbone) -> None:
    with pytest.raises(UserError, match="text_tokens"):
        klein.encode_prompts(["a cat " * 40])


def test_fingerprint_is_known_without_loading(flux2_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(flux2_folder)
    klein = flux2_klein.build(config, "cpu")
    assert flux2_klein.fingerprint(config) == klein.fingerprint
    moved = shutil.copytree(flux2_folder, tmp_path / "moved")
    assert flux2_klein.fingerprint(tiny_config(moved)) == klein.fingerprint
    for change in (
        {"steps": 3},
        {"image_size": (64, 96)},
        {"strength": 0.5},
        {"blocks": ("double.0",)},
    ):
        changed = tiny_config(flux2_folder, **change)
        assert flux2_klein.fingerprint(changed) != klein.fingerprint, change
    file = moved / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["bn.running_mean"] += 1
    save_file(tensors, file)
    assert flux2_klein.fingerprint(tiny_config(moved)) != klein.fingerprint


def test_doctor_names_what_it_found(flux2_folder: Path) -> None:
    rows = {name: check() for name, check in flux2_klein.checks(tiny_config(flux2_folder)).items()}
    assert "distilled" in rows["pipeline"] and "2 + 2" in rows["pipeline"]
    assert all("M weights" in line for name, line in rows.items() if name != "pipeline")
    (field, source, patterns) = flux2_klein.sources(tiny_config(flux2_folder))[0]
    assert (field, source) == ("models.backbone.base", str(flux2_folder))
    assert patterns and "transformer/*" in patterns


def drop(folder: Path, tensor: str) -> None:
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop(tensor)
    save_file(tensors, file)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another pipeline": (
        lambda f: edit(f / "model_index.json", _class_name="FluxPipeline"),
        "FluxPipeline, expected Flux2KleinPipeline",
    ),
    "another transformer": (
        lambda f: edit(f / "transformer" / "config.json", _class_name="FluxTransformer2DModel"),
        "expected Flux2Transformer2DModel",
    ),
    "another size": (
        lambda f: edit(f / "transformer" / "config.json", num_layers=3),
        "tensors missing",
    ),
    "a missing tensor": (lambda f: drop(f, "x_embedder.weight"), "x_embedder.weight"),
    "another text encoder": (
        lambda f: edit(f / "text_encoder" / "config.json", hidden_size=32),
        "text of width 48",
    ),
    "another autoencoder": (
        lambda f: edit(f / "vae" / "config.json", latent_channels=8),
        "16 channels",
    ),
    "another schedule": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler"),
        "DDIMScheduler, expected FlowMatch",
    ),
    "no chat template": (
        lambda f: (f / "tokenizer" / "chat_template.jinja").unlink(),
        "chat template",
    ),
    "no tokeniser": (lambda f: (f / "tokenizer" / "tokenizer.json").unlink(), "tokenizer.json"),
    "a missing folder": (lambda f: shutil.rmtree(f / "vae"), "right folder"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_refused_before_it_is_loaded(
    flux2_folder: Path, tmp_path: Path, name: str
) -> None:
    harm, message = BROKEN[name]
    folder = shutil.copytree(flux2_folder, tmp_path / "harmed")
    harm(folder)
    with pytest.raises(UserError, match=message):
        flux2_klein.build(tiny_config(folder), "cpu")
    failed = []
    for check in flux2_klein.checks(tiny_config(folder)).values():
        try:
            check()
        except UserError as error:
            failed.append(str(error))
    assert failed and all("models.backbone" in line for line in failed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (64, 72)}, "image_size: 72 is no multiple of 16"),
        ({"reference_size": 40}, "reference_size: 40 is no multiple of 16"),
        ({"text_layers": (1, 2)}, "width 48, 2 layers"),
        ({"text_layers": (1, 2, 9)}, "layers 0 to 5"),
        ({"blocks": ("double.2",)}, "no block 'double.2'.*double.0 to double.1"),
        ({"base": "/nowhere/at/all"}, "models.backbone.base: /nowhere/at/all does not exist"),
        ({"base": "nobody/nothing"}, "focusdpo fetch"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    flux2_folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        flux2_klein.build(tiny_config(flux2_folder, **changes), "cpu")
