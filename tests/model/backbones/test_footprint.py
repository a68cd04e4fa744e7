"""What footprints say of activations, held against whole training steps of public architectures:
each tensor of forward passes, loss and backward pass is counted, without GPU and weights.
"""

from __future__ import annotations

from typing import Literal

import pytest
from counted_step import counted_step

from focusdpo.model.backbones.footprint import (
    FLUX,
    KLEIN,
    SDXL_ALL,
    SDXL_CHECKPOINTED,
    SDXL_LARGEST,
    Footprint,
    Units,
    block_activations,
    rows_bytes,
)

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


@pytest.mark.parametrize(("checkpointing", "memory"), MANNERS)
def test_sdxls_step_takes_what_its_footprint_says(
    checkpointing: bool, memory: Literal["joint", "sequential"], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = 128 * 128
    own = footprint(
        kept=SDXL_ALL * places,
        checkpointed=SDXL_CHECKPOINTED * places,
        largest=SDXL_LARGEST * places,
        captured=SDXL_CHECKPOINTED * places / 4,
    )
    said = own.activations(1, checkpointing=checkpointing, sequential=memory == "sequential")
    taken = counted_step(monkeypatch, "sdxl", gradient_checkpointing=checkpointing, memory=memory)
    assert taken == pytest.approx(said, rel=0.1)
