"""The FLUX backbone on a tiny real transformer."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import FeatureConfig, Prompts, References
from focusdpo.model.backbones.flux import FluxBackbone, SamplingConfig

PROMPTS = ["a cat and a dog on grass", "a car and a cat on grass"]


@pytest.fixture
def slots() -> tuple[list[Tensor], list[Tensor]]:
    """Two reference slots of two images each."""
    generator = torch.Generator().manual_seed(3)
    images = [torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1 for _ in range(2)]
    masks = [torch.ones(2, 64, 64) for _ in range(2)]
    masks[1][:, :32] = 0
    return images, masks


@pytest.fixture
def inputs(
    backbone: FluxBackbone, slots: tuple[list[Tensor], list[Tensor]]
) -> tuple[Tensor, Tensor, Prompts, References]:
    noisy = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(4))
    references = backbone.encode_references(*slots)
    return noisy, torch.tensor([0.3, 0.8]), backbone.encode_prompts(PROMPTS), references


Inputs = tuple[Tensor, Tensor, Prompts, References]
Slots = tuple[list[Tensor], list[Tensor]]


def test_predict_is_the_transformers_own_pass(backbone: FluxBackbone, inputs: Inputs) -> None:
    noisy, sigma, prompts, references = inputs
    rows = [(0, r, c) for r in range(8) for c in range(8)]
    rows += [(0, 8 + r, 8 + c) for r in range(4) for c in range(4)]
    rows += [(0, 12 + r, 12 + c) for r in range(4) for c in range(4)]
    direct = backbone.transformer(
        hidden_states=torch.cat([noisy, *references.tokens], 1),
        encoder_hidden_states=prompts.embeds_BTD,
        pooled_projections=prompts.pooled_BD,
        timestep=sigma,
        img_ids=torch.tensor(rows, dtype=torch.float32),
        txt_ids=torch.zeros(prompts.embeds_BTD.shape[1], 3),
    ).sample
    assert torch.equal(backbone.predict(*inputs).output_BNC, direct[:, :64])


@pytest.mark.parametrize("kind", ["keys", "queries", "block_output"])
def test_capture_does_not_change_the_output(
    backbone: FluxBackbone, inputs: Inputs, kind: Literal["keys", "queries", "block_output"]
) -> None:
    config = FeatureConfig(kind=kind, blocks=("single.0", "double.0"))
    plain, captured = backbone.predict(*inputs), backbone.predict(*inputs, capture=config)
    assert torch.equal(plain.output_BNC, captured.output_BNC)
    assert plain.target_features == ()
    assert [f.shape for f in captured.target_features] == [(2, 64, 24)] * 2
    assert [[f.shape for f in b] for b in captured.reference_features] == [[(2, 16, 24)] * 2] * 2
    assert not captured.target_features[0].requires_grad
    again = backbone.predict(*inputs)
    assert torch.equal(plain.output_BNC, again.output_BNC)


def test_captured_keys_are_the_attentions_own(backbone: FluxBackbone, inputs: Inputs) -> None:
    """Keys after QK norm and before RoPE, image tokens alone, told from the text's by hand."""
    noisy, _, _, references = inputs
    block = backbone.transformer.get_submodule("transformer_blocks.0")
    seen: list[Any] = []
    handle = block.get_submodule("attn").register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    captured = backbone.predict(*inputs, capture=FeatureConfig(kind="keys", blocks=("double.0",)))
    handle.remove()
    attention: Any = block.get_submodule("attn")
    keys = attention.norm_k(attention.to_k(seen[0]).unflatten(-1, (2, 12))).flatten(2)
    joined = torch.cat([captured.target_features[0], *captured.reference_features[0]], 1)
    assert torch.equal(joined, keys)


def test_order_of_references_is_that_of_the_slots(backbone: FluxBackbone, inputs: Inputs) -> None:
    """With their places exchanged too, exchanged references leave the target as it was: a
    reference is told by its tokens and its place, not by its rank in the sequence."""
    noisy, sigma, prompts, references = inputs
    ids = torch.cat([torch.zeros(96, 1), torch.arange(96.0)[:, None].expand(-1, 2)], 1)

    def target(order: Sequence[int]) -> Tensor:
        parts = [slice(64 + 16 * i, 80 + 16 * i) for i in order]
        velocity: Tensor = backbone.transformer(
            hidden_states=torch.cat([noisy, *[references.tokens[i] for i in order]], 1),
            encoder_hidden_states=prompts.embeds_BTD,
            pooled_projections=prompts.pooled_BD,
            timestep=sigma,
            img_ids=torch.cat([ids[:64], *[ids[p] for p in parts]]),
            txt_ids=torch.zeros(prompts.embeds_BTD.shape[1], 3),
        ).sample[:, :64]
        return velocity

    torch.testing.assert_close(target([0, 1]), target([1, 0]), rtol=1e-4, atol=1e-5)
    swapped = References(references.tokens[::-1], references.masks[::-1], references.grids)
    changed = backbone.predict(noisy, sigma, prompts, swapped).output_BNC
    assert not torch.allclose(changed, backbone.predict(*inputs).output_BNC, atol=1e-4)


def test_an_image_depends_on_its_own_seed_alone(backbone: FluxBackbone, slots: Slots) -> None:
    images, masks = slots
    both = backbone.generate(PROMPTS, images, masks, [11, 12])
    alone = backbone.generate(PROMPTS[1:], [i[1:] for i in images], [m[1:] for m in masks], [12])
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-4)
    other = backbone.generate(PROMPTS[1:], [i[1:] for i in images], [m[1:] for m in masks], [13])
    assert not torch.allclose(alone, other, atol=1e-2)


def test_repaint_keeps_latents_outside_the_mask(backbone: FluxBackbone) -> None:
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 2 - 1
    mask = torch.zeros(1, 64, 64)
    none = backbone.inpaint(picture, mask, PROMPTS[:1], [], [], [1])
    torch.testing.assert_close(none, backbone.decode(backbone.encode_images(picture)))
    full = backbone.inpaint(picture, mask + 1, PROMPTS[:1], [], [], [1])
    torch.testing.assert_close(full, backbone.generate(PROMPTS[:1], [], [], [1]))


def test_masks_of_references_follow_the_token_grid(backbone: FluxBackbone, slots: Slots) -> None:
    references = backbone.encode_references(*slots)
    assert references.grids == ((4, 4), (4, 4))
    assert references.masks[0].tolist() == [[1.0] * 16] * 2
    assert references.masks[1].tolist() == [[0.0] * 8 + [1.0] * 8] * 2


def test_sigmas_end_at_zero_and_shift_towards_noise(backbone: FluxBackbone) -> None:
    backbone.sampling = SamplingConfig(steps=4)
    assert backbone.sigmas(1.0).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert backbone.sigmas(0.5).tolist() == [0.5, 0.375, 0.25, 0.125, 0]
    backbone.sampling = SamplingConfig(steps=4, shift=3.0)
    shifted = backbone.sigmas(1.0)
    assert shifted[0] == 1 and shifted[-1] == 0 and shifted[2] == pytest.approx(0.75)


def test_fingerprint_tells_weights_and_settings_not_adapters(backbone: FluxBackbone) -> None:
    from peft import LoraConfig

    def again() -> str:
        backbone.__dict__.pop("fingerprint", None)
        return backbone.fingerprint

    first = again()
    assert again() == first
    transformer: Any = backbone.transformer
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    assert again() == first
    transformer.unload_lora()
    backbone.sampling = SamplingConfig(steps=3)
    assert again() != first
    backbone.sampling = SamplingConfig()
    with torch.no_grad():
        next(transformer.parameters()).add_(1)
    assert again() != first


def test_unknown_block_is_refused_with_the_names_there_are(
    backbone: FluxBackbone, inputs: Inputs
) -> None:
    with pytest.raises(UserError, match=r"single\.7.*double\.0 to double\.0"):
        backbone.predict(*inputs, capture=FeatureConfig(blocks=("single.7",)))


def test_guidance_ends_below_its_sigma(backbone: FluxBackbone, slots: Slots) -> None:
    """Above 1 no step is guided; the generated image is that of guidance 1."""
    images, masks = slots
    pictures = []
    for sampling in (
        SamplingConfig(steps=4, guidance=1),
        SamplingConfig(steps=4, guidance=3, guidance_above=0.99, strength=0.9),
        SamplingConfig(steps=4, guidance=3),
    ):
        backbone.sampling = sampling
        latents = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(1))
        references = backbone.encode_references(images, masks)
        levels = backbone.sigmas(0.9)
        pictures.append(backbone._sample(latents, levels, PROMPTS, references))
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.allclose(pictures[0], pictures[2], atol=1e-3)
