"""What footprints say of activations, held against whole training steps of public architectures:
each tensor of forward passes, loss and backward pass is counted, without GPU and weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from counted_step import as_on_a_gpu, counted_step
from public_layout import SDXL_UNET
from torch import Tensor

from focusdpo.model.adapter import add_policy
from focusdpo.model.backbones.footprint import (
    FLUX,
    KLEIN,
    SDXL_ALL,
    SDXL_CHECKPOINTED,
    Footprint,
    Units,
    block_activations,
    rows_bytes,
)
from focusdpo.model.backbones.sdxl_config import LORA_TARGETS
from focusdpo.model.training.config import LoraConfig

pytestmark = pytest.mark.slow
TOKENS = 1024 + 2 * 400 + 512
"""Of a picture of 512 pixels, two references of 320 and a prompt."""
MANNERS = [(False, "joint"), (True, "joint"), (True, "sequential")]


def footprint(**activations: float) -> Footprint:
    nothing = dict.fromkeys(Footprint.__dataclass_fields__, 0.0)
    return Footprint(**(nothing | {"fixed": False, "passes": 0} | activations))  # type: ignore[arg-type]


@pytest.mark.parametrize(("checkpointing", "memory"), MANNERS)
@pytest.mark.parametrize(("model", "units"), [("flux", FLUX), ("klein", KLEIN)])
def test_a_transformers_step_takes_what_its_footprint_says(
    model: Literal["flux", "klein"],
    units: Units,
    checkpointing: bool,
    memory: Literal["joint", "sequential"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of full width and few blocks: a block more takes as much again."""
    blocks = (2, 3)
    own = footprint(**block_activations(TOKENS, 3072, blocks, units, captured=1))
    said = own.activations(1, checkpointing=checkpointing, sequential=memory == "sequential")
    taken = counted_step(
        monkeypatch, model, blocks=blocks, gradient_checkpointing=checkpointing, memory=memory
    )
    assert taken == pytest.approx(said, rel=0.1)


@pytest.mark.parametrize(("model", "units", "wide"), [("flux", FLUX, 5), ("klein", KLEIN, 4)])
def test_a_dora_takes_what_is_said_of_it(
    model: Literal["flux", "klein"], units: Units, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = footprint(**block_activations(TOKENS, 3072, (1, 1), units, captured=1))
    said = own.activations(1, checkpointing=False, sequential=False)
    taken = counted_step(monkeypatch, model, blocks=(1, 1), kind="dora")
    assert taken == pytest.approx(own.dora * said + rows_bytes(wide * 3072), rel=0.1)


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


def test_sdxl_keeps_what_its_footprint_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """All in 16 bits, up to the backward pass: a whole step of it takes too long to count."""
    from diffusers import UNet2DConditionModel

    as_on_a_gpu(monkeypatch)
    side, half = 128, {"dtype": torch.bfloat16}
    with torch.device("meta"):
        model: Any = UNet2DConditionModel(**SDXL_UNET)
        add_policy(model, LoraConfig(rank=32, alpha=32, targets=LORA_TARGETS[:4]), seed=0)
        model.to(torch.bfloat16).train()
        conditions = {"text_embeds": torch.zeros(2, 1280, **half),
                      "time_ids": torch.zeros(2, 6)}  # fmt: skip

        def call() -> Any:
            return model(
                torch.zeros(2, 4, side, side, **half),
                torch.zeros(2),
                encoder_hidden_states=torch.zeros(2, 77, 2048, **half),
                added_cond_kwargs=conditions,
                return_dict=False,
            )

        places = 2 * side * side
        assert kept(model, call, False) == pytest.approx(SDXL_ALL * places, rel=0.1)
        assert kept(model, call, True) == pytest.approx(SDXL_CHECKPOINTED * places, rel=0.1)
