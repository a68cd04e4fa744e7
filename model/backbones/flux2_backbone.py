"""FLUX.2 Klein's model: references as further tokens with a time axis of their own; Qwen3's words.

Source of the semantics: diffusers' Flux2KleinPipeline (Apache-2.0), which the tests compare with.
Letters: B images, T text tokens (padded), D their width, R references with n_r tokens each, N
target tokens, C channels of a packed latent token, H x W pixels, h x w latents of c channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import Grid, Prompts, References
from focusdpo.model.backbones.flux import FluxBackbone, SamplingConfig, fit_long_side
from focusdpo.model.backbones.offload import Deferred, PromptCache, lent
from focusdpo.model.correspondence import unwrap
from focusdpo.model.tokens import PATCH


class QwenPrompts:
    """Texts -> hidden states of some layers of Qwen3, side by side, as
    `Flux2KleinPipeline.encode_prompt`; there is no pooled vector, so that of `Prompts` is (B, 0).

    Prompts are encoded one by one, so that an embedding depends on its own text alone, and the
    newest `cache_mib` are kept in main memory. With `offload` the encoder waits on the CPU.
    UserError for a prompt longer than `max_tokens`."""

    def __init__(
        self,
        encoder: nn.Module | Deferred,
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
        self._known = PromptCache(cache_mib)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Prompts:
        """Embeddings (B, T, D) on the device, in the encoder's own type."""
        known = {text: kept[0] for text in set(prompts) if (kept := self._known.get(text))}
        if missing := sorted(set(prompts) - known.keys()):
            inputs = {text: self._tokens(text) for text in missing}
            with lent(self._device, self._encoder, back=self._offload):
                for text in missing:
                    known[text] = self._states(*inputs[text])
                    self._known.put(text, known[text])
        embeds = torch.cat([known[text] for text in prompts]).to(self._device)
        return Prompts(embeds, embeds.new_zeros(len(embeds), 0))

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
        padded = self._tokenizer(
            chat, return_tensors="pt", padding="max_length", max_length=self._max_tokens
        )
        return padded["input_ids"], padded["attention_mask"]

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        output = self._encoder(
            input_ids=ids.to(self._device),
            attention_mask=mask.to(self._device),
            output_hidden_states=True,
            use_cache=False,
        )
        return torch.cat([output.hidden_states[layer] for layer in self._layers], dim=2).cpu()


REFERENCE_TIME = 10
"""References stand at times 10, 20, ...; the target at 0."""
_DOUBLE_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "ff.linear_in",
    "ff.linear_out",
)


class Flux2Codec(nn.Module):
    """AutoencoderKLFlux2: the posterior's mode, normalised per channel of a 2 x 2 patch by the
    running statistics of its batch norm."""

    autoencoder: Any

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def encode_latents(self, images_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, c, h, w), float32."""
        weight = next(self.autoencoder.parameters())
        mode = self.autoencoder.encode(images_BCHW.to(weight.dtype)).latent_dist.mode()
        mean, std = self._statistics()
        return F.pixel_shuffle((F.pixel_unshuffle(mode.float(), PATCH) - mean) / std, PATCH)

    def decode_latents(self, latents_Bchw: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, 3, H, W) in [-1, 1], float32."""
        weight = next(self.autoencoder.parameters())
        mean, std = self._statistics()
        latents = F.pixel_shuffle(F.pixel_unshuffle(latents_Bchw, PATCH) * std + mean, PATCH)
        pictures: Tensor = self.autoencoder.decode(latents.to(weight.dtype)).sample
        return pictures.float()

    def _statistics(self) -> tuple[Tensor, Tensor]:
        norm = self.autoencoder.bn
        variance = norm.running_var.float() + self.autoencoder.config.batch_norm_eps
        return norm.running_mean.float().view(1, -1, 1, 1), variance.sqrt().view(1, -1, 1, 1)


class Flux2KleinBackbone(FluxBackbone):
    """Fits the `Backbone` protocol with diffusers' Flux2Transformer2DModel.

    `inpaint` is masked sampling. Flux2KleinInpaintPipeline also shows the picture itself as the
    first reference: that would tell the model the very subject that a disruption takes away."""

    free_keeps_references = True
    keeps_aspect = True

    def __init__(
        self,
        transformer: nn.Module,
        autoencoder: nn.Module | Deferred,
        encode_prompts: Callable[[Sequence[str]], Prompts],
        scheduler: Any,
        *,
        image_size: tuple[int, int],
        reference_size: tuple[int, int],
        default_blocks: tuple[str, ...],
        token_pixels: int,
        sampling: SamplingConfig,
        fingerprint: str,
        lends_prompts: bool = False,
        is_distilled: bool = False,
    ) -> None:
        super().__init__(
            transformer,
            Flux2Codec(autoencoder),
            encode_prompts,
            image_size=image_size,
            reference_size=reference_size,
            default_blocks=default_blocks,
            token_pixels=token_pixels,
            sampling=sampling,
        )
        self.fingerprint, self.lends_prompts = fingerprint, lends_prompts
        self.lora_targets = lora_targets(len(unwrap(transformer).single_transformer_blocks))
        self.dtype = next(transformer.parameters()).dtype
        self._scheduler, self._is_distilled = scheduler, is_distilled

    def _resized(self, images_BCHW: Tensor, masks_BHW: Tensor) -> tuple[Tensor, Tensor]:
        return fit_long_side(images_BCHW, masks_BHW, max(self.reference_size), self.token_pixels)

    def _conditions(
        self, prompts: Prompts, references: References, guidance_B: Tensor
    ) -> dict[str, Any]:
        device, length = guidance_B.device, prompts.embeds_BTD.shape[1]
        return {
            "img_ids": image_ids(self.grid, references.grids).to(device),
            "txt_ids": text_ids(length).to(device),
            "guidance": None,
        }

    def _scales(self, guidance: float | None) -> tuple[float, float]:
        if self._is_distilled and guidance not in (None, 1):
            raise UserError(
                f"generate.guidance: {guidance:g}, but this checkpoint is distilled to paint"
                " without; leave it out, or take the base model's checkpoint"
            )
        return super()._scales(guidance)

    def sigmas(self, strength: float) -> Tensor:
        """Noise levels of the checkpoint's schedule for this image size, down to 0; with a strength
        below 1 its last steps alone, as many as Flux2KleinInpaintPipeline takes."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        steps = self.sampling.steps
        self._scheduler.set_timesteps(
            sigmas=np.linspace(1.0, 1 / steps, steps),
            mu=compute_empirical_mu(self.grid[0] * self.grid[1], steps),
        )
        skipped = int(max(steps - min(steps * strength, steps), 0))
        levels: Tensor = self._scheduler.sigmas[skipped:]
        return levels


def lora_targets(num_single: int) -> tuple[str, ...]:
    """Attention and feed-forward layers. A single block's output is named in full: in the double
    blocks the same suffix is a list of modules."""
    singles = (f"single_transformer_blocks.{i}.attn.to_out" for i in range(num_single))
    return (*_DOUBLE_TARGETS, "to_qkv_mlp_proj", *singles)


@lru_cache(maxsize=32)
def text_ids(length: int) -> Tensor:
    """(T, 4): text tokens differ in the last axis."""
    return torch.cartesian_prod(*(torch.arange(n) for n in (1, 1, 1, length)))


@lru_cache(maxsize=32)
def image_ids(target: Grid, references: tuple[Grid, ...]) -> Tensor:
    """(N + sum n_r, 4) position ids (time, row, column, 0): every picture starts at row and column
    0; the target has time 0, the references 10, 20, ..."""
    parts = []
    for index, (rows, cols) in enumerate((target, *references)):
        time = torch.tensor([REFERENCE_TIME * index])
        axes = (time, torch.arange(rows), torch.arange(cols), torch.zeros(1, dtype=torch.long))
        parts.append(torch.cartesian_prod(*axes))
    return torch.cat(parts)
