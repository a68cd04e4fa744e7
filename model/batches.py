"""Shards -> batches of pairs, encoded once.

Shards are webdataset tars; fields are decoded by `data_schemas.shards` alone (PNG and JSON, never a
pickle). Which pairs make up step s is a function of (seed, s), so a resumed run needs no replay.
Shapes: B pairs, R subjects, N target tokens, C channels.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import ShardSample
from focusdpo.model.backbone import Backbone, Grid, Prompts, References
from focusdpo.model.configs import digest
from focusdpo.model.focus import FocusPriors, pool_to_grid
from focusdpo.model.shard_index import Entry, index_shard, read_entry

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with a phase's name, how many are done, how many there are, and figures to show."""

_ENCODE_AT_ONCE = 16


@dataclass(frozen=True)
class PairBatch:
    """Pairs with the same number of subjects, ready for a forward pass."""

    keys: tuple[str, ...]
    win_BNC: Tensor
    lose_BNC: Tensor
    priors: FocusPriors
    """Shared by winner and loser."""
    prompts: Prompts
    references: References

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: slice) -> PairBatch:
        """Some of the pairs."""
        return PairBatch(
            self.keys[rows],
            self.win_BNC[rows],
            self.lose_BNC[rows],
            FocusPriors(
                self.priors.prior_BN[rows],
                self.priors.subjects_BRN[rows],
                self.priors.detail_BN[rows],
            ),
            Prompts(self.prompts.embeds_BTD[rows], self.prompts.pooled_BD[rows]),
            References(
                tuple(t[rows] for t in self.references.tokens),
                tuple(m[rows] for m in self.references.masks),
                self.references.grids,
            ),
        )

    def tensors(self) -> list[Tensor]:
        """All tensors, to count bytes."""
        return [
            self.win_BNC,
            self.lose_BNC,
            self.priors.prior_BN,
            self.priors.subjects_BRN,
            self.priors.detail_BN,
            self.prompts.embeds_BTD,
            self.prompts.pooled_BD,
            *self.references.tokens,
            *self.references.masks,
        ]


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

    def cat(pick: Callable[[PairBatch], Tensor]) -> Tensor:
        return torch.cat([pick(batch) for batch in batches])

    reference_tokens = zip(*(batch.references.tokens for batch in batches), strict=True)
    reference_masks = zip(*(batch.references.masks for batch in batches), strict=True)
    return PairBatch(
        sum((batch.keys for batch in batches), ()),
        cat(lambda b: b.win_BNC),
        cat(lambda b: b.lose_BNC),
        FocusPriors(
            cat(lambda b: b.priors.prior_BN),
            cat(lambda b: b.priors.subjects_BRN),
            cat(lambda b: b.priors.detail_BN),
        ),
        Prompts(cat(lambda b: b.prompts.embeds_BTD), cat(lambda b: b.prompts.pooled_BD)),
        References(
            tuple(torch.cat(tokens) for tokens in reference_tokens),
            tuple(torch.cat(masks) for masks in reference_masks),
            first.references.grids,
        ),
    )


def _images(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """uint8 (H, W, 3) each -> (B, 3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.stack(arrays)).to(device)
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def _masks(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).to(device).float()


def near_prior(prior_BHW: Tensor, grid: Grid) -> Tensor:
    """{0, 1} (B, N): tokens that hold any pixel of the prior, and the ring of tokens around."""
    touched_BN = (pool_to_grid(prior_BHW, grid) > 0).float()
    touched_B1hw = touched_BN.unflatten(1, grid).unsqueeze(1)
    return F.max_pool2d(touched_B1hw, kernel_size=3, stride=1, padding=1).flatten(1)


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
def encode_pairs(backbone: Backbone, samples: Sequence[ShardSample]) -> PairBatch:
    """Samples of equal R and sizes -> a batch on the backbone's device, float32.

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
    keep_BN = near_prior(prior_BHW, grid).bool() | ~aligned_B.unsqueeze(1)
    subjects = [pool_to_grid(_masks([i.masks[r] for i in images], device), grid) for r in num]
    return PairBatch(
        keys=tuple(sample.pair.id for sample in samples),
        win_BNC=win_BNC,
        lose_BNC=torch.where(keep_BN.unsqueeze(2), lose_BNC, win_BNC),
        priors=FocusPriors(
            prior_BN=(pool_to_grid(prior_BHW, grid) >= 0.5).float(),
            subjects_BRN=(torch.stack(subjects, dim=1) >= 0.5).float(),
            detail_BN=pool_to_grid(_masks([i.complexity for i in images], device), grid),
        ),
        prompts=backbone.encode_prompts([sample.pair.prompt for sample in samples]),
        references=backbone.encode_references(
            [_images([i.references[r] for i in images], device) for r in num],
            [_masks([i.reference_masks[r] for i in images], device) for r in num],
        ),
    )


Which = Collection[str] | Collection[tuple[str, str]]
"""Which pairs count: (shard file name, pair id), or ids where no two shards share one."""


class PairData:
    """The pairs of some shards, for one backbone.

    `only` leaves out what a newer version of a dataset no longer counts. Batches are encoded when
    they are asked for, unless `encode` has done it before."""

    def __init__(
        self,
        backbone: Backbone,
        shards: Sequence[str | Path],
        *,
        split: str = "train",
        only: Which | None = None,
    ) -> None:
        self._backbone = backbone
        self._entries = [
            entry
            for path in shards
            for entry in index_shard(path)
            if entry.split == split and (only is None or _counts(entry, only))
        ]
        if not self._entries:
            raise UserError(
                f"{len(shards)} shards hold no pair of split '{split}'. Build a dataset first, or "
                "loosen the pair stage's thresholds: its rejects say why pairs were dropped."
            )
        self._cache: dict[int, PairBatch] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def keys(self) -> list[str]:
        """Ids of the pairs, by item."""
        return [entry.key for entry in self._entries]

    def fingerprint(self) -> str:
        """Digest of the pairs' records and their order; records name images by content."""
        return digest([entry.digest for entry in self._entries])

    def groups(self) -> list[list[int]]:
        """Items by number of subjects, fewest first."""
        groups: dict[int, list[int]] = defaultdict(list)
        for item, entry in enumerate(self._entries):
            groups[entry.num_subjects].append(item)
        return [groups[num] for num in sorted(groups)]

    def batch(self, items: Sequence[int]) -> PairBatch:
        """A batch on the backbone's device."""
        if all(item in self._cache for item in items):
            return join([self._cache[item] for item in items])
        return encode_pairs(self._backbone, [self.sample(item) for item in items])

    def sample(self, item: int) -> ShardSample:
        """The pair as it lies in its shard."""
        return read_entry(self._entries[item])

    def encode(self, cache_mib: int, progress: Progress | None = None) -> None:
        """Encodes all pairs and keeps them, or none if they take more than `cache_mib`."""
        used, done = 0, 0
        for chunk in self._chunks():
            batch = encode_pairs(self._backbone, [self.sample(item) for item in chunk])
            used += sum(t.numel() * t.element_size() for t in batch.tensors())
            if used > cache_mib * 2**20:
                log.info("encoded pairs exceed train.cache_mib: encoding batches as they come")
                self._cache.clear()
                return
            for row, item in enumerate(chunk):
                self._cache[item] = batch.take(slice(row, row + 1))
            done += len(chunk)
            if progress:
                progress("encode pairs", done, len(self._entries), {})

    def _chunks(self) -> Iterator[list[int]]:
        for group in self.groups():
            for start in range(0, len(group), _ENCODE_AT_ONCE):
                yield group[start : start + _ENCODE_AT_ONCE]


def _counts(entry: Entry, only: Which) -> bool:
    return entry.key in only or (Path(entry.shard).name, entry.key) in only


__all__ = ["Entry", "PairBatch", "PairData", "encode_pairs", "join", "near_prior"]
