"""Samples -> batches of pairs, of what was encoded once.

Fields are decoded by `data_schemas.shards` alone (PNG and JSON, never a
pickle). Which pairs make up step s is a function of (seed, s), so a resumed run needs no replay.
Shapes: B pairs, R subjects, N target tokens, C channels.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
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
from focusdpo.model.training.ahead import read_ahead
from focusdpo.model.training.config import PatchConfig, digest
from focusdpo.model.training.encoded import (
    Encodings,
    Entry,
    join_prompts,
    join_references,
    key_of,
)
from focusdpo.store.samples import Sample

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with a phase's name, how many are done, how many there are, and figures to show."""

_ALL = slice(None)
_READ_AHEAD = 8
_PROMPTS_AT_ONCE = 64


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


def prior_tokens(share_BN: Tensor, grid: Grid, cover: float, ring: int) -> Tensor:
    """M_prior {0, 1} (B, N) from the share of each token that the region covers: tokens of which it
    covers at least `cover` (0: any pixel), and `ring` rings of tokens around them."""
    inside_BN = ((share_BN >= cover) & (share_BN > 0)).float()
    if not ring:
        return inside_BN
    inside_B1hw = inside_BN.unflatten(1, grid).unsqueeze(1)
    return F.max_pool2d(inside_B1hw, 2 * ring + 1, stride=1, padding=ring).flatten(1)


def _check_size(backbone: Backbone, sample: ShardSample) -> None:
    size = sample.images.win.shape[:2]
    if size != backbone.image_size:
        raise UserError(
            f"pair {sample.pair.id} is {size[0]} x {size[1]} pixels, the backbone paints "
            f"{backbone.image_size[0]} x {backbone.image_size[1]}: build the dataset with "
            "the preset that you train with"
        )


_MAPS = ("share", "subjects", "detail", "lose_detail")


@dataclass(frozen=True)
class EncodedPair:
    """A pair's entries, on the CPU."""

    pair: Entry
    """Its maps on the token grid, and the keys of what follows."""
    win: Entry
    lose: Entry
    references: tuple[Entry, ...]
    prompt: Entry

    @property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Of all that a batch lays side by side."""
        entries = (self.pair, self.win, self.lose, *self.references, self.prompt)
        return [
            (name, tuple(tensor.shape))
            for entry in entries
            for name, tensor in sorted(entry.tensors.items(), key=lambda item: item[0])
        ]


@torch.no_grad()
def encode_pair(
    backbone: Backbone, encodings: Encodings, sample: ShardSample, key: str
) -> EncodedPair:
    """What is known of a pair is found, the rest encoded; `key` is that of its maps. UserError
    where its pictures are not of the size that the backbone paints."""
    _check_size(backbone, sample)
    images, pair, grid = sample.images, sample.pair, backbone.grid
    win_key, win = encodings.picture(images.win)
    lose_key, lose = encodings.picture(images.lose)
    keys, references = encodings.references(images.references, images.reference_masks)
    (prompt,) = encodings.texts([pair.prompt])
    maps = Entry(
        {
            "share": _on_tokens([images.prior], grid)[0],
            "subjects": _on_tokens(images.masks, grid),
            "detail": _on_tokens([images.complexity], grid)[0],
            "lose_detail": _on_tokens([images.lose_complexity], grid)[0],
        },
        {
            "id": pair.id,
            "source": pair.source,
            "mode": pair.mode,
            "prompt": pair.prompt,
            "win": win_key,
            "lose": lose_key,
            "references": " ".join(keys),
        },
    )
    return EncodedPair(encodings.keep(key, maps), win, lose, tuple(references), prompt)


def _on_tokens(maps: Sequence[np.ndarray], grid: Grid) -> Tensor:
    """Maps (H, W) -> the mean of each on every token (R, N)."""
    return pool_to_grid(torch.from_numpy(np.stack(maps)).float(), grid)


def lay_out(pairs: Sequence[EncodedPair], grid: Grid, focus: FocusConfig) -> PairBatch:
    """Pairs with equally many references as a batch on the CPU. UserError where sizes differ.

    Where a loser is a repainted winner, its latents outside the repainted region are the winner's:
    an autoencoder smears the region over its surroundings, and those differences say nothing."""
    for other in pairs[1:]:
        if other.shapes != pairs[0].shapes:
            raise UserError(
                f"pairs {pairs[0].pair.about['id']} and {other.pair.about['id']} differ in image "
                "or reference sizes; build the dataset with one size"
            )
    maps = {name: torch.stack([pair.pair.tensors[name] for pair in pairs]) for name in _MAPS}
    win_BNC, lose_BNC = (
        torch.stack([getattr(pair, name).tensors["latents"] for pair in pairs])
        for name in ("win", "lose")
    )
    aligned_B = torch.tensor([pair.pair.about["source"] == "disrupt" for pair in pairs])
    keep_BN = prior_tokens(maps["share"], grid, 0.0, 1).bool() | ~aligned_B.unsqueeze(1)
    return PairBatch(
        keys=tuple(pair.pair.about["id"] for pair in pairs),
        win_BNC=win_BNC,
        lose_BNC=torch.where(keep_BN.unsqueeze(2), lose_BNC, win_BNC),
        priors=FocusPriors(
            prior_BN=prior_tokens(maps["share"], grid, focus.prior_cover, focus.prior_ring),
            subjects_BRN=(maps["subjects"] >= 0.5).float(),
            detail_BN=maps["detail"],
        ),
        lose_detail_BN=maps["lose_detail"],
        prompts=join_prompts([pair.prompt for pair in pairs]),
        references=join_references([pair.references for pair in pairs]),
        signs_BR=torch.tensor([_signs(pair) for pair in pairs]).float(),
    )


def _signs(pair: EncodedPair) -> tuple[int, ...]:
    about = pair.pair.about
    return signs_of(about["source"], about["mode"], len(pair.references))


@torch.no_grad()
def encode_pairs(
    backbone: Backbone,
    samples: Sequence[ShardSample],
    patches: PatchConfig | None = None,
    focus: FocusConfig | None = None,
) -> PairBatch:
    """Samples of equal R and sizes -> a batch on the backbone's device, float32; with `patches`,
    their patch quality by the base; `focus` says which tokens M_prior holds. Nothing is kept."""
    encodings = Encodings(backbone)
    pairs = [encode_pair(backbone, encodings, sample, sample.pair.id) for sample in samples]
    device = next(backbone.transformer.parameters()).device
    batch = lay_out(pairs, backbone.grid, focus or FocusConfig()).each(
        lambda tensor: tensor.to(device)
    )
    return batch if patches is None else replace(batch, quality=_quality(backbone, batch, patches))


def _quality(backbone: Backbone, batch: PairBatch, patches: PatchConfig) -> PatchQuality:
    given = (batch.win_BNC, batch.lose_BNC, batch.prompts, batch.references)
    return patch_quality(backbone, *given, patches)


def _none_of(source: str, samples: Sequence[Sample], setting: str) -> str:
    """What to do when no pair has the source that a setting asks for."""
    there = Counter(sample.row.source for sample in samples)
    if not there:
        return (
            "the dataset has no pairs. Build one first, or loosen the pair stage's thresholds: its "
            "rejects say why pairs were dropped."
        )
    told = ", ".join(f"{count} of '{name}'" for name, count in sorted(there.items()))
    return (
        f"none of {len(samples)} pairs has source '{source}': there are {told}. Set {setting} "
        "to one of these, or build with more candidates (generate.candidates) or subjects; for "
        "'failure' pair.max_failure_per_scene is above 0."
    )


class PairData:
    """Pairs of a dataset version, for one backbone.

    `source`, which `setting` asks for, keeps the pairs of one source alone, `mixed` those too in
    which neither picture is the better one, `patches` adds patch quality, `focus` says which tokens
    M_prior holds; `encodings` has what was encoded before, and keeps what is encoded."""

    def __init__(
        self,
        backbone: Backbone,
        samples: Sequence[Sample],
        *,
        source: str = "both",
        setting: str = "train.source",
        mixed: bool = False,
        patches: PatchConfig | None = None,
        focus: FocusConfig | None = None,
        encodings: Encodings | None = None,
    ) -> None:
        self._backbone, self._grid = backbone, backbone.grid
        self._device = next(backbone.transformer.parameters()).device
        self._patches, self._focus = patches, focus or FocusConfig()
        chosen = [sample for sample in samples if source in ("both", sample.row.source)]
        if not chosen:
            raise UserError(_none_of(source, samples, setting))
        self.samples = [
            sample for sample in chosen if mixed or not is_mixed(sample.row.source, sample.row.mode)
        ]
        """The pairs by item."""
        if not self.samples:
            raise UserError(
                f"all {len(chosen)} pairs of source '{source}' are mixed: neither picture is the "
                "better one. Train with objective instance_dpo, or build with "
                "pair.max_failure_per_scene above 0."
            )
        self._encodings = encodings or Encodings(backbone)
        self._qualities: dict[int, PatchQuality] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def keys(self) -> list[str]:
        """Ids of the pairs, by item."""
        return [sample.row.pair_id for sample in self.samples]

    def fingerprint(self) -> str:
        """Digest of the pairs' records and their order; records name images by content."""
        return digest([sample.row.digest for sample in self.samples])

    def groups(self) -> list[list[int]]:
        """Items by number of subjects, fewest first."""
        groups: dict[int, list[int]] = defaultdict(list)
        for item, sample in enumerate(self.samples):
            groups[sample.row.num_subjects].append(item)
        return [groups[num] for num in sorted(groups)]

    def look_up(self, items: Sequence[int]) -> PairBatch | list[EncodedPair | ShardSample]:
        """What can be had of a batch without a model, to be called in any thread: all of it, in
        pinned memory where the backbone is on a GPU; else, of each pair, what was found or read."""
        find = self._encodings.find
        parts: list[EncodedPair | ShardSample] = []
        for sample in (self.samples[item] for item in items):
            maps = find(self._key(sample))
            others = [] if maps is None else [find(key) for key in _keys_in(maps)]
            present = [entry for entry in others if entry is not None]
            if maps is None or len(present) < len(others):
                parts.append(sample.read())
            else:
                win, lose, *references, prompt = present
                parts.append(EncodedPair(maps, win, lose, tuple(references), prompt))
        pairs = [part for part in parts if isinstance(part, EncodedPair)]
        if len(pairs) < len(parts):
            return parts
        batch = lay_out(pairs, self._grid, self._focus)
        return batch.each(Tensor.pin_memory) if self._device.type == "cuda" else batch

    def batch(
        self,
        items: Sequence[int],
        ahead: PairBatch | Sequence[EncodedPair | ShardSample] | None = None,
    ) -> PairBatch:
        """A batch on the backbone's device. `ahead` is what `look_up` gave for it, where that was
        called before; what is missing is encoded."""
        if ahead is None:
            ahead = self.look_up(items)
        if not isinstance(ahead, PairBatch):
            backbone, encodings = self._backbone, self._encodings
            keys = [self._key(self.samples[item]) for item in items]
            pairs = [
                part
                if isinstance(part, EncodedPair)
                else encode_pair(backbone, encodings, part, key)
                for key, part in zip(keys, ahead, strict=True)
            ]
            ahead = lay_out(pairs, self._grid, self._focus)
        batch = ahead.each(lambda tensor: tensor.to(self._device, non_blocking=True))
        if self._patches is None:
            return batch
        return replace(batch, quality=self._qualities_of(items, batch))

    def _key(self, sample: Sample) -> str:
        return key_of("pair", sample.row.checksum, self._grid)

    def _qualities_of(self, items: Sequence[int], batch: PairBatch) -> PatchQuality:
        """Patch quality of a batch's pairs, each measured once and alone: on what it stands beside
        it must not depend, or a resumed run would differ."""
        assert self._patches is not None
        for row, item in enumerate(items):
            if item not in self._qualities:
                single = batch.take(slice(row, row + 1))
                self._qualities[item] = _quality(self._backbone, single, self._patches)
        parts = zip(*(self._qualities[item].tensors() for item in items), strict=True)
        joined = map(torch.cat, parts)
        return self._qualities[items[0]].each(lambda _: next(joined))

    def measure(self, progress: Progress | None = None) -> None:
        """The patch quality of all pairs, where it is asked for: by the base alone, so before there
        is a policy, and before processes must run each pass together."""
        if self._patches is None:
            return
        order = iter([[item] for group in self.groups() for item in group])
        with closing(read_ahead(self.look_up, order, _READ_AHEAD)) as batches:
            for done, (items, ahead) in enumerate(batches, 1):
                self.batch(items, ahead)
                if progress:
                    progress("measure patches", done, len(self), {})

    def encode(self, progress: Progress | None = None, share: slice = _ALL) -> None:
        """Encodes what is not known yet of `share` of the pairs, as far as there is room for it;
        what their batches need is then found. Shards are read ahead. The rest waits until it is
        wanted."""
        if not self._encodings.keeps:
            return
        pairs = [self.samples[item] for group in self.groups() for item in group][share]
        self._encode_prompts([sample.row.prompt for sample in pairs])
        wanted = [sample for sample in pairs if not self._is_known(sample)]
        with closing(read_ahead(Sample.read, iter(wanted), _READ_AHEAD)) as samples:
            for done, (sample, read) in enumerate(samples, 1):
                encode_pair(self._backbone, self._encodings, read, self._key(sample))
                if progress:
                    progress("encode pairs", done, len(wanted), {})
                if not self._is_known(sample):
                    log.info("no room for more than %d of %d encoded pairs", done, len(wanted))
                    return

    @torch.no_grad()
    def _encode_prompts(self, texts: Sequence[str]) -> None:
        """All new ones one after the other: text encoders that wait elsewhere come once."""
        known = self._encodings.has
        new = [text for text in dict.fromkeys(texts) if not known(key_of("prompt", text))]
        for start in range(0, len(new), _PROMPTS_AT_ONCE):
            self._encodings.texts(new[start : start + _PROMPTS_AT_ONCE])

    def missing(self) -> int:
        """How many pairs could not be had without encoding."""
        return sum(not self._is_known(sample) for sample in self.samples)

    def _is_known(self, sample: Sample) -> bool:
        """Whether a pair's batch would find all of it."""
        known, key = self._encodings.has, self._key(sample)
        if not known(key) or (pair := self._encodings.find(key)) is None:
            return False
        return all(map(known, _keys_in(pair)))


def _keys_in(pair: Entry) -> list[str]:
    """The keys of winner, loser, references and prompt."""
    about = pair.about
    references = about["references"].split()
    return [about["win"], about["lose"], *references, key_of("prompt", about["prompt"])]
