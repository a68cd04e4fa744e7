"""Flow-matching transformers of the FLUX family with references as further image tokens.

Letters: B images, T text tokens, R references with n_r tokens each, N target tokens, C channels of
a packed latent token, D feature width, H x W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.model.backbone import FeatureConfig, Grid, Prediction, Prompts, References
from focusdpo.model.correspondence import capture_features, unwrap
from focusdpo.model.noise import add_noise, seeded_noise, velocity_target
from focusdpo.model.tokens import (
    KLCodec,
    LatentCodec,
    image_ids,
    mask_to_tokens,
    pack,
    text_ids,
    unpack,
)

LORA_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "proj_mlp",
)

Frame = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Pictures (B, 3, H, W) in [-1, 1] and masks (B, H, W) of references -> as the transformer sees
them."""


class SamplingConfig(StrictModel):
    """Euler sampling of the flow with classifier-free guidance."""

    steps: int = Field(16, description="Euler steps", ge=1)
    guidance: float = Field(
        2.0, description="scale on (prompt and references) - (neither); 1: one pass per step", ge=1
    )
    guidance_above: float = Field(
        0.0,
        description="sigma below which steps go without guidance: a second pass less, and no"
        " overdrawn texture (arXiv 2404.07724)",
        ge=0,
        lt=1,
    )
    shift: float = Field(1.0, description="resolution shift of sigma; 1: evenly spaced", gt=0)
    strength: float = Field(1.0, description="sigma at which a repaint starts", gt=0, le=1)


class FluxBackbone:
    """Fits the `Backbone` protocol with diffusers' FluxTransformer2DModel.

    The prompt encoder is a callable from texts to `Prompts`; its weights stay as they are.
    The autoencoder is a `LatentCodec` or diffusers' AutoencoderKL. A token covers `token_pixels` x
    `token_pixels`: the autoencoder's factor times the 2 x 2 packing. References are resized to
    `reference_size` (rows, columns in pixels) before encoding, or brought to it by `frame`.
    """

    lora_targets: tuple[str, ...] = LORA_TARGETS
    dtype: torch.dtype | None = None
    """What the transformer's inputs are cast to; None: they stay as they are."""
    train_guidance: float = 1.0
    """Embedded guidance of `predict`, for guidance-distilled transformers."""
    sample_guidance: float = 1.0
    """The same when sampling."""
    lends_prompts: bool = False
    """Whether the text encoder waits on the CPU, and comes for each call with a new text."""
    keeps_aspect: bool = False
    """Whether references are shown in their own aspect ratio, not padded to a square."""
    free_keeps_references: bool = False
    """Whether classifier-free guidance leaves out the prompt alone, not the references."""

    def __init__(
        self,
        transformer: nn.Module,
        autoencoder: Any,
        encode_prompts: Callable[[Sequence[str]], Prompts],
        *,
        image_size: tuple[int, int],
        reference_size: tuple[int, int],
        default_blocks: tuple[str, ...],
        token_pixels: int = 8,
        frame: Frame | None = None,
        sampling: SamplingConfig | None = None,
    ) -> None:
        self.transformer = transformer
        self.codec: LatentCodec = (
            autoencoder if isinstance(autoencoder, LatentCodec) else KLCodec(autoencoder)
        )
        self._encode_prompts = encode_prompts
        self.image_size = image_size
        self.reference_size = reference_size
        self.default_blocks = default_blocks
        self.sampling = sampling or SamplingConfig()
        self.token_pixels = token_pixels
        self._frame = frame or self._resized
        self.grid: Grid = self._grid_of(image_size)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the base weights and sampling settings; a LoRA on top does not count. The prompt
        encoder counts through its embedding of a fixed text."""
        digest = hashlib.blake2b(digest_size=16)
        for module in (unwrap(self.transformer), self.codec):
            for name, value in sorted(module.state_dict().items()):
                if ".lora_" not in name and ".lokr_" not in name:
                    digest.update(name.replace(".base_layer", "").encode())
                    digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        probe = self.encode_prompts(["a object and a object on object"])
        digest.update(probe.embeds_BTD.detach().float().cpu().numpy().tobytes())
        settings = (self.sampling.model_dump_json(), self.image_size, self.reference_size)
        digest.update(repr(settings).encode())
        return digest.hexdigest()

    def _grid_of(self, size: tuple[int, int]) -> Grid:
        return size[0] // self.token_pixels, size[1] // self.token_pixels

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @torch.no_grad()
    def encode_images(self, images_BCHW: Tensor) -> Tensor:
        return pack(self.codec.encode_latents(images_BCHW.to(self.device)))

    @torch.no_grad()
    def decode(self, latents_BNC: Tensor) -> Tensor:
        return self.codec.decode_latents(unpack(latents_BNC.float(), self.grid)).clamp(-1, 1)

    def encode_references(
        self, images: Sequence[Tensor], masks: Sequence[Tensor], count: int | None = None
    ) -> References:
        framed = self._framed(images, masks, count or len(images))
        grids = tuple(self._grid_of((i.shape[-2], i.shape[-1])) for i, _ in framed)
        slots = zip(framed, grids, strict=True)
        return References(
            tokens=tuple(self.encode_images(image) for image, _ in framed),
            masks=tuple(mask_to_tokens(mask, grid).to(self.device) for (_, mask), grid in slots),
            grids=grids,
        )

    def _framed(
        self, images: Sequence[Tensor], masks: Sequence[Tensor], count: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Per reference slot, what the transformer is shown of pictures and masks where there are
        `count` references."""
        return [self._frame(image, mask) for image, mask in zip(images, masks, strict=True)]

    def _resized(self, images_BCHW: Tensor, masks_BHW: Tensor) -> tuple[Tensor, Tensor]:
        return _resize(images_BCHW, self.reference_size), masks_BHW

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Prompts:
        return self._encode_prompts(prompts)

    def add_noise(self, clean_BNC: Tensor, noise_BNC: Tensor, sigma_B: Tensor) -> Tensor:
        """x_t = (1 - sigma) x_0 + sigma e."""
        return add_noise(clean_BNC, noise_BNC, sigma_B)

    def target(self, clean_BNC: Tensor, noise_BNC: Tensor, sigma_B: Tensor) -> Tensor:
        """v* = e - x_0."""
        return velocity_target(clean_BNC, noise_BNC)

    def predict(
        self,
        noisy_BNC: Tensor,
        sigma_B: Tensor,
        prompts: Prompts,
        references: References,
        capture: FeatureConfig | None = None,
    ) -> Prediction:
        """Velocity for noisy latents; with `capture`, token features from the same pass."""
        return self._predict(noisy_BNC, sigma_B, prompts, references, self.train_guidance, capture)

    def _predict(
        self,
        noisy_BNC: Tensor,
        sigma_B: Tensor,
        prompts: Prompts,
        references: References,
        guidance: float,
        capture: FeatureConfig | None = None,
    ) -> Prediction:
        """`predict` with an embedded guidance, which a transformer without it leaves aside."""
        count = noisy_BNC.shape[1]
        tokens = torch.cat([noisy_BNC, *references.tokens], 1)
        core = unwrap(self.transformer)
        with capture_features(core, capture, self.default_blocks, tokens.shape[1]) as features:
            output = self.transformer(
                hidden_states=self._cast(tokens),
                encoder_hidden_states=self._cast(prompts.embeds_BTD),
                timestep=sigma_B,
                return_dict=False,
                **self._conditions(prompts, references, torch.full_like(sigma_B, guidance)),
            )[0]
        parts = [f.split([count, *(t.shape[1] for t in references.tokens)], 1) for f in features]
        return Prediction(
            output_BNC=output[:, :count] if self.dtype is None else output[:, :count].float(),
            target_features=tuple(part[0] for part in parts),
            reference_features=tuple(tuple(part[1:]) for part in parts),
        )

    def _conditions(
        self, prompts: Prompts, references: References, guidance_B: Tensor
    ) -> dict[str, Any]:
        """What the transformer is given besides tokens and noise level."""
        device, length = guidance_B.device, prompts.embeds_BTD.shape[1]
        embeds_guidance = unwrap(self.transformer).config.guidance_embeds
        return {
            "pooled_projections": self._cast(prompts.pooled_BD),
            "img_ids": image_ids(self.grid, references.grids).to(device),
            "txt_ids": text_ids(length).to(device),
            "guidance": guidance_B if embeds_guidance else None,
        }

    def _cast(self, value: Tensor) -> Tensor:
        return value if self.dtype is None else value.to(self.dtype)

    def generate(
        self,
        prompts: Sequence[str],
        images: Sequence[Tensor],
        masks: Sequence[Tensor],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
    ) -> Tensor:
        noise = self._noise(seeds)
        references = self.encode_references(images, masks)
        sigmas = self.sigmas(1.0)
        return self.decode(self._sample(noise, sigmas, prompts, references, guidance=guidance))

    def _scales(self, guidance: float | None) -> tuple[float, float]:
        """Scale of classifier-free guidance and the embedded one: `guidance`, or the settings'."""
        return self.sampling.guidance if guidance is None else guidance, self.sample_guidance

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
        """Repaints masks_BHW (1 = repaint) of images_BCHW: masked sampling. After each step the
        latents outside the mask are those of the image at the step's noise. Latents that the mask
        touches at all are repainted."""
        noise = self._noise(seeds)
        clean = self.encode_images(images_BCHW)
        rows, cols = self.grid[0] * 2, self.grid[1] * 2
        touched = mask_to_tokens(masks_BHW, (rows, cols), 0.0).view(-1, 1, rows, cols)
        channels = clean.shape[-1] // 4
        inside = pack(touched.expand(-1, channels, -1, -1)).to(clean.device)
        references = self.encode_references(images, masks)
        sigmas = self.sigmas(self.sampling.strength)
        start = (1 - sigmas[0]) * clean + sigmas[0] * noise

        def keep_outside(latents: Tensor, sigma: Tensor) -> Tensor:
            return inside * latents + (1 - inside) * ((1 - sigma) * clean + sigma * noise)

        return self.decode(
            self._sample(start, sigmas, prompts, references, keep_outside, guidance=guidance)
        )

    def sigmas(self, strength: float) -> Tensor:
        """Noise levels from `strength` down to 0."""
        even = torch.linspace(strength, 0, self.sampling.steps + 1)
        shift = self.sampling.shift
        return shift * even / (1 + (shift - 1) * even)

    @torch.no_grad()
    def _sample(
        self,
        latents: Tensor,
        sigmas: Tensor,
        prompts: Sequence[str],
        references: References,
        after_step: Callable[[Tensor, Tensor], Tensor] = lambda latents, sigma: latents,
        *,
        guidance: float | None = None,
    ) -> Tensor:
        scale, embedded = self._scales(guidance)
        given = self.encode_prompts(prompts)
        empty = self.encode_prompts([""] * len(prompts)) if scale != 1 else given
        shown = references if self.free_keeps_references else References((), (), ())
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            level = sigma.expand(len(latents)).to(latents.device)
            velocity = self._predict(latents, level, given, references, embedded).output_BNC
            if scale != 1 and sigma > self.sampling.guidance_above:
                free = self._predict(latents, level, empty, shown, embedded).output_BNC
                velocity = free + scale * (velocity - free)
            latents = after_step(latents + (following - sigma) * velocity, following)
        return latents

    def _noise(self, seeds: Sequence[int]) -> Tensor:
        channels = unwrap(self.transformer).config.in_channels
        return seeded_noise((self.grid[0] * self.grid[1], channels), seeds).to(self.device)


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Area averages when shrinking by a whole factor, else antialiased bilinear."""
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    if height % size[0] == 0 and width % size[1] == 0:
        return F.adaptive_avg_pool2d(images, size)
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def fit_long_side(
    images_BCHW: Tensor, masks_BHW: Tensor, long_side: int, multiple: int
) -> tuple[Tensor, Tensor]:
    """References in [-1, 1] and their masks, brought to a long side (pixels) by Lanczos and cut in
    the middle to multiples of `multiple`, with the 8-bit arithmetic of UNO's preprocess_ref (uno/
    flux/pipeline.py). UserError for an image too thin to keep a token."""
    height, width = images_BCHW.shape[-2:]
    scale = long_side / max(height, width)
    rows, cols = (
        long_side if side == max(height, width) else int(scale * side) for side in (height, width)
    )
    keep_rows, keep_cols = rows // multiple * multiple, cols // multiple * multiple
    if not keep_rows or not keep_cols:
        raise UserError(
            f"a reference of {width} x {height} pixels is too long and thin: at a long side of "
            f"{long_side} its other side is below {multiple}; pad it to a square"
        )
    top, left = (rows - keep_rows) // 2, (cols - keep_cols) // 2
    cut = (..., slice(top, top + keep_rows), slice(left, left + keep_cols))
    masks = masks_BHW.float()[:, None]
    if (rows, cols) == (height, width):
        return images_BCHW[cut], masks[:, 0][cut]
    masks = F.interpolate(masks, (rows, cols), mode="bilinear", antialias=True)
    pixels = ((images_BCHW.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255)
    shrunk = [
        np.asarray(Image.fromarray(picture).resize((cols, rows), Image.Resampling.LANCZOS))
        for picture in pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    ]
    images = torch.from_numpy(np.stack(shrunk)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.to(images_BCHW.device)[cut], masks[:, 0][cut]
