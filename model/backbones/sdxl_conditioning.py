"""What SDXL is told: prompts through its two CLIP encoders, pictures as IP-Adapter-Plus' tokens.

Letters: B images, m image tokens of a reference (16), E their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focusdpo.model.backbone import Prompts, tell_prompt
from focusdpo.model.backbones.offload import PromptCache

WHITE = 1.0
_MARGIN = 0.1
"""Share of a subject's longer side that is kept around it on each side."""


def shown_part(mask_HW: Tensor, crop: str) -> tuple[int, int, int, int]:
    """Top, left, bottom, right in pixels of what is shown of a reference: the subject's box with a
    margin, or (crop "whole", or an empty mask) all of it."""
    height, width = mask_HW.shape
    places = mask_HW.nonzero()
    if crop == "whole" or not len(places):
        return 0, 0, height, width
    top, left = (int(v) for v in places.amin(0))
    bottom, right = (int(v) + 1 for v in places.amax(0))
    margin = round(_MARGIN * max(bottom - top, right - left))
    return (
        max(0, top - margin),
        max(0, left - margin),
        min(height, bottom + margin),
        min(width, right + margin),
    )


def framed(image_3HW: Tensor, mask_HW: Tensor, crop: str) -> tuple[Tensor, Tensor]:
    """A reference on white, cut to what is shown and padded to a square: image (3, s, s) in
    [-1, 1] and mask (s, s) in {0, 1}. An empty mask means that all of the picture is the subject.
    """
    mask_HW = mask_HW.float()
    if not mask_HW.any():
        mask_HW = torch.ones_like(mask_HW)
    image_3HW = torch.where(mask_HW.bool(), image_3HW, WHITE)
    top, left, bottom, right = shown_part(mask_HW, crop)
    rows, columns = bottom - top, right - left
    side = max(rows, columns)
    before, above = (side - columns) // 2, (side - rows) // 2
    pad = (before, side - columns - before, above, side - rows - above)
    return (
        F.pad(image_3HW[:, top:bottom, left:right], pad, value=WHITE),
        F.pad(mask_HW[top:bottom, left:right], pad),
    )


def resized(images_BCHW: Tensor, side: int) -> Tensor:
    """Squares (B, C, s, s) brought to side x side by antialiased bilinear interpolation."""
    if images_BCHW.shape[-1] == side:
        return images_BCHW
    size = (side, side)
    return F.interpolate(images_BCHW, size, mode="bilinear", antialias=True, align_corners=False)


def to_bytes(image_3HW: Tensor) -> Tensor:
    """[-1, 1] -> uint8 on the CPU."""
    return ((image_3HW + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)


class ImageTokens(nn.Module):
    """CLIP's vision tower and IP-Adapter-Plus' resampler: pictures -> image tokens (B, m, E).

    As diffusers' pipelines do it: the official preprocessing, the last but one hidden layer."""

    encoder: Any
    resampler: Any

    def __init__(self, encoder: nn.Module, resampler: nn.Module) -> None:
        from transformers import CLIPImageProcessor

        super().__init__()
        self.encoder, self.resampler = encoder, resampler
        size = self.encoder.config.image_size
        self._preprocess = CLIPImageProcessor(size=size, crop_size=size)

    @torch.no_grad()
    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Squares of any size, (3, s, s) in [-1, 1] each."""
        pixels = [
            self._preprocess(images=[to_bytes(image)], return_tensors="pt").pixel_values
            for image in images
        ]
        return self._tokens(torch.cat(pixels))

    @torch.no_grad()
    def doubled(self, given_BRmE: Tensor) -> Tensor:
        """For guidance (2B, R, m, E): first as many tokens of no picture, those of an input of
        zeros, then the given ones."""
        size = self.encoder.config.image_size
        none_1mE = self._tokens(torch.zeros(1, 3, size, size)).to(given_BRmE)
        return torch.cat([none_1mE.expand_as(given_BRmE), given_BRmE])

    def _tokens(self, pixels: Tensor) -> Tensor:
        weight = next(self.encoder.parameters())
        pixels = pixels.to(weight.device, weight.dtype)
        tokens: Tensor = self.resampler(
            self.encoder(pixels, output_hidden_states=True).hidden_states[-2]
        )
        return tokens


class SdxlText(nn.Module):
    """As diffusers' `encode_prompt`: the last but one hidden layers of both encoders side by side,
    and the second encoder's pooled projection. A prompt is encoded alone, so that what comes of it
    does not depend on its batch."""

    def __init__(
        self,
        tokenizers: Sequence[Any],
        encoders: Sequence[nn.Module],
        *,
        zero_empty: bool,
        cache_mib: int = 512,
    ) -> None:
        super().__init__()
        self._tokenizers = tuple(tokenizers)
        self.encoders = nn.ModuleList(encoders)
        self._zero_empty = zero_empty
        self._known = PromptCache(cache_mib)

    def missing(self, prompts: Sequence[str]) -> bool:
        """Whether the encoders must run for them."""
        return any(prompt not in self._known for prompt in prompts)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str], device: torch.device) -> Prompts:
        """Texts -> embeddings (B, T, 2048) and pooled (B, 1280) on `device`."""
        encoded: dict[str, tuple[Tensor, ...]] = {}
        for prompt in dict.fromkeys(prompts):
            if (known := self._known.get(prompt)) is None:
                known = self._encode(prompt)
                self._known.put(prompt, *known)
            encoded[prompt] = known
        parts = zip(*(encoded[prompt] for prompt in prompts), strict=True)
        embeds_BTD, pooled_BD = (torch.cat(part).to(device) for part in parts)
        return Prompts(embeds_BTD, pooled_BD)

    def doubled(self, given: Prompts) -> Prompts:
        """For guidance: first as many unconditional prompts, then the given ones. Zeros, where the
        checkpoint was trained with them (SDXL was), else the empty text."""
        if self._zero_empty:
            free = Prompts(*(torch.zeros_like(tensor) for tensor in given.tensors()))
        else:
            free = self([""] * len(given.pooled_BD), given.pooled_BD.device)
        both = zip(free.tensors(), given.tensors(), strict=True)
        return Prompts(*(torch.cat(pair) for pair in both))

    def _encode(self, prompt: str) -> tuple[Tensor, Tensor]:
        hidden = []
        first = self._tokenizers[0]  # both are CLIP's
        tokens = len(first(prompt, verbose=False).input_ids)
        tell_prompt("CLIP", prompt, tokens, first.model_max_length)
        for tokenizer, encoder in zip(self._tokenizers, self.encoders, strict=True):
            length = tokenizer.model_max_length
            ids = tokenizer(
                prompt,
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            device = next(encoder.parameters()).device
            output = encoder(ids.to(device), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        return torch.cat(hidden, dim=-1).cpu(), output.text_embeds.cpu()
