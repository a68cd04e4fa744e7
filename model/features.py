"""Token features read from a pass that runs anyway.

Letters: B images, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import FeatureConfig


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
    text before them) of each block, (B, tokens, D) detached, in the order of the blocks asked for.

    Hooks read what the pass computes anyway, so its output does not change by a bit.
    """
    if config is None:
        yield []
        return
    names = config.blocks or default_blocks
    found: list[Tensor] = []
    by_name: dict[str, Tensor] = {}
    handles = []
    for name in names:
        block = find_block(transformer, name)

        def store(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
            # Blocks return (text, image); norms return (B, tokens, heads, width).
            value = output[1] if isinstance(output, tuple) else output.flatten(2)
            by_name[name] = value[:, -tokens:].detach()

        source = {"keys": "norm_k", "queries": "norm_q"}.get(config.kind)
        hooked = block if source is None else getattr(block.attn, source)
        handles.append(hooked.register_forward_hook(store))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        found.extend(by_name[name] for name in names if name in by_name)


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
