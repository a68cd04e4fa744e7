"""Token features of the SDXL backbone, and focus maps from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pair_samples import make_sample
from tiny_sdxl import PLUS, save_tiny_sdxl, subjects, tiny_config, tiny_pipeline
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import FeatureConfig, Prediction, Prompts, References
from focusdpo.model.backbones.sdxl_backbone import SdxlBackbone
from focusdpo.model.backbones.sdxl_features import alike, default_blocks, to_grid
from focusdpo.model.backbones.sdxl_ip_adapter import build
from focusdpo.model.backbones.sdxl_noise import reference_noise
from focusdpo.model.correspondence import similarity, unet_blocks
from focusdpo.model.focus import FocusConfig, FocusPriors, focus_maps
from focusdpo.model.tokens import unpack
from focusdpo.model.training.batches import encode_pairs

SIGMA = torch.tensor([0.3, 0.6])
NOISY = torch.randn((2, 16, 16), generator=torch.Generator().manual_seed(0))
MODES = {
    "unet_self": ("keys", "queries", "block_output", "attention"),
    "ip_kv": ("keys", "attention"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def backbones(folder: Path) -> dict[str, SdxlBackbone]:
    return {mode: build(tiny_config(folder, features=mode), "cpu") for mode in MODES}


def encoded(backbone: SdxlBackbone, count: int = 2) -> tuple[Prompts, References]:
    prompts = backbone.encode_prompts(["a cat and a dog", "a car on grass"])
    return prompts, backbone.encode_references(*subjects(count))


@torch.no_grad()
def predict(backbone: SdxlBackbone, **features: Any) -> Prediction:
    capture = FeatureConfig(**features) if features else None
    return backbone.predict(NOISY, SIGMA, *encoded(backbone), capture=capture)


@pytest.mark.parametrize(
    ("mode", "kind"), [(mode, kind) for mode, kinds in MODES.items() for kind in kinds]
)
def test_reading_features_leaves_the_output_alone(
    backbones: dict[str, SdxlBackbone], mode: str, kind: str
) -> None:
    backbone = backbones[mode]
    found = predict(backbone, kind=kind)
    assert torch.equal(found.output_BNC, predict(backbone).output_BNC)
    assert not any(module._forward_hooks for module in backbone.transformer.modules())
    width = (2, 4, 8) if kind == "attention" else (32,)
    assert len(found.target_features) == len(found.reference_features) == 2
    for target, references in zip(found.target_features, found.reference_features, strict=True):
        assert target.shape == (2, 16, *width)
        assert [r.shape for r in references] == [(2, 16, *width)] * 2


def test_unet_self_compares_two_passes_of_the_unet(
    folder: Path, backbones: dict[str, SdxlBackbone]
) -> None:
    """Beside the target's own pass, one over the noised references without image tokens."""
    backbone = backbones["unet_self"]
    found = predict(backbone, kind="keys", blocks=("up.1",))
    prompts, references = encoded(backbone)
    pipeline = tiny_pipeline(folder)
    kept: list[Tensor] = []
    layer = pipeline.unet.up_blocks[1].attentions[-1].transformer_blocks[-1].attn1.to_k
    layer.register_forward_hook(lambda _m, _a, output: kept.append(output))
    shown = torch.stack([torch.zeros(2, 17, 32)] * 2, dim=1)
    pipeline.set_ip_adapter_scale(0.0)
    for r in range(2):
        noisy = backbone.add_noise(references.tokens[r], reference_noise(r, (4, 4)), SIGMA)
        with torch.no_grad():
            pipeline.unet(
                unpack(noisy, (4, 4)),
                torch.tensor([300, 600]),
                encoder_hidden_states=prompts.embeds_BTD,
                added_cond_kwargs={
                    "text_embeds": prompts.pooled_BD,
                    "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]] * 2),
                    "image_embeds": [shown],
                },
            )
        torch.testing.assert_close(found.reference_features[0][r], kept[-1], atol=1e-5, rtol=1e-4)


def test_ip_kv_compares_queries_with_the_image_keys(
    folder: Path, backbones: dict[str, SdxlBackbone]
) -> None:
    """p_r is the mean over a reference's 16 tokens of to_k_ip; the target gives to_q."""
    from safetensors.torch import load_file

    backbone = backbones["ip_kv"]
    found = predict(backbone, kind="keys", blocks=("up.0.1",))
    _, references = encoded(backbone)
    names = [name for name in backbone.transformer.attn_processors if "attn2" in name]
    at = "up_blocks.0.attentions.1.transformer_blocks.1.attn2.processor"
    weights = load_file(folder / "adapter" / "sdxl_models" / PLUS)
    key = weights[f"ip_adapter.{2 * names.index(at) + 1}.to_k_ip.weight"]
    for r in range(2):
        wanted = references.tokens[r] @ key.T
        torch.testing.assert_close(found.reference_features[0][r], wanted, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(mask, torch.ones(2, 16)) for mask in references.masks)
    cosine = similarity(found, references.masks)
    mean = torch.nn.functional.normalize((references.tokens[0] @ key.T).mean(1), dim=1)
    target = torch.nn.functional.normalize(found.target_features[0], dim=2)
    torch.testing.assert_close(cosine[:, 0], (target @ mean[:, :, None])[:, :, 0])


def test_ip_kv_costs_no_pass_and_unet_self_one(backbones: dict[str, SdxlBackbone]) -> None:
    for mode, passes in (("ip_kv", 1), ("unet_self", 2)):
        backbone, seen = backbones[mode], []
        count = seen.append
        handle = backbone.transformer.register_forward_hook(lambda *_, count=count: count(1))
        predict(backbone, kind="keys")
        handle.remove()
        assert len(seen) == passes


def test_winners_and_losers_share_the_pass_over_their_references(
    backbones: dict[str, SdxlBackbone],
) -> None:
    backbone = backbones["unet_self"]
    prompts, references = encoded(backbone)
    twice = (prompts.repeat(2), references.repeat(2))
    rows: list[int] = []
    handle = backbone.transformer.register_forward_hook(
        lambda _m, args, _o: rows.append(len(args[0]))
    )
    with torch.no_grad():
        shared = backbone.predict(
            NOISY.repeat(2, 1, 1), SIGMA.repeat(2), *twice, capture=FeatureConfig()
        )
        apart = backbone.predict(
            NOISY.repeat(2, 1, 1),
            torch.cat([SIGMA, SIGMA + 0.1]),
            *twice,
            capture=FeatureConfig(),
        )
    handle.remove()
    assert rows == [4, 4, 4, 8]  # 2 references of 2 pairs, then of all 4 images
    for block, other in zip(shared.reference_features, apart.reference_features, strict=True):
        for reference, second in zip(block, other, strict=True):
            assert torch.equal(reference[:2], reference[2:])
            torch.testing.assert_close(reference[:2], second[:2], atol=1e-5, rtol=1e-4)
            assert not torch.allclose(second[:2], second[2:], atol=1e-3)


def test_alike_counts_equal_parts() -> None:
    tensor = torch.tensor([1.0, 2.0, 1.0, 2.0])
    assert alike(2, [tensor, tensor.repeat(2)]) == 2
    assert alike(2, [tensor, torch.arange(4.0)]) == 1
    assert alike(4, [tensor]) == 1


def priors() -> FocusPriors:
    inside = torch.zeros(2, 2, 16)
    inside[:, 0, :5], inside[:, 1, 9:14] = 1, 1
    return FocusPriors(inside.amax(1), inside, torch.rand((2, 16)))


@pytest.mark.parametrize(
    ("mode", "kind"), [(mode, kind) for mode, kinds in MODES.items() for kind in kinds]
)
def test_focus_maps_come_from_every_kind(
    backbones: dict[str, SdxlBackbone], mode: str, kind: str
) -> None:
    backbone = backbones[mode]
    found = predict(backbone, kind=kind)
    _, references = encoded(backbone)
    features = FeatureConfig(kind=kind)  # type: ignore[arg-type]
    config = FocusConfig(features=features, kappa=1.0)
    maps = focus_maps(found, references.masks, priors(), config)
    assert maps.matches_BRN.sum(2).tolist() == [[5.0, 5.0]] * 2
    torch.testing.assert_close(maps.weight_BN.mean(1), torch.ones(2))
    none = focus_maps(found, references.masks, priors(), config.model_copy(update={"kappa": 0.0}))
    assert torch.equal(none.structure_BN, priors().prior_BN)
    swapped = Prediction(
        found.output_BNC,
        found.target_features,
        tuple(block[::-1] for block in found.reference_features),
    )
    given = priors()
    given = FocusPriors(given.prior_BN, given.subjects_BRN.flip(1), given.detail_BN)
    other = focus_maps(swapped, references.masks[::-1], given, config)
    assert torch.equal(other.matches_BRN, maps.matches_BRN.flip(1))


def test_a_reference_that_is_in_the_image_is_found_there(
    backbones: dict[str, SdxlBackbone],
) -> None:
    """The target is reference 0 itself, nearly clean: it is nearer to that one than to another."""
    backbone = backbones["unet_self"]
    prompts, references = encoded(backbone)
    sigma = torch.tensor([0.02, 0.02])
    noisy = backbone.add_noise(references.tokens[0], reference_noise(0, (4, 4)), sigma)
    with torch.no_grad():
        found = backbone.predict(
            noisy, sigma, prompts, References((), (), ()), capture=FeatureConfig()
        )
        assert found.reference_features == ((), ())
        both = backbone.predict(noisy, sigma, prompts, references, capture=FeatureConfig())
    cosine = similarity(both, references.masks, pool="patches")
    assert (cosine[:, 0] > cosine[:, 1]).float().mean() > 0.9


def test_blocks_have_names(backbones: dict[str, SdxlBackbone]) -> None:
    unet = backbones["ip_kv"].transformer
    assert unet_blocks(unet) == (
        *("down.1", "down.2", "mid"),
        *("up.0", "up.0.0", "up.0.1", "up.1", "up.1.0", "up.1.1"),
    )
    assert "up.2" in unet_blocks(unet, with_attention=False)
    assert default_blocks(unet, "unet_self") == ("up.0", "up.1")
    assert default_blocks(unet, "ip_kv") == ("up.0.0", "up.0.1")
    for name in unet_blocks(unet):
        assert predict(backbones["unet_self"], kind="keys", blocks=(name,)).target_features
        assert predict(backbones["ip_kv"], kind="keys", blocks=(name,)).target_features
    for name in unet_blocks(unet, with_attention=False):
        found = predict(backbones["unet_self"], kind="block_output", blocks=(name,))
        assert found.target_features[0].shape[:2] == (2, 16)


def test_the_backbone_s_own_blocks_count_where_training_names_none(folder: Path) -> None:
    backbone = build(tiny_config(folder, blocks=("mid",)), "cpu")
    own = predict(backbone, kind="keys").target_features
    named = predict(backbone, kind="keys", blocks=("mid",)).target_features
    assert torch.equal(own[0], named[0])
    assert len(predict(backbone, kind="keys", blocks=("up.0", "up.1")).target_features) == 2


def test_what_is_not_there_is_said(backbones: dict[str, SdxlBackbone]) -> None:
    for kind in ("queries", "block_output"):
        with pytest.raises(UserError, match=f"'{kind}' is not possible.*keys, attention are"):
            predict(backbones["ip_kv"], kind=kind)
    with pytest.raises(UserError, match=r"no block 'double.0' with attention.*mid, up\.0"):
        predict(backbones["unet_self"], kind="keys", blocks=("double.0",))
    with pytest.raises(UserError, match=r"no block 'up.2' with attention"):
        predict(backbones["unet_self"], kind="keys", blocks=("up.2",))
    with pytest.raises(UserError, match=r"no block 'up.9' in this model"):
        predict(backbones["unet_self"], kind="block_output", blocks=("up.9",))


def test_features_come_onto_the_token_grid() -> None:
    fine = torch.arange(16.0).view(1, 16, 1)
    assert torch.equal(to_grid(fine, (8, 8), (4, 4)), fine)
    assert to_grid(fine, (8, 8), (2, 2))[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    coarse = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 4, 1)
    grown = to_grid(coarse, (8, 8), (4, 4)).view(4, 4)
    assert grown[0].tolist() == [0.0, 0.25, 0.75, 1.0]
    assert grown[:, 0].tolist() == [0.0, 0.5, 1.5, 2.0]
    wide = torch.randn(1, 2 * 6, 3)
    assert to_grid(wide, (4, 12), (4, 12)).shape == (1, 48, 3)
    with pytest.raises(ValueError, match="7 features do not come from latents of 8 x 8"):
        to_grid(torch.zeros(1, 7, 1), (8, 8), (4, 4))


@pytest.mark.parametrize("features", ["unet_self", "ip_kv"])
def test_pairs_are_taken_apart(backbones: dict[str, SdxlBackbone], features: str) -> None:
    backbone = backbones[features]
    batch = encode_pairs(backbone, [make_sample(i, 2) for i in range(3)])
    assert len(batch.references.embeds) == (2 if features == "unet_self" else 0)
    parts = [batch.take(slice(i, i + 1)).tensors() for i in range(3)]
    for whole, *ones in zip(batch.tensors(), *parts, strict=True):
        assert torch.equal(whole, torch.cat(ones))
    twice = batch.references.repeat(2)
    assert (twice.copies, twice.repeat(2).copies, twice.take(slice(1)).copies) == (2, 4, 1)
    assert all(len(tensor) == 6 for tensor in twice.tensors())
