"""Token features read from a pass that runs anyway.

Letters: B images, D feature width, H heads of width d.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import FeatureConfig

_SOURCES = {
    "keys": ("norm_k",),
    "queries": ("norm_q",),
    "block_output": ("",),
    "attention": ("norm_q", "norm_k"),
}
"""Modules of a block's attention whose output is read, "" for the block itself: after QK norm, but
before RoPE, which would bias similarity by place."""


def unwrap(module: nn.Module) -> Any:
    """The model inside DistributedDataParallel and its like."""
    while isinstance(inner := getattr(module, "module", None), nn.Module):
        module = inner
    return module


@contextmanager
def capture_features(
    transformer: Any, config: FeatureConfig | None, default_blocks: tuple[str, ...], tokens: int
) -> Iterator[list[Tensor]]:
    """Collects features of the last `tokens` positions (the image tokens; single blocks have the
    text before them) of each block, detached, in the order of the blocks asked for: (B, tokens, D),
    or for attention queries and keys by head, (B, tokens, 2, H, d).

    Hooks read what the pass computes anyway, so its output does not change by a bit.
    """
    if config is None:
        yield []
        return
    names = config.blocks or default_blocks
    sources = _SOURCES[config.kind]
    found: list[Tensor] = []
    read: dict[tuple[str, str], Tensor] = {}
    handles = []
    for key in itertools.product(names, sources):
        block = find_block(transformer, key[0])

        def store(_module: nn.Module, _args: Any, output: Any, key: tuple[str, str] = key) -> None:
            # Blocks return (text, image); norms return (B, tokens, heads, width).
            value = output[1] if isinstance(output, tuple) else output
            read[key] = value[:, -tokens:].detach()

        hooked = getattr(block.attn, key[1]) if key[1] else block
        handles.append(hooked.register_forward_hook(store))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        parts = [[read[name, s] for s in sources if (name, s) in read] for name in names]
        found.extend(_joined(part) for part in parts if part)


def _joined(parts: list[Tensor]) -> Tensor:
    """One feature laid flat, queries and keys side by side."""
    return parts[0].flatten(2) if len(parts) == 1 else torch.stack(parts, dim=2)


def find_block(transformer: Any, name: str) -> Any:
    """The block called "double.i" or "single.i"; raises UserError with the names there are."""
    lists = {
        "double": transformer.transformer_blocks,
        "single": transformer.single_transformer_blocks,
    }
    kind, _, index = name.partition(".")
    if kind not in lists or not index.isdigit() or int(index) >= len(lists[kind]):
        known = ", ".join(f"{k}.0 to {k}.{len(v) - 1}" for k, v in lists.items() if len(v))
        raise UserError(f"features.blocks: no block {name!r} in this model; it has {known}")
    return lists[kind][int(index)]
