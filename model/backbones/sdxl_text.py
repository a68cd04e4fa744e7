"""Prompts through SDXL's two CLIP text encoders, remembered per prompt."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from focusdpo.model.backbone import Prompts

log = logging.getLogger(__name__)

Encoded = tuple[Tensor, Tensor]


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
        self._room = cache_mib * 2**20
        self._known: OrderedDict[str, Encoded] = OrderedDict()

    def missing(self, prompts: Sequence[str]) -> bool:
        """Whether the encoders must run for them."""
        return any(prompt not in self._known for prompt in prompts)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str], device: torch.device) -> Prompts:
        """Texts -> embeddings (B, T, 2048) and pooled (B, 1280) on `device`."""
        found: dict[str, Encoded] = {}
        for prompt in dict.fromkeys(prompts):
            found[prompt] = self._known[prompt] if prompt in self._known else self._encode(prompt)
            self._known[prompt] = found[prompt]
            self._known.move_to_end(prompt)
        self._forget()
        parts = zip(*(found[prompt] for prompt in prompts), strict=True)
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

    def _encode(self, prompt: str) -> Encoded:
        hidden = []
        for tokenizer, encoder in zip(self._tokenizers, self.encoders, strict=True):
            length = tokenizer.model_max_length
            ids = tokenizer(
                prompt,
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            if len(tokenizer(prompt).input_ids) > length:
                log.warning("CLIP reads %d tokens; cut off: %r", length, prompt)
            device = next(encoder.parameters()).device
            output = encoder(ids.to(device), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        return torch.cat(hidden, dim=-1).cpu(), output.text_embeds.cpu()

    def _forget(self) -> None:
        """Drops the prompts used longest ago, until the others have room."""
        used = sum(t.numel() * t.element_size() for one in self._known.values() for t in one)
        while used > self._room and self._known:
            _, one = self._known.popitem(last=False)
            used -= sum(t.numel() * t.element_size() for t in one)
