"""The pocket segmenter: words to masks of all their instances.

Open-vocabulary segmentation in two steps, as OpenSeg (arXiv 2112.12143) and Grounded-SAM do it: a
SegFormer (arXiv 2105.15203) proposes the bodies in a scene whatever their class, then a RegNet
(arXiv 2003.13678) embeds each and compares it with an embedding per word. The word `object`, and
every word that training never saw, gets what no other asked word explains.
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
from focusdpo.pocket.models.bodies import REACH, BodiesConfig, box_of, find_bodies
from focusdpo.pocket.weightfiles import WEIGHTS, fingerprint, load_weights, read_settings
from focusdpo.pocket.world.world import SCENE_SIZE

OBJECT = "object"
"""The word for all subjects, whatever their class."""


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
                num_labels=16,
            )
        )
        self.regions = timm.create_model(
            config.region, pretrained=False, num_classes=config.embedding
        ).to(memory_format=torch.channels_last)
        self.words = nn.Embedding(max(1, len(config.words)), config.embedding)
        nn.init.normal_(self.words.weight, std=config.embedding**-0.5)

    def bodies(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) in [0, 1] -> logits of foreground and of centres (B, H, W), and
        offsets to the body's centre (B, 2, H, W) as x, y in pixels."""
        out = F.pixel_shuffle(self.proposals(images * 4 - 2).logits, 2)
        return out[:, 0], out[:, 1], out[:, 2:] * REACH

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
        """All instances of each of the words in each image, best first. `object`, or a word that
        it does not know, is looked for among the bodies that no other asked word explains.

        Raises UserError for images of another size than the world's.
        """
        if len(images) != len(class_names):
            raise ValueError(f"{len(images)} images and {len(class_names)} word lists")
        proposals = self._propose(images)
        places = [(b, mask) for b, bodies in enumerate(proposals) for mask, _ in bodies]
        words = iter(self._match([images[b] for b, _ in places], [mask for _, mask in places]))
        out: list[list[Detection]] = []
        for bodies, asked in zip(proposals, class_names, strict=True):
            probabilities = np.array([next(words) for _ in bodies]).reshape(-1, len(self._index))
            fit = claims(probabilities, asked, self._index, self.config)
            row = [
                Detection(word, mask, box_of(mask), confidence * claim)
                for (mask, confidence), row in zip(bodies, fit, strict=True)
                for word, claim in zip(asked, row, strict=True)
                if confidence * claim >= self.config.confidence
            ]
            out.append(sorted(row, key=lambda d: (-d.confidence, d.class_name, d.box)))
        return out

    def _propose(self, images: Sequence[Image]) -> list[list[tuple[Mask, float]]]:
        wrong = [image.shape for image in images if image.shape != (SCENE_SIZE, SCENE_SIZE, 3)]
        if wrong:
            raise UserError(
                f"pocket segmenter: got an image of shape {wrong[0]}; it reads"
                f" {SCENE_SIZE} x {SCENE_SIZE} RGB scenes only. Resize scenes, or use another"
                " segmenter"
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

    def _match(self, images: Sequence[Image], masks: Sequence[Mask]) -> NDArray[np.float32]:
        """(B, W) probabilities of the known words."""
        crops = crops_of(images, masks, self.net.config.size)
        if not len(crops):
            return np.zeros((0, len(self._index)), np.float32)
        with torch.inference_mode():
            parts = [self.net.match(c.to(self._device)) for c in crops.split(self._batch)]
        return torch.cat(parts).softmax(1).cpu().numpy()


def claims(
    probabilities_KW: NDArray[np.float32],
    asked: Sequence[str],
    index: Mapping[str, int],
    config: SegmentConfig,
) -> NDArray[np.float64]:
    """(K, asked): how well each body of a scene fits each of the asked words, in [0, 1].

    The probabilities of the known words are taken under a prior that expects the asked ones. What
    they leave is for `object` and for words that are not known, but for bodies that a known word
    claims: those it never gets, and every known word's best body is one of them.
    """
    known = sorted({index[word] for word in asked if word in index})
    prior = np.full(len(index), (1 - config.expect) / max(1, len(index) - len(known)))
    prior[known] = config.expect / max(1, len(known))
    posterior = probabilities_KW.astype(np.float64) * prior
    posterior /= np.maximum(posterior.sum(1, keepdims=True), 1e-12)
    rest = 1 - posterior[:, known].sum(1)
    if known and len(posterior):
        taken = posterior[:, known].max(1) >= config.confidence
        taken[posterior[:, known].argmax(0)] = True
        rest = np.where(taken, 0.0, rest)
    fit = np.zeros((len(posterior), len(asked)))
    for column, word in enumerate(asked):
        fit[:, column] = posterior[:, index[word]] if word in index else rest
    return fit
