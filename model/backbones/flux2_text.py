"""Qwen3 as FLUX.2 Klein reads prompts, each prompt encoded once.

Letters: B prompts, T text tokens (padded), D width: layers read times width of the encoder.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import Prompts


class QwenPrompts:
    """Texts -> hidden states of some layers of Qwen3, side by side, as
    `Flux2KleinPipeline.encode_prompt`; there is no pooled vector, so that of `Prompts` is (B, 0).

    Prompts are encoded one by one, so that an embedding depends on its own text alone, and the
    newest `cache_mib` are kept in main memory. With `offload` the encoder waits on the CPU.
    UserError for a prompt longer than `max_tokens`."""

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Any,
        *,
        device: str,
        layers: Sequence[int],
        max_tokens: int,
        offload: bool = False,
        cache_mib: int = 1024,
    ) -> None:
        self._encoder, self._tokenizer = encoder, tokenizer
        self._device, self._layers, self._max_tokens = device, tuple(layers), max_tokens
        self._offload = offload
        self._room = cache_mib * 2**20
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        encoder.to("cpu" if offload else device)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Prompts:
        """Embeddings (B, T, D) on the device, in the encoder's own type."""
        found = {text: self._kept[text] for text in set(prompts) & self._kept.keys()}
        if missing := sorted(set(prompts) - found.keys()):
            found |= self._encode(missing)
        for text in found:
            self._keep(text, found[text])
        embeds = torch.cat([found[text] for text in prompts]).to(self._device)
        return Prompts(embeds, embeds.new_zeros(len(embeds), 0))

    def _encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        inputs = {text: self._tokens(text) for text in texts}
        self._encoder.to(self._device)
        try:
            return {text: self._states(*inputs[text]) for text in texts}
        finally:
            if self._offload:
                self._encoder.to("cpu")
                if torch.device(self._device).type == "cuda":
                    torch.cuda.empty_cache()

    def _tokens(self, text: str) -> tuple[Tensor, Tensor]:
        """Ids and attention mask (1, T) of a prompt as a user's turn of a chat."""
        chat = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        count = len(self._tokenizer(chat)["input_ids"])
        if count > self._max_tokens:
            raise UserError(
                f"a prompt takes {count} tokens, at most {self._max_tokens} are read "
                f"(models.backbone.text_tokens): {text!r}"
            )
        found = self._tokenizer(
            chat, return_tensors="pt", padding="max_length", max_length=self._max_tokens
        )
        return found["input_ids"], found["attention_mask"]

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        output = self._encoder(
            input_ids=ids.to(self._device),
            attention_mask=mask.to(self._device),
            output_hidden_states=True,
            use_cache=False,
        )
        return torch.cat([output.hidden_states[layer] for layer in self._layers], dim=2).cpu()

    def _keep(self, text: str, embeds: Tensor) -> None:
        if text in self._kept:
            self._kept.move_to_end(text)
            return
        self._kept[text] = embeds
        self._room -= embeds.nbytes
        while self._room < 0:
            self._room += self._kept.popitem(last=False)[1].nbytes
