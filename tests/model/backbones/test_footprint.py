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
    Footprint,
    Units,
    block_activations,
    rows_bytes,
    unet_activations,
)
from focusdpo.model.training.config import AdapterKind

pytestmark = pytest.mark.slow
TOKENS = 1024 + 2 * 400 + 512
"""Of a picture of 512 pixels, two references of 320 and a prompt."""
SDXL_COVERED = {"covered": 1296e6, "covered_block": 20.3e6}
"""Of the public UNet and adapter: tests/flows/fit/test_public_layout.py."""
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
    acts = block_activations(TOKENS, 3072, (1, 1), units, captured=1)
    own = footprint(**acts, rows=rows_bytes(wide * 3072))
    said = own.activations(1, checkpointing=False, sequential=False, kind="dora")
    taken = counted_step(monkeypatch, model, blocks=(1, 1), kind="dora")
    assert taken == pytest.approx(said, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("model", "units", "covered"), [("flux", FLUX, (8, 8)), ("klein", KLEIN, (17, 13))]
)
def test_a_lokr_takes_what_is_said_of_it(
    model: Literal["flux", "klein"],
    units: Units,
    covered: tuple[int, int],
    checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`covered`: of a double and of a single block, in matrices of width x width."""
    blocks, square = (2, 3), 3072.0**2
    own = footprint(
        **block_activations(TOKENS, 3072, blocks, units, captured=1),
        covered=square * (blocks[0] * covered[0] + blocks[1] * covered[1]),
        covered_block=square * max(covered),
    )
    said = own.activations(1, checkpointing=checkpointing, sequential=False, kind="lokr")
    taken = counted_step(
        monkeypatch, model, blocks=blocks, kind="lokr", gradient_checkpointing=checkpointing
    )
    assert taken == pytest.approx(said, rel=0.1)


@pytest.mark.parametrize(
    ("side", "checkpointing", "memory", "kind"),
    [
        (512, False, "joint", "lora"),
        (1024, False, "joint", "lora"),
        (512, True, "sequential", "lora"),
        (1024, True, "joint", "lora"),
        (512, False, "joint", "dora"),
        (512, False, "joint", "lokr"),
    ],
)
def test_sdxls_step_takes_what_its_footprint_says(
    side: int,
    checkpointing: bool,
    memory: Literal["joint", "sequential"],
    kind: AdapterKind,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole UNet, with two references."""
    own = footprint(**unet_activations(side**2 / 64), **SDXL_COVERED)
    said = own.activations(
        1, checkpointing=checkpointing, sequential=memory == "sequential", kind=kind
    )
    taken = counted_step(
        monkeypatch, "sdxl", image_size=side, kind=kind,
        gradient_checkpointing=checkpointing, memory=memory,
    )  # fmt: skip
    assert taken == pytest.approx(said, rel=0.1)
