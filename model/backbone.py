"""What a generator must offer to be trained, sampled and repainted with.

Shapes: B images, T text tokens, R references with n_r tokens each, N target tokens, C channels of a
packed latent token, D feature width. A noise level sigma in (0, 1) is flow matching's time, or the
share of a diffusion schedule; how noise is added and what is predicted is the backbone's own.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from pydantic import Field

from focusdpo.data_schemas.strict import StrictModel

if TYPE_CHECKING:  # configs import this module: keep torch (2 s) out of them
    from torch import Tensor, nn

log = logging.getLogger(__name__)

Grid = tuple[int, int]
"""Rows and columns of a token grid."""


class FeatureConfig(StrictModel):
    """Which token features the attention field reads (paper: "mm-attention"; method notes 3.5,
    rows 4 and 5)."""

    kind: Literal["keys", "queries", "block_output", "attention"] = Field(
        "keys",
        description="keys and queries are taken after QK norm and before RoPE; attention: instead "
        "of a cosine, how a reference's queries spread over the target's keys",
    )
    blocks: tuple[str, ...] = Field(
        (),
        description='blocks by name, e.g. "double.0", "single.2"; empty: the backbone\'s default',
    )


class TensorRecord:
    """Base of dataclasses that hold tensors, some in tuples or in records of their own; the first
    axis of each is the batch."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same record of changed tensors; what is no tensor stays."""
        from torch import Tensor

        def changed(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value)
            if isinstance(value, TensorRecord):
                return value.each(change)
            return tuple(map(changed, value)) if isinstance(value, tuple) else value

        record: Any = self
        return replace(record, **{f.name: changed(getattr(self, f.name)) for f in fields(record)})

    def take(self, rows: slice) -> Self:
        """Some of the batch."""
        return self.each(lambda tensor: tensor[rows])

    def repeat(self, times: int) -> Self:
        """The batch laid end to end `times` times."""
        return self.each(lambda tensor: tensor.repeat(times, *(1 for _ in tensor.shape[1:])))

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the fields."""
        tensors: list[Tensor] = []
        self.each(lambda tensor: tensors.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return tensors


@dataclass(frozen=True)
class Prompts(TensorRecord):
    """Encoded prompts."""

    embeds_BTD: Tensor
    pooled_BD: Tensor


@functools.lru_cache(maxsize=4096)
def tell_prompt(
    reader: str, prompt: str, tokens: int, limit: int, unknown: tuple[str, ...] = ()
) -> None:
    """Says once of a prompt that it is not read as it stands: that an encoder takes the first
    `limit` of its `tokens`, or was not taught some words. Every `encode_prompts` calls this."""
    if tokens > limit:
        log.warning("%s reads the first %d of %d tokens: %s", reader, limit, tokens, prompt)
    if unknown:
        log.warning("%s was not taught '%s': %s", reader, "', '".join(unknown), prompt)


@dataclass(frozen=True)
class References(TensorRecord):
    """Encoded references: one entry per subject slot, in prompt order."""

    tokens: tuple[Tensor, ...]
    """Per reference (B, n_r, C)."""
    masks: tuple[Tensor, ...]
    """Per reference (B, n_r), 1 where the token shows the subject."""
    grids: tuple[Grid, ...]
    embeds: tuple[Tensor, ...] = ()
    """Per reference (B, m, E), where the model attends to something else than `tokens`."""
    copies: int = 1
    """How many times the same batch lies end to end, so that what is alike is computed once."""

    def repeat(self, times: int) -> References:
        return replace(super().repeat(times), copies=self.copies * times)

    def take(self, rows: slice) -> References:
        return replace(super().take(rows), copies=1)


@dataclass(frozen=True)
class Prediction:
    """A forward pass."""

    output_BNC: Tensor
    """In the terms of the backbone's `target`: a velocity, or the noise."""
    target_features: tuple[Tensor, ...] = ()
    """Per captured block (B, N, D), detached; for attention (B, N, 2, heads, width of a head),
    queries before keys."""
    reference_features: tuple[tuple[Tensor, ...], ...] = ()
    """Per captured block, per reference the same of its n_r tokens."""


class Backbone(Protocol):
    """A multi-reference generator. The adapter is added to `transformer`."""

    transformer: nn.Module
    image_size: tuple[int, int]
    """Height and width in pixels."""
    grid: Grid
    """Target token grid for `image_size`."""
    lora_targets: tuple[str, ...]
    """Module names (suffixes) that a policy LoRA covers by default."""

    @property
    def fingerprint(self) -> str:
        """Hash of weights and sampling settings."""
        ...

    def encode_images(self, images_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> packed latents (B, N, C): the posterior's mode, no noise."""
        ...

    def decode(self, latents_BNC: Tensor) -> Tensor:
        """Packed latents -> images (B, 3, H, W) in [-1, 1]."""
        ...

    def encode_references(self, images: Sequence[Tensor], masks: Sequence[Tensor]) -> References:
        """Per reference slot: images (B, 3, h, w) in [-1, 1] and masks (B, h, w) in {0, 1}.

        A backbone may take one more argument, `count`: of how many references these are some (None:
        they are all). Then training encodes each reference once, whatever it stands beside."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Prompts: ...

    def add_noise(self, clean_BNC: Tensor, noise_BNC: Tensor, sigma_B: Tensor) -> Tensor:
        """Latents at a noise level."""
        ...

    def target(self, clean_BNC: Tensor, noise_BNC: Tensor, sigma_B: Tensor) -> Tensor:
        """What `predict` should give for them."""
        ...

    def predict(
        self,
        noisy_BNC: Tensor,
        sigma_B: Tensor,
        prompts: Prompts,
        references: References,
        capture: FeatureConfig | None = None,
    ) -> Prediction:
        """The prediction for noisy latents; with `capture`, token features from the same pass."""
        ...

    def generate(
        self,
        prompts: Sequence[str],
        images: Sequence[Tensor],
        masks: Sequence[Tensor],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
    ) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1]; references per slot as in `encode_references`, slots may
        be none. The noise of item b comes from seeds[b] alone. `guidance` in place of the
        settings' own."""
        ...

    def inpaint(
        self,
        images_BCHW: Tensor,
        masks_BHW: Tensor,
        prompts: Sequence[str],
        images: Sequence[Tensor],
        masks: Sequence[Tensor],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
    ) -> Tensor:
        """Repaints masks_BHW (1 = repaint) of images_BCHW."""
        ...
