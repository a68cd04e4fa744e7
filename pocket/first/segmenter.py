"""The pocket segmenter: words to masks of all their instances.

Open-vocabulary segmentation in two steps, as OpenSeg (arXiv 2112.12143) and Grounded-SAM do it: a
SegFormer (arXiv 2105.15203) proposes the bodies in a scene whatever their class, then a RegNet
(arXiv 2003.13678) embeds each and compares it with an embedding per word. The word `object`, and
every word that training never saw, is answered by the proposals alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.parts import Detection, Image, Mask
from focusdpo.pocket.crops import crops_of
from focusdpo.pocket.first.bodies import REACH, BodiesConfig, box_of, find_bodies
from focusdpo.pocket.first.place import WEIGHTS
from focusdpo.pocket.weightfiles import fingerprint, load_weights, read_settings

OBJECT = "object"
"""The word for all subjects, whatever their class."""

SCENE = 64
"""Side of the scenes that it reads, in pixels."""


class SegmenterModelConfig(BaseModel):
    """Shape of the segmenter's two networks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    words: tuple[str, ...] = Field((), description="classes that it was trained on")
    widths: tuple[int, ...] = Field((24, 48, 96), description="SegFormer widths")
    depths: tuple[int, ...] = Field((1, 2, 2), description="SegFormer layers")
    region: str = Field("regnetx_002", description="timm name of the region network")
    size: int = Field(48, description="side of a region's crop in pixels", ge=16)
    embedding: int = Field(64, description="length of a region's and a word's embedding", ge=2)


class SegmentConfig(BaseModel):
    """How masks are read off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bodies: BodiesConfig = BodiesConfig()
    confidence: float = Field(0.25, description="least confidence of a detection")
    expect: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="prior probability that a body is one of the asked words; the words that were"
        " not asked share the rest",
    )


class SegmenterNet(nn.Module):
    """Both networks and the words."""

    def __init__(self, config: SegmenterModelConfig) -> None:
        super().__init__()
        import timm
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        self.config = config
        stages = len(config.widths)
        self.proposals = SegformerForSemanticSegmentation(
            SegformerConfig(
                num_encoder_blocks=stages,
                depths=list(config.depths),
                sr_ratios=[2 ** (stages - 1 - i) for i in range(stages)],
                hidden_sizes=list(config.widths),
                patch_sizes=[5] + [3] * (stages - 1),
                strides=[2] * stages,
                num_attention_heads=[2**i for i in range(stages)],
                mlp_ratios=[2] * stages,
                decoder_hidden_size=32,
                num_labels=12,
            )
        )
        self.regions = timm.create_model(
            config.region, pretrained=False, num_classes=config.embedding
        ).to(memory_format=torch.channels_last)
        self.words = nn.Embedding(max(1, len(config.words)), config.embedding)
        nn.init.normal_(self.words.weight, std=config.embedding**-0.5)

    def bodies(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, 64, 64) in [0, 1] -> foreground logits (B, 64, 64) and offsets to the
        body's centre (B, 2, 64, 64) as x, y in pixels."""
        out = F.pixel_shuffle(self.proposals(images * 4 - 2).logits, 2)
        return out[:, 0], out[:, 1:] * REACH

    def match(self, crops: Tensor) -> Tensor:
        """Crops (B, 3, S, S) in [0, 1] -> logits over the known words (B, W)."""
        features = self.regions((crops * 4 - 2).contiguous(memory_format=torch.channels_last))
        return F.normalize(features, dim=1) @ F.normalize(self.words.weight, dim=1).T * 20


class PocketSegmenter:
    """`pipeline.parts.Segmenter` on the packaged weights."""

    def __init__(
        self,
        folder: Path = WEIGHTS,
        config: SegmentConfig | None = None,
        *,
        batch: int = 64,
        device: str = "cpu",
    ) -> None:
        self.config = config or SegmentConfig()
        model = SegmenterModelConfig.model_validate(read_settings("segmenter", folder)["model"])
        self.net = SegmenterNet(model)
        load_weights("segmenter", self.net, folder)
        self.net.eval().to(device)
        self._index = {word: i for i, word in enumerate(model.words)}
        self._batch, self._device = batch, device
        self.fingerprint = fingerprint("segmenter", folder, config)

    @property
    def words(self) -> tuple[str, ...]:
        """Words that it was trained on; every other word is looked for as `object`."""
        return tuple(self._index)

    def segment(
        self, images: Sequence[Image], class_names: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        """All instances of each of the words in each image, best first. A word that it does not
        know is looked for among the bodies that no other asked word explains.

        Raises UserError for images that are not 64 x 64 RGB.
        """
        if len(images) != len(class_names):
            raise ValueError(f"{len(images)} images and {len(class_names)} word lists")
        found = [
            (b, mask, confidence)
            for b, bodies in enumerate(self._propose(images))
            for mask, confidence in bodies
        ]
        words = self._match([images[b] for b, _, _ in found], [mask for _, mask, _ in found])
        out: list[list[Detection]] = [[] for _ in images]
        for (b, mask, body), probabilities in zip(found, words, strict=True):
            fit = claims(probabilities, class_names[b], self._index, self.config.expect)
            for word, claim in zip(class_names[b], fit, strict=True):
                confidence = body * claim
                if confidence >= self.config.confidence:
                    out[b].append(Detection(word, mask, box_of(mask), confidence))
        return [sorted(row, key=lambda d: (-d.confidence, d.class_name, d.box)) for row in out]

    def _propose(self, images: Sequence[Image]) -> list[list[tuple[Mask, float]]]:
        wrong = [image.shape for image in images if image.shape != (SCENE, SCENE, 3)]
        if wrong:
            raise UserError(
                f"pocket segmenter: got an image of shape {wrong[0]}; it reads"
                f" {SCENE} x {SCENE} RGB scenes only. Resize scenes, or use another segmenter"
            )
        out: list[list[tuple[Mask, float]]] = []
        for start in range(0, len(images), self._batch):
            stack = np.stack(images[start : start + self._batch])
            pixels = torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255
            with torch.inference_mode():
                logits, offsets = self.net.bodies(pixels.to(self._device))
            maps = zip(logits.sigmoid().cpu().numpy(), offsets.cpu().numpy(), strict=True)
            out += [find_bodies(p, o, self.config.bodies) for p, o in maps]
        return out

    def _match(self, images: Sequence[Image], masks: Sequence[Mask]) -> NDArray[np.float32]:
        """(B, W) probabilities of the known words."""
        crops = crops_of(images, masks, self.net.config.size)
        if not len(crops):
            return np.zeros((0, len(self._index)), np.float32)
        with torch.inference_mode():
            parts = [self.net.match(c.to(self._device)) for c in crops.split(self._batch)]
        return torch.cat(parts).softmax(1).cpu().numpy()


def claims(
    probabilities_W: NDArray[np.float32],
    asked: Sequence[str],
    index: Mapping[str, int],
    expect: float,
) -> list[float]:
    """How well a body fits each of the asked words, in [0, 1].

    The probabilities of the known words are taken under a prior that expects the asked ones. A
    word that is not known fits as well as no known asked word does; `object` fits every body.
    """
    known = sorted({index[word] for word in asked if word in index})
    others = len(probabilities_W) - len(known)
    prior = np.full(len(probabilities_W), (1 - expect) / max(1, others))
    prior[known] = expect / max(1, len(known))
    posterior = probabilities_W * prior
    posterior = posterior / max(posterior.sum(), 1e-12)
    unknown = 1 - posterior[known].sum()
    return [
        float(posterior[index[word]])
        if word in index
        else 1.0
        if word == OBJECT
        else float(unknown)
        for word in asked
    ]
