"""SDXL with IP-Adapter-Plus as a backbone, and how its files are read into one.

References reach the UNet as image tokens beside the text (all references of an image together: no
word is bound to a reference, and their order says nothing, as in diffusers).
Letters: B images, R references with n_r tokens, N target tokens, C = 16 channels of a packed token,
c = 4 latent channels on h x w, m image tokens of a reference, E their width, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from focusdpo.model import adapter
from focusdpo.model.backbone import FeatureConfig, Grid, Prediction, Prompts, References
from focusdpo.model.backbones.offload import DTYPES, Deferred, in_few_bits, lent
from focusdpo.model.backbones.sdxl_conditioning import ImageTokens, SdxlText, framed, resized
from focusdpo.model.backbones.sdxl_config import CHANNELS, KV_TARGETS, MULTIPLE, SdxlIpAdapterConfig
from focusdpo.model.backbones.sdxl_features import FeatureReader, alike
from focusdpo.model.backbones.sdxl_noise import DiffusionNoise, Painter, reference_noise, time_ids
from focusdpo.model.correspondence import unwrap
from focusdpo.model.noise import seeded_noise
from focusdpo.model.tokens import KLCodec, mask_to_tokens, pack, unpack
from focusdpo.store.checkpoints import locate

_PIXELS_AT_ONCE = 2**20
"""Through the autoencoder: some 2.5 GB in float32."""


def _at_once(size: Sequence[int]) -> int:
    return max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))


class SdxlBackbone:
    """Fits the `Backbone` protocol with diffusers' UNet2DConditionModel and IP-Adapter's attention
    processors in it; `transformer` is that UNet. The UNet's own image projection is replaced by one
    that passes image tokens through, for references are encoded once, before training.

    `autoencoder`, `text` (a `SdxlText`) and `image_tokens` (an `ImageTokens`) may be `Deferred`."""

    def __init__(
        self,
        unet: nn.Module,
        autoencoder: nn.Module | Deferred,
        text: Any,
        image_tokens: Any,
        scheduler: Any,
        config: SdxlIpAdapterConfig,
        fingerprint: str,
    ) -> None:
        self.transformer = unet
        self.config = config
        self.fingerprint = fingerprint
        self._autoencoder = autoencoder
        self.codec = KLCodec(autoencoder)
        self.image_size = config.image_size
        self.grid: Grid = (config.image_size[0] // MULTIPLE, config.image_size[1] // MULTIPLE)
        self.noise = DiffusionNoise(scheduler)
        self.lora_targets = config.lora_targets
        self.lends_prompts = config.offload
        self._text, self._image_tokens, self._scheduler = text, image_tokens, scheduler
        self._dtype = next(unet.parameters()).dtype
        original = config.original_size or config.image_size
        self._time_ids = time_ids(original, config.crop_top_left, config.image_size)

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @contextmanager
    def _on_device(self, module: Any, needed: bool = True) -> Iterator[None]:
        """Inside, a module that waits on the CPU (`offload`) is where the UNet is."""
        with lent(self.device, module) if self.config.offload and needed else nullcontext():
            yield

    @torch.no_grad()
    def encode_images(self, images_BCHW: Tensor) -> Tensor:
        batches = torch.split(images_BCHW.to(self.device), _at_once(images_BCHW.shape[2:]))
        with self._on_device(self._autoencoder):
            return pack(torch.cat([self.codec.encode_latents(batch) for batch in batches]))

    @torch.no_grad()
    def decode(self, latents_BNC: Tensor) -> Tensor:
        batches = torch.split(unpack(latents_BNC.float(), self.grid), _at_once(self.image_size))
        with self._on_device(self._autoencoder):
            images = torch.cat([self.codec.decode_latents(batch) for batch in batches])
        return images.clamp(-1, 1)

    def encode_references(
        self, images: Sequence[Tensor], masks: Sequence[Tensor], count: int | None = None
    ) -> References:
        """Per reference slot: images (B, 3, h, w) in [-1, 1] and masks (B, h, w) in {0, 1}, laid on
        white. With unet_self the `tokens` are latents and `embeds` the image tokens; with ip_kv
        the `tokens` are the image tokens themselves, and every one counts. What becomes of one does
        not depend on how many there are (`count`)."""
        shown, embeds = self._shown(images, masks)
        if self.config.features == "ip_kv":
            ones = tuple(e.new_ones(e.shape[:2], dtype=torch.float32) for e in embeds)
            return References(embeds, ones, tuple((1, e.shape[1]) for e in embeds))
        grid = self._reference_grid
        tokens, pooled = [], []
        for slot in shown:
            pictures = self._resized([image for image, _ in slot])
            tokens.append(self.encode_images(pictures))
            mask_BHW = self._resized([mask[None] for _, mask in slot])[:, 0]
            pooled.append(mask_to_tokens(mask_BHW, grid).to(self.device))
        return References(tuple(tokens), tuple(pooled), (grid,) * len(shown), embeds)

    def _shown(
        self, images: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> tuple[list[list[tuple[Tensor, Tensor]]], tuple[Tensor, ...]]:
        """Per reference slot: framed images and masks of the items, and their image tokens."""
        slots = [
            [framed(*both, self.config.reference_crop) for both in zip(image, mask, strict=True)]
            for image, mask in zip(images, masks, strict=True)
        ]
        return slots, tuple(self._embed([image for image, _ in slot]) for slot in slots)

    def _resized(self, squares: Sequence[Tensor]) -> Tensor:
        side = self.config.reference_size
        return torch.cat([resized(square[None], side) for square in squares])

    def _embed(self, squares: Sequence[Tensor]) -> Tensor:
        with self._on_device(self._image_tokens):
            tokens: Tensor = self._image_tokens(squares)
        return tokens.to(self.device)

    def encode_prompts(self, prompts: Sequence[str]) -> Prompts:
        """Both CLIP text encoders' embeddings (B, T, D) and the second's pooled one."""
        with self._on_device(self._text, needed=self._text.missing(prompts)):
            encoded: Prompts = self._text(prompts, self.device)
        return encoded

    def add_noise(self, clean_BNC: Tensor, noise_BNC: Tensor, sigma_B: Tensor) -> Tensor:
        """Latents at time step floor(1000 sigma) of the checkpoint's schedule."""
        return self.noise.add(clean_BNC, noise_BNC, sigma_B)

    def target(self, clean_BNC: Tensor, noise_BNC: Tensor, sigma_B: Tensor) -> Tensor:
        """The noise, or v for a checkpoint that predicts it."""
        return self.noise.target(clean_BNC, noise_BNC, sigma_B)

    def predict(
        self,
        noisy_BNC: Tensor,
        sigma_B: Tensor,
        prompts: Prompts,
        references: References,
        capture: FeatureConfig | None = None,
    ) -> Prediction:
        """The predicted noise (or v). With `capture`, token features: the target's from this very
        pass; the references' from it too (ip_kv), or from one more pass without gradient over their
        latents, with the same prompt and noise level, without image tokens (unet_self)."""
        layout = (self.grid[0] * 2, self.grid[1] * 2)
        reader = None if capture is None else self._reader(capture)
        timesteps_B = self.noise.timesteps(sigma_B)
        embeds = references.embeds or references.tokens
        image_BRmE = torch.stack(embeds, dim=1) if embeds else None
        latents = unpack(noisy_BNC, self.grid)
        reading: Any = nullcontext({}) if reader is None else reader.reading()
        with reading as reads:
            output = self._denoise(latents, timesteps_B, prompts, image_BRmE, self._time_ids)
        if reader is None:
            return Prediction(pack(output))
        if self.config.features == "ip_kv":
            return Prediction(pack(output), *reader.image_keys(reads, layout, self.grid))
        # After the policy's pass: under autocast, casts made before it without gradient would be
        # kept, and the policy's weights cut off.
        features = self._reference_features(reader, sigma_B, prompts, references)
        return Prediction(pack(output), reader.places(reads, layout, self.grid), features)

    def _reader(self, capture: FeatureConfig) -> FeatureReader:
        core = unwrap(self.transformer)
        return FeatureReader(core, capture, self.config.features, self.config.blocks)

    @property
    def _reference_grid(self) -> Grid:
        return (self.config.reference_size // MULTIPLE,) * 2

    @torch.no_grad()
    def _reference_features(
        self, reader: FeatureReader, sigma_B: Tensor, prompts: Prompts, references: References
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Per block, per reference (B, n_r, D), from one pass over all references. Copies of a
        batch (winners and losers share everything here) go through once."""
        count, grid = len(references.tokens), self._reference_grid
        if not count:
            return tuple(() for _ in reader.blocks)
        copies = alike(references.copies, [sigma_B, *prompts.tensors()])
        some = slice(len(sigma_B) // copies)
        sigma_B, prompts = sigma_B[some], prompts.take(some)
        noisy = [
            self.noise.add(tokens[some].float(), reference_noise(r, grid).to(tokens), sigma_B)
            for r, tokens in enumerate(references.tokens)
        ]
        side = self.config.reference_size
        with reader.reading() as reads:
            self._denoise(
                unpack(torch.cat(noisy), grid),
                self.noise.timesteps(sigma_B).repeat(count),
                prompts.repeat(count),
                None,
                time_ids((side, side), (0, 0), (side, side)),
            )
        blocks = reader.places(reads, (grid[0] * 2, grid[1] * 2), grid)
        return tuple(
            tuple(torch.cat([part] * copies) for part in block.chunk(count)) for block in blocks
        )

    def _denoise(
        self,
        latents_Bchw: Tensor,
        timesteps_B: Tensor,
        prompts: Prompts,
        image_BRmE: Tensor | None,
        ids_6: Tensor,
    ) -> Tensor:
        """A pass of the UNet; without image tokens the adapter's attention adds nothing."""
        device, dtype = latents_Bchw.device, self._dtype
        conditions = {
            "text_embeds": prompts.pooled_BD.to(dtype),
            "time_ids": ids_6.to(device, dtype).repeat(len(latents_Bchw), 1),
            "image_embeds": [] if image_BRmE is None else [image_BRmE.to(dtype)],
        }
        output: Tensor = self.transformer(
            latents_Bchw.to(dtype),
            timesteps_B,
            encoder_hidden_states=prompts.embeds_BTD.to(dtype),
            added_cond_kwargs=conditions,
            return_dict=False,
        )[0]
        return output

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        images: Sequence[Tensor],
        masks: Sequence[Tensor],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
    ) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], as StableDiffusionXLPipeline paints them from the same
        latents; references per slot as in `encode_references`, slots may be none. The noise of
        item b comes from seeds[b] alone."""
        painter = self._painter(prompts, images, masks, guidance)
        return self.decode(pack(painter.paint(self._noise(seeds))))

    @torch.no_grad()
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
        """Repaints masks_BHW (1 = repaint) of images_BCHW: masked sampling, as diffusers' inpaint
        pipeline does with a UNet that knows no masks. Latents that the mask touches at all are
        repainted."""
        clean = unpack(self.encode_images(images_BCHW), self.grid)
        rows, columns = clean.shape[2:]
        touched = mask_to_tokens(masks_BHW, (rows, columns), 0.0)
        inside = touched.view(-1, 1, rows, columns).to(clean)
        painter = self._painter(prompts, images, masks, guidance)
        return self.decode(pack(painter.repaint(clean, inside, self._noise(seeds))))

    def _painter(
        self,
        prompts: Sequence[str],
        images: Sequence[Tensor],
        masks: Sequence[Tensor],
        guidance: float | None,
    ) -> Painter:
        config = self.config
        if guidance is not None:
            config = config.model_copy(update={"guidance": guidance})
        condition = self._conditions(prompts, images, masks, guided=config.guidance != 1)

        def denoise(latents: Tensor, timesteps_B: Tensor) -> Tensor:
            return self._denoise(latents, timesteps_B, *condition, self._time_ids).float()

        return Painter(denoise, self._scheduler, config, self.device)

    def _conditions(
        self,
        prompts: Sequence[str],
        images: Sequence[Tensor],
        masks: Sequence[Tensor],
        *,
        guided: bool,
    ) -> tuple[Prompts, Tensor | None]:
        """Prompts and image tokens; with guidance the unconditional halves of both come first."""
        given = self.encode_prompts(prompts)
        _, embeds = self._shown(images, masks)
        image_BRmE = torch.stack(embeds, dim=1) if embeds else None
        if not guided:
            return given, image_BRmE
        with self._on_device(self._text, needed=self._text.missing([""])):
            prompts_both = self._text.doubled(given)
        if image_BRmE is not None:
            with self._on_device(self._image_tokens):
                image_BRmE = self._image_tokens.doubled(image_BRmE)
        return prompts_both, image_BRmE

    def _noise(self, seeds: Sequence[int]) -> Tensor:
        """(B, c, h, w)."""
        noise_BNC = seeded_noise((self.grid[0] * self.grid[1], CHANNELS), seeds)
        return unpack(noise_BNC, self.grid).to(self.device)


class GivenTokens(nn.Module):
    """In place of a UNet's image projection, where image tokens are made beforehand."""

    def forward(self, image_embeds: list[Tensor]) -> list[Tensor]:
        """Per adapter (B, R, m, E), unchanged."""
        return image_embeds


def load(
    config: SdxlIpAdapterConfig, device: str, fingerprint: str, adapter_file: Path, encoder: Path
) -> SdxlBackbone:
    """The backbone, frozen and in evaluation mode, from checkpoints that were checked; `encoder` is
    the folder of CLIP's vision tower."""
    rest = "cpu" if config.offload else device
    dtype = DTYPES[config.dtype]
    if config.quantise == "none":
        pipeline = _pipeline(config, "unet")
    else:
        pipeline = _pipeline(config, unet=_unet_in_few_bits(config, device))
    unet, resampler = with_adapter(pipeline, adapter_file, config.scale)
    if config.quantise == "none":
        unet.to(device)
    else:  # its linear layers are there, and may not be moved; the adapter's are new
        for processor in unet.attn_processors.values():
            if isinstance(processor, nn.Module):
                processor.to(device, dtype)
    unet.eval().requires_grad_(False)

    def text() -> nn.Module:
        loaded = _pipeline(config, "text_encoder", "text_encoder_2")
        return SdxlText(
            (loaded.tokenizer, loaded.tokenizer_2),
            (loaded.text_encoder, loaded.text_encoder_2),
            zero_empty=loaded.config.force_zeros_for_empty_prompt,
            cache_mib=config.prompt_cache_mib,
        ).to(rest)

    def image_tokens() -> nn.Module:
        tower = CLIPVisionModelWithProjection.from_pretrained(
            encoder, dtype=dtype, use_safetensors=True, local_files_only=True
        )
        return ImageTokens(tower, resampler).to(rest)

    autoencoder = Deferred(lambda: _pipeline(config, "vae").vae.to(rest))
    if config.policy == "adapter_kv":
        adapter.choose(unet, KV_TARGETS)
    return SdxlBackbone(
        unet,
        autoencoder,
        Deferred(text),
        Deferred(image_tokens),
        pipeline.scheduler,
        config,
        fingerprint,
    )


_MODELS = ("unet", "vae", "text_encoder", "text_encoder_2")


def _unet_in_few_bits(config: SdxlIpAdapterConfig, device: str) -> nn.Module:
    loaded: nn.Module = UNet2DConditionModel.from_pretrained(
        locate(config.base, "models.backbone.base") / "unet",
        variant=config.variant,
        use_safetensors=True,
        local_files_only=True,
        **in_few_bits(config.quantise, config.dtype, device),
    )
    return loaded


def _pipeline(config: SdxlIpAdapterConfig, *wanted: str, **given: nn.Module) -> Any:
    """SDXL's pipeline with these of its models, and those `given`, alone."""
    rest: dict[str, Any] = {name: None for name in _MODELS if name not in wanted} | given
    return StableDiffusionXLPipeline.from_pretrained(
        locate(config.base, "models.backbone.base"),
        dtype={"vae": DTYPES[config.vae_dtype], "default": DTYPES[config.dtype]},
        variant=config.variant,
        use_safetensors=True,
        local_files_only=True,
        add_watermarker=False,
        **rest,
    )


def with_adapter(pipeline: Any, path: Path, scale: float) -> tuple[Any, nn.Module]:
    """The pipeline's UNet with IP-Adapter's attention, and the resampler taken out of it: a LoRA
    on the UNet leaves it alone, and references go through it once."""
    weights: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(path).items():
        part, _, rest = name.partition(".")
        weights[part][rest] = tensor
    # `load_ip_adapter` would want the image encoder beside it.
    pipeline.unet._load_ip_adapter_weights([weights])
    pipeline.set_ip_adapter_scale(scale)
    resampler: nn.Module = pipeline.unet.encoder_hid_proj.image_projection_layers[0]
    pipeline.unet.encoder_hid_proj = GivenTokens()
    return pipeline.unet, resampler
