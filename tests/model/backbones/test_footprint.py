"""The activations that footprints are made of, counted again: what autograd keeps of blocks of the
full architectures, on torch's meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from public_layout import FLUX, KLEIN, SDXL_UNET
from torch import Tensor, nn

from focusdpo.model.adapter import add_policy
from focusdpo.model.backbones.flux2_backbone import lora_targets
from focusdpo.model.backbones.footprint import (
    FLUX_DOUBLE,
    FLUX_SINGLE,
    KLEIN_DOUBLE,
    KLEIN_SINGLE,
    SDXL_ALL,
    SDXL_CHECKPOINTED,
    block_activations,
)
from focusdpo.model.backbones.sdxl_config import LORA_TARGETS
from focusdpo.model.backbones.uno_lora import uno_targets
from focusdpo.model.training.config import LoraConfig

pytestmark = pytest.mark.slow
IMAGES, TOKENS, TEXT, RANK = 2, 1024, 512, 32


class Fused(torch.autograd.Function):
    """What fused attention keeps: no scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        return Fused.apply(query, key, value)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)


def kept(model: Any, call: Callable[[], Any], checkpointing: bool) -> float:
    """Bytes beside the weights that a forward pass leaves for its backward."""
    if checkpointing:
        model.enable_gradient_checkpointing()
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            sizes[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    if checkpointing:
        model.disable_gradient_checkpointing()
    return float(sum(sizes.values()))


def policy(model: nn.Module, targets: tuple[str, ...]) -> Any:
    add_policy(model, LoraConfig(rank=RANK, alpha=RANK, targets=targets), seed=0)
    return model.to(torch.bfloat16).train()


def flux(double: int, single: int) -> tuple[Any, Callable[[], Any]]:
    from diffusers import FluxTransformer2DModel

    about = FLUX | {"num_layers": double, "num_single_layers": single}
    model = policy(FluxTransformer2DModel(**about), uno_targets(double, single))
    half = {"dtype": torch.bfloat16}
    return model, lambda: model(
        hidden_states=torch.zeros(IMAGES, TOKENS, 64, **half),
        encoder_hidden_states=torch.zeros(IMAGES, TEXT, 4096, **half),
        pooled_projections=torch.zeros(IMAGES, 768, **half),
        timestep=torch.zeros(IMAGES),
        img_ids=torch.zeros(TOKENS, 3),
        txt_ids=torch.zeros(TEXT, 3),
        guidance=torch.zeros(IMAGES),
        return_dict=False,
    )


def klein(double: int, single: int) -> tuple[Any, Callable[[], Any]]:
    from diffusers import Flux2Transformer2DModel

    about = KLEIN | {"num_layers": double, "num_single_layers": single}
    model = policy(Flux2Transformer2DModel(**about), lora_targets(single))
    half = {"dtype": torch.bfloat16}
    return model, lambda: model(
        hidden_states=torch.zeros(IMAGES, TOKENS, 128, **half),
        encoder_hidden_states=torch.zeros(IMAGES, TEXT, 7680, **half),
        timestep=torch.zeros(IMAGES),
        img_ids=torch.zeros(TOKENS, 4),
        txt_ids=torch.zeros(TEXT, 4),
        guidance=None,
        return_dict=False,
    )


@pytest.mark.parametrize(
    ("make", "units"),
    [(flux, (FLUX_DOUBLE, FLUX_SINGLE)), (klein, (KLEIN_DOUBLE, KLEIN_SINGLE))],
)
def test_a_transformer_keeps_what_its_footprint_says(
    make: Callable[[int, int], tuple[Any, Callable[[], Any]]], units: tuple[float, float]
) -> None:
    said = block_activations(TOKENS + TEXT, 3072, (2, 2), units, 0)
    with torch.device("meta"):
        model, call = make(2, 2)
        assert kept(model, call, False) == pytest.approx(IMAGES * said["kept"], rel=0.03)
        assert kept(model, call, True) == pytest.approx(IMAGES * said["checkpointed"], rel=0.1)


def test_sdxl_keeps_what_its_footprint_says() -> None:
    from diffusers import UNet2DConditionModel

    side, half = 128, {"dtype": torch.bfloat16}
    with torch.device("meta"):
        model = policy(UNet2DConditionModel(**SDXL_UNET), LORA_TARGETS[:4])
        conditions = {"text_embeds": torch.zeros(IMAGES, 1280, **half),
                      "time_ids": torch.zeros(IMAGES, 6)}  # fmt: skip

        def call() -> Any:
            return model(
                torch.zeros(IMAGES, 4, side, side, **half),
                torch.zeros(IMAGES),
                encoder_hidden_states=torch.zeros(IMAGES, 77, 2048, **half),
                added_cond_kwargs=conditions,
                return_dict=False,
            )

        places = IMAGES * side * side
        assert kept(model, call, False) == pytest.approx(SDXL_ALL * places, rel=0.1)
        assert kept(model, call, True) == pytest.approx(SDXL_CHECKPOINTED * places, rel=0.1)
