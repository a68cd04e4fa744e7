"""The independent judge of the pocket protocol: it sees pictures that no scorer was trained on.

Two networks of other families than the scorers: a diffusers U-Net that finds bodies of any class,
and a MobileNetV3 (arXiv 1905.02244) that tells class, pattern and individual. Hue and
the structure of light are not learned: they are measured (`pocket/facts.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.parts import Image, Mask, Seen, Vectors
from focusdpo.pocket.classes import PATTERNS
from focusdpo.pocket.crops import crops_of
from focusdpo.pocket.facts import hues, structures
from focusdpo.pocket.models.bodies import REACH, BodiesConfig, box_of, find_bodies
from focusdpo.pocket.weightfiles import WEIGHTS, fingerprint, load_weights, read_settings
from focusdpo.pocket.world.world import SCENE_SIZE


class JudgeModelConfig(BaseModel):
    """Shape of the judge's two networks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: tuple[str, ...] = Field((), description="all class words it can tell")
    channels: tuple[int, ...] = Field(
        (16, 32, 64, 96), description="U-Net widths from half the picture's side down"
    )
    size: int = Field(64, description="side of a crop in pixels", ge=32)
    embedding: int = Field(64, description="length of the identity embedding", ge=2)


class JudgeConfig(BaseModel):
    """How the judge reads bodies off its maps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bodies: BodiesConfig = BodiesConfig()
    min_chroma: float = Field(0.08, description="least mean chroma for a hue to be told")


class JudgeNet(nn.Module):
    """Both networks."""

    def __init__(self, config: JudgeModelConfig) -> None:
        super().__init__()
        from diffusers import UNet2DModel
        from torchvision.models import mobilenet_v3_small

        self.config = config
        depth = len(config.channels)
        # 2 x 2 pixels to a cell: a quarter of the arithmetic at little loss of edge.
        self.sight = UNet2DModel(
            sample_size=SCENE_SIZE // 2,
            in_channels=12,
            out_channels=16,
            block_out_channels=config.channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * depth,
            up_block_types=("UpBlock2D",) * depth,
            norm_num_groups=8,
            add_attention=False,
        ).to(memory_format=torch.channels_last)
        self.look = mobilenet_v3_small(num_classes=1)
        self.look.classifier = nn.Identity()
        self.look = self.look.to(memory_format=torch.channels_last)
        heads = (len(config.classes), config.embedding, len(PATTERNS))
        self.class_head, self.identity_head, self.pattern_head = (
            nn.Linear(576, max(1, n)) for n in heads
        )

    def bodies(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) in [0, 1] -> logits of foreground and of centres (B, H, W), and
        offsets to the body's centre (B, 2, H, W) as x, y in pixels."""
        cells = F.pixel_unshuffle(images * 4 - 2, 2).contiguous(memory_format=torch.channels_last)
        out = F.pixel_shuffle(self.sight(cells, torch.zeros((), device=images.device)).sample, 2)
        return out[:, 0], out[:, 1], out[:, 2:] * REACH

    def describe(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Crops (B, 3, S, S) in [0, 1] -> class logits, unit embeddings, pattern logits."""
        features = self.look((crops * 4 - 2).contiguous(memory_format=torch.channels_last))
        embedding = F.normalize(self.identity_head(features), dim=1)
        return self.class_head(features), embedding, self.pattern_head(features)


class PocketJudge:
    """`pipeline.judge.Judge` on the packaged weights."""

    def __init__(
        self,
        folder: Path = WEIGHTS,
        config: JudgeConfig | None = None,
        *,
        batch: int = 64,
        device: str = "cpu",
    ) -> None:
        self.config = config or JudgeConfig()
        model = JudgeModelConfig.model_validate(read_settings("judge", folder)["model"])
        self.net = JudgeNet(model)
        load_weights("judge", self.net, folder)
        self.net.eval().to(device)
        self._batch, self._device = batch, device
        self.fingerprint = fingerprint("judge", folder, config)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The words whose probabilities `Seen.class_scores` holds."""
        return self.net.config.classes

    def look(self, images: Sequence[Image]) -> list[list[Seen]]:
        """All bodies in each image, best first."""
        bodies = [
            (b, mask, confidence)
            for b, row in enumerate(self._find(images))
            for mask, confidence in row
        ]
        pictures = [images[b] for b, _, _ in bodies]
        masks = [mask for _, mask, _ in bodies]
        scores, vectors, _ = self._describe(pictures, masks)
        hues = self.hue(pictures, masks)
        out: list[list[Seen]] = [[] for _ in images]
        for k, (b, mask, confidence) in enumerate(bodies):
            seen = Seen(mask, box_of(mask), confidence, scores[k], vectors[k], float(hues[k]))
            out[b].append(seen)
        return [sorted(row, key=lambda s: (-s.confidence, s.box)) for row in out]

    def embed_references(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        """(B, D), unit length."""
        return self._describe(images, masks)[1]

    def patterns(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        """(B, 6) probabilities over `classes.PATTERNS`."""
        return self._describe(images, masks)[2]

    def hue(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        """(B,) degrees [0, 360), the mean of the body's colours; NaN where it is too grey."""
        return hues(images, masks, self.config.min_chroma)

    def pattern(self, images: Sequence[Image], masks: Sequence[Mask]) -> Vectors:
        """(B, 2, S, S) structures of light, measured and not learned; NaN for too few pixels."""
        return structures(images, masks)

    def _describe(
        self, images: Sequence[Image], masks: Sequence[Mask]
    ) -> tuple[Vectors, Vectors, Vectors]:
        """Class probabilities, embeddings, pattern probabilities."""
        crops = crops_of(images, masks, self.net.config.size)
        if not len(crops):
            sizes = (len(self.class_names), self.net.config.embedding, len(PATTERNS))
            return tuple(np.zeros((0, n), np.float32) for n in sizes)  # type: ignore[return-value]
        with torch.inference_mode():
            parts = [self.net.describe(c.to(self._device)) for c in crops.split(self._batch)]
        classes, vectors, patterns = (torch.cat(p).cpu() for p in zip(*parts, strict=True))
        return classes.softmax(1).numpy(), vectors.numpy(), patterns.softmax(1).numpy()

    def _find(self, images: Sequence[Image]) -> list[list[tuple[Mask, float]]]:
        wrong = [image.shape for image in images if image.shape != (SCENE_SIZE, SCENE_SIZE, 3)]
        if wrong:
            raise UserError(
                f"pocket judge: got an image of shape {wrong[0]}; it reads {SCENE_SIZE} x"
                f" {SCENE_SIZE} RGB scenes only. Evaluate other sizes with another judge"
            )
        out: list[list[tuple[Mask, float]]] = []
        for start in range(0, len(images), self._batch):
            stack = np.stack(images[start : start + self._batch])
            pixels = torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255
            with torch.inference_mode():
                logits, centres, offsets = self.net.bodies(pixels.to(self._device))
            maps = (m.cpu().numpy() for m in (logits.sigmoid(), centres.sigmoid(), offsets))
            out += [
                find_bodies(probability, centre, offset, self.config.bodies)
                for probability, centre, offset in zip(*maps, strict=True)
            ]
        return out
