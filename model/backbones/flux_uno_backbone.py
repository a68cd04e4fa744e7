"""FLUX.1 with UNO's LoRA merged, behind the `Backbone` protocol; CLIP and T5 as it reads prompts.

Letters: B images, T text tokens (padded), D width of T5's embeddings, R references with n_r tokens
each, H x W pixels.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import Prompts, tell_prompt
from focusdpo.model.backbones.flux import FluxBackbone, SamplingConfig, fit_long_side
from focusdpo.model.backbones.flux_config import FluxUnoConfig, middle_blocks
from focusdpo.model.backbones.offload import DTYPES, Deferred, PromptCache, lent
from focusdpo.model.backbones.uno_lora import uno_targets
from focusdpo.model.correspondence import unwrap
from focusdpo.model.tokens import KLCodec
from focusdpo.store.local import make_folder, write_whole


class FluxPrompts:
    """Texts -> CLIP's pooled vector and T5's embeddings, as `FluxPipeline.encode_prompt`.

    Prompts are encoded one by one, so that an embedding depends on its own text alone, and kept:
    the newest `cache_mib` in main memory and, with `folder`, all of them in files that are named by
    a digest of the text and `fingerprint` (of encoders, tokenisers and settings). With `offload`
    the encoders wait on the CPU."""

    def __init__(
        self,
        clip: nn.Module | Deferred,
        clip_tokenizer: Any,
        t5: nn.Module | Deferred,
        t5_tokenizer: Any,
        *,
        device: str,
        max_tokens: int = 512,
        offload: bool = False,
        fingerprint: str = "",
        cache_mib: int = 2048,
        folder: Path | None = None,
    ) -> None:
        if folder is not None and not fingerprint:
            raise ValueError("a cache folder needs the encoders' fingerprint")
        self._clip, self._clip_tokenizer = clip, clip_tokenizer
        self._t5, self._t5_tokenizer = t5, t5_tokenizer
        self._device, self._max_tokens, self._offload = device, max_tokens, offload
        self._fingerprint, self._folder = fingerprint, folder
        self._cache = PromptCache(cache_mib)
        if folder is not None:
            make_folder(folder)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Prompts:
        """Embeddings (B, T, D) and pooled (B, P) on the device, in the encoders' own type."""
        encoded = {text: known for text in set(prompts) if (known := self._known(text)) is not None}
        missing = [text for text in dict.fromkeys(prompts) if text not in encoded]
        if missing:
            with lent(self._device, self._clip, self._t5, back=self._offload):
                encoded |= {text: self._encode(text) for text in missing}
            for text in missing:
                self._store(text, *encoded[text])
        embeds, pooled = zip(*(encoded[text] for text in prompts), strict=True)
        return Prompts(torch.cat(embeds).to(self._device), torch.cat(pooled).to(self._device))

    def _encode(self, text: str) -> tuple[Tensor, Tensor]:
        """One prompt's (1, T, D) and (1, P), on the CPU."""
        self._tell(text)
        ids = self._ids(self._t5_tokenizer, text, self._max_tokens)
        embeds: Tensor = self._t5(ids, output_hidden_states=False)[0]
        ids = self._ids(self._clip_tokenizer, text, self._clip_tokenizer.model_max_length)
        pooled: Tensor = self._clip(ids, output_hidden_states=False).pooler_output
        return embeds.cpu(), pooled.cpu()

    def _tell(self, text: str) -> None:
        """What is cut. CLIP's tokens are bytes, so that it knows every word; T5's are not."""
        t5, clip = self._t5_tokenizer, self._clip_tokenizer
        unknown = tuple(
            word
            for word in text.split()
            if t5.unk_token_id in t5(word, add_special_tokens=False, verbose=False).input_ids
        )
        tell_prompt("T5", text, _count(t5, text), self._max_tokens, unknown)
        tell_prompt("CLIP", text, _count(clip, text), clip.model_max_length)

    def _ids(self, tokenizer: Any, text: str, length: int) -> Tensor:
        ids: Tensor = tokenizer(
            [text], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return ids.to(self._device)

    def _known(self, text: str) -> tuple[Tensor, ...] | None:
        if (kept := self._cache.get(text)) is not None:
            return kept
        path = self._file(text)
        if path is None or not path.is_file():
            return None
        self._tell(text)
        read = _read(path)
        self._cache.put(text, *read)
        return read

    def _store(self, text: str, embeds: Tensor, pooled: Tensor) -> None:
        from safetensors.torch import save

        self._cache.put(text, embeds, pooled)
        path = self._file(text)
        if path is not None:
            write_whole(path, save({"embeds": embeds.contiguous(), "pooled": pooled.contiguous()}))

    def _file(self, text: str) -> Path | None:
        if self._folder is None:
            return None
        name = hashlib.blake2b(f"{self._fingerprint}\0{text}".encode(), digest_size=16).hexdigest()
        return self._folder / f"{name}.safetensors"


def _count(tokenizer: Any, text: str) -> int:
    """Tokens of a whole text."""
    return len(tokenizer(text, verbose=False).input_ids)


def _read(path: Path) -> tuple[Tensor, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(path.read_bytes())
        return tensors["embeds"], tensors["pooled"]
    except (SafetensorError, KeyError) as error:
        raise UserError(
            f"{path}: a damaged prompt embedding ({error}); remove the file, it is made anew"
        ) from error


_AT_ONCE = 4
"""Images that the autoencoder takes at once: 512 x 512 in float32 need about 1 GB each."""


class LentCodec(KLCodec):
    """FLUX.1's autoencoder, a few images at a time; with `offload` on the CPU between calls."""

    def __init__(self, autoencoder: nn.Module | Deferred, device: str, offload: bool) -> None:
        super().__init__(autoencoder)
        self._device, self._offload = device, offload

    def encode_latents(self, images_BCHW: Tensor) -> Tensor:
        return self._by_parts(super().encode_latents, images_BCHW)

    def decode_latents(self, latents_Bchw: Tensor) -> Tensor:
        return self._by_parts(super().decode_latents, latents_Bchw)

    def _by_parts(self, run: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        with lent(self._device, self.autoencoder, back=self._offload):
            return torch.cat([run(part.to(self._device)) for part in values.split(_AT_ONCE)])


class FluxUnoBackbone(FluxBackbone):
    """References as UNO sees them, diffusers' schedule, guidance embedded: 1 when training, 4 when
    sampling. The weights of `transformer` are the reference policy's."""

    keeps_aspect = True

    def __init__(
        self,
        transformer: nn.Module,
        codec: LentCodec,
        token_pixels: int,
        encode_prompts: Callable[[Sequence[str]], Prompts],
        scheduler: Any,
        config: FluxUnoConfig,
        fingerprint: str,
    ) -> None:
        core: Any = transformer
        side = config.reference_side(1)
        super().__init__(
            transformer,
            codec,
            encode_prompts,
            image_size=config.image_size,
            reference_size=(side, side),
            default_blocks=config.blocks or middle_blocks(core.config.num_layers),
            token_pixels=token_pixels,
            sampling=SamplingConfig(steps=config.steps, guidance=1, strength=config.strength),
        )
        self.fingerprint = fingerprint
        self.lora_targets = uno_targets(core.config.num_layers, core.config.num_single_layers)
        self.dtype = DTYPES[config.dtype]
        self.train_guidance, self.sample_guidance = config.train_guidance, config.guidance
        self.lends_prompts = config.offload
        self._scheduler, self._config = scheduler, config

    def _scales(self, guidance: float | None) -> tuple[float, float]:
        """FLUX.1-dev is distilled: its guidance is embedded. FLUX.1-schnell has none."""
        if guidance is not None and not unwrap(self.transformer).config.guidance_embeds:
            raise UserError(
                f"generate.guidance: {guidance:g}, but this base (FLUX.1-schnell) paints without; "
                "leave it out, or take FLUX.1-dev"
            )
        return self.sampling.guidance, self.sample_guidance if guidance is None else guidance

    def _framed(
        self, images: Sequence[Tensor], masks: Sequence[Tensor], count: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Their long side becomes what UNO gives to so many references."""
        long_side = self._config.reference_side(count)
        slots = zip(images, masks, strict=True)
        return [fit_long_side(image, mask, long_side, self.token_pixels) for image, mask in slots]

    def sigmas(self, strength: float) -> Tensor:
        """The checkpoint's own schedule as FluxPipeline asks for it, down to 0; with `strength`
        below 1 its last part, as in FluxImg2ImgPipeline."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        steps, scheduler = self.sampling.steps, copy.deepcopy(self._scheduler)
        config = scheduler.config
        shift = calculate_shift(
            self._config.shift_tokens or self.grid[0] * self.grid[1],
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)
        levels: Tensor = scheduler.sigmas
        first = int(max(steps - min(steps * strength, steps), 0))
        return levels[first:].float().cpu()
