"""Samples -> batches of pairs, encoded once.

Fields are decoded by `data_schemas.shards` alone (PNG and JSON, never a
pickle). Which pairs make up step s is a function of (seed, s), so a resumed run needs no replay.
Shapes: B pairs, R subjects, N target tokens, C channels.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.pairs import is_mixed, signs_of
from focusdpo.data_schemas.shards import ShardSample
from focusdpo.model.backbone import Backbone, Grid, Prompts, References, TensorRecord
from focusdpo.model.focus import FocusPriors, pool_to_grid
from focusdpo.model.focus_config import FocusConfig
from focusdpo.model.patch_quality import PatchQuality, patch_quality
from focusdpo.model.training.config import PatchConfig, digest
from focusdpo.store.samples import Sample

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with a phase's name, how many are done, how many there are, and figures to show."""

_ENCODE_AT_ONCE = 16


@dataclass(frozen=True)
class PairBatch(TensorRecord):
    """Pairs with the same number of subjects, ready for a forward pass."""

    keys: tuple[str, ...]
    win_BNC: Tensor
    lose_BNC: Tensor
    priors: FocusPriors
    """Shared by winner and loser; the detail is the winner's."""
    lose_detail_BN: Tensor
    """The loser's own complexity."""
    prompts: Prompts
    references: References
    signs_BR: Tensor
    """Which image shows a subject better: 1 the winner, -1 the loser, 0 neither."""
    quality: PatchQuality | None = None
    """Where the objective weighs by patch quality."""

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: slice) -> PairBatch:
        return replace(super().take(rows), keys=self.keys[rows])

    def branch_priors(self, detail_image: Literal["winner", "each"] = "winner") -> FocusPriors:
        """Priors of the 2B images, winners first: `FocusConfig.detail_image` says whose detail."""
        both = self.priors.repeat(2)
        if detail_image == "winner":
            return both
        return replace(both, detail_BN=torch.cat([self.priors.detail_BN, self.lose_detail_BN]))


def join(batches: Sequence[PairBatch]) -> PairBatch:
    """Batches laid end to end. UserError where their shapes differ."""
    first = batches[0]
    shapes = [[tuple(t.shape[1:]) for t in batch.tensors()] for batch in batches]
    for batch, shape in zip(batches, shapes, strict=True):
        if shape != shapes[0]:
            raise UserError(
                f"pairs {first.keys[0]} and {batch.keys[0]} differ in image or reference sizes; "
                "build the dataset with one size"
            )
    joined = map(torch.cat, zip(*(batch.tensors() for batch in batches), strict=True))
    keys = tuple(key for batch in batches for key in batch.keys)
    return replace(first.each(lambda _: next(joined)), keys=keys)


def _images(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """uint8 (H, W, 3) each -> (B, 3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.stack(arrays)).to(device)
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def _masks(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).to(device).float()


def prior_tokens(prior_BHW: Tensor, grid: Grid, cover: float, ring: int) -> Tensor:
    """M_prior {0, 1} (B, N): tokens of which the region covers at least `cover` (0: any pixel), and
    `ring` rings of tokens around them."""
    share_BN = pool_to_grid(prior_BHW, grid)
    inside_BN = ((share_BN >= cover) & (share_BN > 0)).float()
    if not ring:
        return inside_BN
    inside_B1hw = inside_BN.unflatten(1, grid).unsqueeze(1)
    return F.max_pool2d(inside_B1hw, 2 * ring + 1, stride=1, padding=ring).flatten(1)


def _check_sizes(backbone: Backbone, samples: Sequence[ShardSample]) -> None:
    for sample in samples:
        size = sample.images.win.shape[:2]
        if size != backbone.image_size:
            raise UserError(
                f"pair {sample.pair.id} is {size[0]} x {size[1]} pixels, the backbone paints "
                f"{backbone.image_size[0]} x {backbone.image_size[1]}: build the dataset with "
                "the preset that you train with"
            )


@torch.no_grad()
def encode_pairs(
    backbone: Backbone,
    samples: Sequence[ShardSample],
    patches: PatchConfig | None = None,
    focus: FocusConfig | None = None,
) -> PairBatch:
    """Samples of equal R and sizes -> a batch on the backbone's device, float32; with `patches`,
    their patch quality by the base; `focus` says which tokens M_prior holds.

    Where a loser is a repainted winner, its latents outside the repainted region are the winner's:
    an autoencoder smears the region over its surroundings, and those differences say nothing."""
    device = next(backbone.transformer.parameters()).device
    _check_sizes(backbone, samples)
    images = [sample.images for sample in samples]
    num = range(len(samples[0].pair.subject_ids))
    grid = backbone.grid
    win_BNC = backbone.encode_images(_images([i.win for i in images], device)).float()
    lose_BNC = backbone.encode_images(_images([i.lose for i in images], device)).float()
    prior_BHW = _masks([i.prior for i in images], device)
    aligned_B = torch.tensor([s.pair.source == "disrupt" for s in samples], device=device)
    keep_BN = prior_tokens(prior_BHW, grid, 0.0, 1).bool() | ~aligned_B.unsqueeze(1)
    focus = focus or FocusConfig()
    subjects = [pool_to_grid(_masks([i.masks[r] for i in images], device), grid) for r in num]
    lose_BNC = torch.where(keep_BN.unsqueeze(2), lose_BNC, win_BNC)
    prompts = backbone.encode_prompts([sample.pair.prompt for sample in samples])
    references = backbone.encode_references(
        [_images([i.references[r] for i in images], device) for r in num],
        [_masks([i.reference_masks[r] for i in images], device) for r in num],
    )
    return PairBatch(
        keys=tuple(sample.pair.id for sample in samples),
        win_BNC=win_BNC,
        lose_BNC=lose_BNC,
        priors=FocusPriors(
            prior_BN=prior_tokens(prior_BHW, grid, focus.prior_cover, focus.prior_ring),
            subjects_BRN=(torch.stack(subjects, dim=1) >= 0.5).float(),
            detail_BN=pool_to_grid(_masks([i.complexity for i in images], device), grid),
        ),
        lose_detail_BN=pool_to_grid(_masks([i.lose_complexity for i in images], device), grid),
        prompts=prompts,
        references=references,
        signs_BR=torch.tensor(
            [signs_of(s.pair.source, s.pair.mode, len(num)) for s in samples], device=device
        ).float(),
        quality=None
        if patches is None
        else patch_quality(backbone, win_BNC, lose_BNC, prompts, references, patches),
    )


class PairData:
    """Pairs of a dataset version, for one backbone.

    `source` keeps the pairs of one source alone, `mixed` those too in which neither picture is the
    better one, `patches` adds patch quality, `focus` says which tokens M_prior holds. Batches are
    encoded when they are asked for, unless `encode` has done it before."""

    def __init__(
        self,
        backbone: Backbone,
        samples: Sequence[Sample],
        *,
        source: str = "both",
        mixed: bool = False,
        patches: PatchConfig | None = None,
        focus: FocusConfig | None = None,
    ) -> None:
        self._backbone = backbone
        self._patches, self._focus = patches, focus
        own = [sample for sample in samples if source in ("both", sample.row.source)]
        if not own:
            raise UserError(
                f"none of {len(samples)} pairs has source '{source}'. Build a dataset first, or "
                "loosen the pair stage's thresholds: its rejects say why pairs were dropped."
            )
        self._samples = [one for one in own if mixed or not is_mixed(one.row.source, one.row.mode)]
        if not self._samples:
            raise UserError(
                f"all {len(own)} pairs of source '{source}' are mixed: neither picture is the "
                "better one. Train with objective instance_dpo, or build with "
                "pair.max_failure_per_scene above 0."
            )
        self._cache: dict[int, PairBatch] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def keys(self) -> list[str]:
        """Ids of the pairs, by item."""
        return [sample.row.pair_id for sample in self._samples]

    def fingerprint(self) -> str:
        """Digest of the pairs' records and their order; records name images by content."""
        return digest([sample.row.digest for sample in self._samples])

    def groups(self) -> list[list[int]]:
        """Items by number of subjects, fewest first."""
        groups: dict[int, list[int]] = defaultdict(list)
        for item, sample in enumerate(self._samples):
            groups[sample.row.num_subjects].append(item)
        return [groups[num] for num in sorted(groups)]

    def batch(self, items: Sequence[int]) -> PairBatch:
        """A batch on the backbone's device."""
        if all(item in self._cache for item in items):
            return join([self._cache[item] for item in items])
        return self._encoded(items)

    def sample(self, item: int) -> ShardSample:
        """The pair as it lies in its shard."""
        return self._samples[item].read()

    def encode(self, cache_mib: int, progress: Progress | None = None) -> None:
        """Encodes all pairs and keeps them, or none if they take more than `cache_mib`."""
        used, done = 0, 0
        for chunk in self._chunks():
            batch = self._encoded(chunk)
            used += sum(t.numel() * t.element_size() for t in batch.tensors())
            if used > cache_mib * 2**20:
                log.info("encoded pairs exceed train.cache_mib: encoding batches as they come")
                self._cache.clear()
                return
            for row, item in enumerate(chunk):
                self._cache[item] = batch.take(slice(row, row + 1))
            done += len(chunk)
            if progress:
                progress("encode pairs", done, len(self._samples), {})

    def _encoded(self, items: Sequence[int]) -> PairBatch:
        samples = [self.sample(item) for item in items]
        return encode_pairs(self._backbone, samples, self._patches, self._focus)

    def _chunks(self) -> Iterator[list[int]]:
        for group in self.groups():
            for start in range(0, len(group), _ENCODE_AT_ONCE):
                yield group[start : start + _ENCODE_AT_ONCE]
