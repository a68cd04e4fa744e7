"""What a backbone takes of a machine, from the sizes in its files: nothing is loaded, and no torch.

The activations' constants were counted, not fitted: the most bytes alive in a training step of the
full architecture with a LoRA on the default layers, under bf16's autocast, attention fused
(tests/model/backbones/test_footprint.py counts them again, without a GPU). They are multiples of
the block's own input, B tokens of D numbers in 16 bits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from focusdpo.model.training.config import AdapterKind
from focusdpo.store.checkpoints import TensorInfo

BYTES = {"bf16": 2.0, "fp16": 2.0, "fp32": 4.0, "8bit": 1.05, "4bit": 0.55}
"""Per weight; bitsandbytes keeps scales beside its 1 or 0.5."""
HALF = 2


@dataclass(frozen=True, slots=True)
class Units:
    """Of a transformer's blocks, in inputs of a block."""

    double: float
    single: float
    """What they keep for the backward."""
    passing: float
    """Beside what is kept, in the last block's forward: peft's float32 copies, the feed-forward."""
    again: float
    """A checkpointed block that is computed again and differentiated."""
    dora: float
    """A DoRA's activations over a LoRA's."""
    lokr: float
    """A LoKr's, without the matrices that it makes. Above 1 where norms come before wide layers:
    peft gives outputs the type of inputs, float32 after norms."""


FLUX = Units(20.2, 22.2, 25.7, 46.6, 1.2, 1.0)
KLEIN = Units(28.4, 26.2, 21.4, 45.6, 1.5, 1.3)
COPIES, COPIES_AGAIN = 2, 4
"""Bytes of a LoKr for each number of the matrices that it covers: what a backward needs, and of a
block that is computed again, with its gradients."""
SDXL_KEPT, SDXL_CHECKPOINTED, SDXL_LARGEST = 0.4575 * 2**20, 0.026 * 2**20, 0.010 * 2**20
"""Of SDXL's UNet: bytes of an image for each place of its latents."""
SDXL_CAPTURED = 2 * (1280 + 640) / 4
"""The same of the two up blocks with attention, read at each fourth place."""
SDXL_WORDS = 0.11 * 2**30
"""Keys and values of an image's words and image tokens in 70 blocks, where all are kept."""
SDXL_BESIDE = 0.19 * 2**30
"""Of a pass, however many images: the adapter in 16 bits, references of 512 pixels."""
SDXL_PAINTING = 0.010 * 2**20
PAINTING = 12
"""A pass without gradient, in inputs of a block."""
DECODER = 3 * 2**30
"""Of an autoencoder for a million pixels, in float32."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes, but for `lora`."""

    device: float
    """Weights that stay on the device."""
    host: float
    """Main memory at its fullest: while weights are read, or with what waits there."""
    scratch: float
    """Of the temporary folder."""
    lora: float
    """Trained numbers per rank; with `fixed` in all."""
    fixed: bool
    kept: float
    """Activations of one image's pass that a backward needs, all of them."""
    checkpointed: float
    """The same under gradient checkpointing, without the block in work."""
    largest: float
    """Of one image in the block that is computed again, with its gradients."""
    captured: float
    """Token features of one image that the focus maps read."""
    painting: float
    """Of one picture while it is painted."""
    flops: float
    """Operations (not bytes) of one image's forward pass: products of matrices, two a
    multiply-add."""
    passes: int
    """Forward passes of a picture that is painted."""
    decoding: float
    """Of the autoencoder, for as many pictures as it takes at once."""
    beside: float = 0.0
    """Of a pass, however many images: what goes by the adapter's and the references' size."""
    dora: float = 1.5
    """A DoRA's activations over a LoRA's (not bytes)."""
    rows: float = 0.0
    """While a DoRA's lengths of rows are computed."""
    lokr: float = 1.3
    """A LoKr's activations over a LoRA's (not bytes), without the matrices that it makes."""
    covered: float = 0.0
    """Numbers (not bytes) of all matrices that the adapter covers."""
    covered_block: float = 0.0
    """Of those in the block that has most of them."""

    def policy(self, rank: int, kind: AdapterKind = "lora") -> float:
        """A LoRA in float32 with its gradient and AdamW's two moments. A LoKr's factors, some
        thousands of numbers a matrix, count nothing."""
        if kind == "lokr":
            return 0.0
        return 16 * self.lora * (1 if self.fixed else rank)

    def activations(
        self, pairs: int, *, checkpointing: bool, sequential: bool, kind: AdapterKind = "lora"
    ) -> float:
        """Of a pass over pairs, forward and backward."""
        images = pairs if sequential else 2 * pairs
        per_image = self.checkpointed + self.largest if checkpointing else self.kept
        passing = images * per_image + 2 * pairs * self.captured + self.beside
        if kind == "dora":
            return self.dora * passing + self.rows
        if kind == "lokr":
            whole = COPIES_AGAIN * self.covered_block if checkpointing else COPIES * self.covered
            return self.lokr * passing + whole
        return passing


def rows_bytes(widest: int) -> float:
    """peft sends a unit matrix as wide as the layer's input through A and B; counted."""
    return 6.0 * widest**2


def block_activations(
    tokens: int, width: int, counts: tuple[int, int], units: Units, captured: int
) -> dict[str, float]:
    """The activations of one image in a transformer of (double, single) blocks."""
    unit = float(tokens * width * HALF)
    double, single = counts
    return {
        "kept": unit * (double * units.double + single * units.single + units.passing),
        "checkpointed": unit * (sum(counts) + 1),
        "largest": unit * units.again,
        "captured": unit * captured,
        "painting": unit * PAINTING,
        "dora": units.dora,
        "lokr": units.lokr,
    }


def unet_activations(places: float) -> dict[str, float]:
    """The activations of one image in SDXL's UNet, for so many places of its latents."""
    return {
        "kept": SDXL_KEPT * places + SDXL_WORDS,
        "checkpointed": SDXL_CHECKPOINTED * places,
        "largest": SDXL_LARGEST * places,
        "captured": SDXL_CAPTURED * places,
        "beside": SDXL_BESIDE,
        "dora": 1.3,
        "rows": rows_bytes(2048),
        "lokr": 0.7,
    }


def block_flops(
    header: Mapping[str, TensorInfo], image: int, text: int, width: int, blocks: int
) -> float:
    """A forward pass over image and text tokens through double and single blocks: the text's
    matrices see text, the image's see the image, a single block's see both; modulation is left
    out."""
    total = 4.0 * (image + text) ** 2 * width * blocks
    for name, about in header.items():
        if len(about.shape) != 2 or "norm" in name or "transformer_blocks." not in name:
            continue
        tokens = image
        if name.startswith("single_"):
            tokens = image + text
        elif ".add_" in name or "to_add_out" in name or "ff_context" in name:
            tokens = text
        total += 2.0 * tokens * prod(about.shape)
    return total


def sdxl_flops(places: float) -> float:
    """A forward pass of SDXL's UNet for so many places of its latents; counted at 512 to 1024
    pixels, to 1 %."""
    return places * (3.805e8 + 2017 * places)


def decoder_bytes(pixels: int, dtype: str) -> float:
    """An autoencoder at work on so many pixels at once."""
    return DECODER * pixels / 2**20 * BYTES[dtype] / BYTES["fp32"]


def lent_bytes(decoder: float, autoencoder: float, encoders: float, offload: bool) -> float:
    """The autoencoder at work; with `offload` its weights come for it, and the encoders for theirs,
    one after the other."""
    return max(decoder + autoencoder, encoders) if offload else decoder


def weight_bytes(header: Mapping[str, TensorInfo], dtype: str, quantise: str = "none") -> float:
    """Weights in memory; of a quantised model its matrices in few bits, the rest in `dtype`."""
    few = BYTES[dtype if quantise == "none" else quantise]
    return sum(
        prod(info.shape) * (few if len(info.shape) == 2 else BYTES[dtype])
        for info in header.values()
    )


def lora_per_rank(header: Mapping[str, TensorInfo], targets: Iterable[str]) -> float:
    """Numbers of a LoRA of rank 1 on the matrices whose modules end so, as peft matches them."""
    return float(sum(sum(shape) for _, shape in _covered(header, targets)))


def covered_numbers(header: Mapping[str, TensorInfo], targets: Iterable[str]) -> dict[str, float]:
    """Of the matrices whose modules end so: all, and those in the block that has most of them."""
    blocks: Counter[str] = Counter()
    for name, shape in _covered(header, targets):
        block = re.match(r".*blocks\.\d+", name)
        blocks[block[0] if block else ""] += prod(shape)
    most = max(blocks.values(), default=0)
    return {"covered": float(blocks.total()), "covered_block": float(most)}


def _covered(
    header: Mapping[str, TensorInfo], targets: Iterable[str]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Modules and shapes of their matrices."""
    ends = tuple(targets)
    for name, about in header.items():
        module = name.removesuffix(".weight")
        covered = any(module == end or module.endswith(f".{end}") for end in ends)
        if covered and name.endswith(".weight") and len(about.shape) == 2:
            yield module, tuple(about.shape)
