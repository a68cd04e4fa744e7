"""Where an SDXL UNet's token features are read, and how they come onto the token grid.

SDXL has no attention in which target and references meet as patches, so the attention field of
FocusDPO is re-made (method: the UNet's own features of both, or the image adapter's keys).
Letters: B images, R references, N target tokens, n tokens of a layer, m image tokens of a
reference, D feature width, H heads of width d.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import FeatureConfig, Grid
from focusdpo.model.correspondence import unet_blocks

Mode = Literal["unet_self", "ip_kv"]
Reads = dict[str, list[Tensor]]
"""Block name -> what was read in it."""

_KINDS: dict[Mode, tuple[str, ...]] = {
    "unet_self": ("keys", "queries", "block_output", "attention"),
    "ip_kv": ("keys", "attention"),
}
_PROJECTIONS = {"keys": ("to_k",), "queries": ("to_q",), "attention": ("to_q", "to_k")}


def default_blocks(unet: Any, mode: Mode) -> tuple[str, ...]:
    """unet_self: the up blocks with attention (in SDXL 32 x 32 and 64 x 64 places at 1024 pixels);
    ip_kv: the attention layers of the coarsest of them."""
    ups = [n for n in unet_blocks(unet) if n.startswith("up.")]
    whole = tuple(n for n in ups if n.count(".") == 1)
    if mode == "unet_self":
        return whole
    return tuple(n for n in ups if n.startswith(f"{whole[0]}.")) or whole[:1]


class FeatureReader:
    """Reads features of the blocks asked for in passes of a UNet, by hooks that change nothing."""

    def __init__(
        self, unet: Any, config: FeatureConfig, mode: Mode, blocks: tuple[str, ...] = ()
    ) -> None:
        """UserError for a kind that the mode cannot give and for a block that is not there."""
        if config.kind not in _KINDS[mode]:
            raise UserError(
                f"features.kind {config.kind!r} is not possible where the backbone's features are "
                f"{mode}: {', '.join(_KINDS[mode])} are"
            )
        self._unet, self._kind, self._mode = unet, config.kind, mode
        self.blocks = config.blocks or blocks or default_blocks(unet, mode)
        for name in self.blocks:
            self._find(name)

    def _find(self, name: str) -> Any:
        """The block, or the attention layer, of that name."""
        attends = self._kind != "block_output"
        known = unet_blocks(self._unet, with_attention=attends)
        if name not in known:
            what = "with attention " if attends else ""
            raise UserError(
                f"features.blocks: no block {name!r} {what}in this model; it has {', '.join(known)}"
            )
        kind, *places = name.split(".")
        if kind == "mid" and not places:
            return self._unet.mid_block
        blocks = {"down": self._unet.down_blocks, "up": self._unet.up_blocks}
        block = self._unet.mid_block if kind == "mid" else blocks[kind][int(places.pop(0))]
        return block.attentions[int(places[0])] if places else block

    def _last_layer(self, name: str) -> Any:
        """The last transformer block of a block or attention layer."""
        block = self._find(name)
        layer = block.attentions[-1] if hasattr(block, "attentions") else block
        return layer.transformer_blocks[-1]

    def _self_modules(self, name: str) -> list[nn.Module]:
        if self._kind == "block_output":
            return [self._find(name)]
        attention = self._last_layer(name).attn1
        return [getattr(attention, projection) for projection in _PROJECTIONS[self._kind]]

    def _image_modules(self, name: str) -> list[nn.Module]:
        attention = self._last_layer(name).attn2
        return [attention.to_q, attention.processor.to_k_ip[0]]

    @contextmanager
    def reading(self) -> Iterator[Reads]:
        """Inside, the next pass fills the result: per block the outputs of its modules, detached,
        places as (B, n, D)."""
        reads: Reads = {name: [] for name in self.blocks}
        modules = self._self_modules if self._mode == "unet_self" else self._image_modules
        handles = []
        for name in self.blocks:

            def store(_module: Any, _args: Any, output: Any, name: str = name) -> None:
                value = (output[0] if isinstance(output, tuple) else output).detach()
                spatial = self._kind == "block_output" and value.ndim == 4
                reads[name].append(value.flatten(2).transpose(1, 2) if spatial else value)

            handles += [module.register_forward_hook(store) for module in modules(name)]
        try:
            yield reads
        finally:
            for handle in handles:
                handle.remove()

    def places(self, reads: Reads, layout: Grid, grid: Grid) -> tuple[Tensor, ...]:
        """unet_self: what a pass over latents of `layout` (rows, columns) gave -> per block
        (B, N, D) on the token grid; for attention (B, N, 2, H, d), queries before keys."""
        features = []
        for name in self.blocks:
            parts = [to_grid(part, layout, grid) for part in reads[name]]
            if self._kind == "attention":
                heads = self._last_layer(name).attn1.heads
                features.append(torch.stack([p.unflatten(2, (heads, -1)) for p in parts], dim=2))
            else:
                features.append(parts[0])
        return tuple(features)

    def image_keys(
        self, reads: Reads, layout: Grid, grid: Grid
    ) -> tuple[tuple[Tensor, ...], tuple[tuple[Tensor, ...], ...]]:
        """ip_kv: per block the target's queries (B, N, D), and per reference the keys of its image
        tokens (B, m, D). For attention both stand twice, by head: their product is the same."""
        target, references = [], []
        for name in self.blocks:
            query_BnD, *key_BRmD = reads[name]  # without references no key is made
            heads = self._last_layer(name).attn2.heads
            target.append(self._twice(to_grid(query_BnD, layout, grid), heads))
            keys = key_BRmD[0].unbind(dim=1) if key_BRmD else ()
            references.append(tuple(self._twice(key_BmD, heads) for key_BmD in keys))
        return tuple(target), tuple(references)

    def _twice(self, tokens_BnD: Tensor, heads: int) -> Tensor:
        if self._kind != "attention":
            return tokens_BnD
        by_head = tokens_BnD.unflatten(2, (heads, -1))
        return torch.stack([by_head, by_head], dim=2)


def to_grid(tokens_BnD: Tensor, layout: Grid, grid: Grid) -> Tensor:
    """Features of a layer of a pass over latents of `layout` (rows, columns) -> (B, N, D) on
    `grid`: interpolated where the layer is coarser, averaged where it is finer."""
    rows, columns = _layer_grid(tokens_BnD.shape[1], layout)
    if (rows, columns) == grid:
        return tokens_BnD
    maps_BDhw = tokens_BnD.transpose(1, 2).unflatten(2, (rows, columns))
    if rows >= grid[0] and columns >= grid[1]:
        maps_BDhw = F.adaptive_avg_pool2d(maps_BDhw, grid)
    else:
        maps_BDhw = F.interpolate(maps_BDhw, grid, mode="bilinear", align_corners=False)
    return maps_BDhw.flatten(2).transpose(1, 2)


def _layer_grid(count: int, layout: Grid) -> Grid:
    """Rows and columns of a layer with `count` places: the layout halved, rounding up, until it
    fits."""
    rows, columns = layout
    while rows * columns > count:
        rows, columns = -(-rows // 2), -(-columns // 2)
    if rows * columns != count:
        raise ValueError(f"{count} features do not come from latents of {layout[0]} x {layout[1]}")
    return rows, columns


def alike(copies: int, tensors: Sequence[Tensor]) -> int:
    """`copies`, if that many equal parts lie end to end in each tensor, else 1."""
    for tensor in tensors:
        parts = tensor.chunk(copies)
        if len(parts) != copies or any(not torch.equal(parts[0], part) for part in parts[1:]):
            return 1
    return copies
