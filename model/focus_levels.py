"""Focus maps at chosen noise levels: of one pair for pictures, of many for the method's premise.

The premise: are references found on their subjects, and at which noise? FocusDPO takes for granted
that alignment A rises as noise falls, so that M_s shrinks. Whether it does depends on the features,
so every kind of features at every block is measured; one pass of the backbone serves all blocks of
a kind. Shapes: B pairs of a batch, 2B images (winners, then losers), P pairs in all, S noise
levels, V = 2 branches (winner, loser), R subjects, N target tokens, C channels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.data_schemas.shards import ShardSample
from focusdpo.model.adapter import reference_policy
from focusdpo.model.backbone import Backbone, FeatureConfig, Prediction
from focusdpo.model.correspondence import unet_blocks, unwrap
from focusdpo.model.focus import FocusMaps, FocusPriors, branch_weights, focus_maps
from focusdpo.model.focus_config import FocusConfig, NoiseConfig, PremiseConfig
from focusdpo.model.noise import draw_noise
from focusdpo.model.training.batches import PairBatch, PairData
from focusdpo.model.training.config import TrainConfig
from focusdpo.store.local import write_whole

Floats = NDArray[np.float64]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Band:
    """Means over pairs with their bootstrap intervals; NaN where no pair has a value."""

    mean: Floats
    low: Floats
    high: Floats
    pairs: int


def known_rows(values_PS: Floats) -> Floats:
    """The pairs that have a value at every noise level."""
    return values_PS[~np.isnan(values_PS).any(axis=1)]


def bootstrap_band(values_PS: Floats, *, resamples: int, level: float, seed: int = 0) -> Band:
    """Percentile bootstrap of the mean over pairs. A resample draws whole pairs: all their noise
    levels together, so that differences along a curve may be read off columns too."""
    known_PS = known_rows(np.asarray(values_PS, np.float64))
    pairs, columns = known_PS.shape
    if not pairs:
        nothing = np.full(columns, np.nan)
        return Band(nothing, nothing, nothing, 0)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, columns))
    for at in range(resamples):  # one at a time: memory stays small, whatever P
        means[at] = known_PS[generator.integers(0, pairs, pairs)].mean(axis=0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Band(known_PS.mean(axis=0), low, high, pairs)


def rank_correlation(values_PS: Floats, sigmas: Sequence[float]) -> Floats:
    """Spearman correlation (P,) of each pair's values with -sigma: 1 where they rise at every step
    towards less noise; 0 where they do not change at all."""
    order_S = -stats.rankdata(sigmas)
    order_S = order_S - order_S.mean()
    ranked_PS = stats.rankdata(values_PS, axis=1)
    ranked_PS = ranked_PS - ranked_PS.mean(axis=1, keepdims=True)
    scale_P = np.sqrt((ranked_PS**2).sum(axis=1) * (order_S**2).sum())
    product_P = ranked_PS @ order_S
    return np.where(scale_P > 0, product_P / np.where(scale_P > 0, scale_P, 1.0), 0.0)


@dataclass(frozen=True)
class Rise:
    """How one metric of one branch changes from most to least noise."""

    rise: Band
    """Value at the lowest sigma less that at the highest, one column."""
    spearman: float
    """Mean over pairs of the rank correlation with -sigma."""
    peak_sigma: float
    """Where the mean over pairs is largest; the noisiest of several."""


def rise_of(values_PS: Floats, sigmas: Sequence[float], *, resamples: int, level: float) -> Rise:
    """`sigmas` from most to least noise, as the columns are."""
    known_PS = known_rows(values_PS)
    rise_P1 = known_PS[:, -1:] - known_PS[:, :1]
    band = bootstrap_band(rise_P1, resamples=resamples, level=level)
    if not len(known_PS):
        return Rise(band, float("nan"), float("nan"))
    spearman = float(rank_correlation(known_PS, sigmas).mean())
    return Rise(band, spearman, float(sigmas[int(known_PS.mean(axis=0).argmax())]))


def spread(groups: Mapping[int, Sequence[Item]], count: int) -> list[Item]:
    """`count` items, as evenly as may be from all groups, and within a group at even distances in
    its order; all of them where there are fewer. Groups in the order of their numbers."""
    wanted = dict.fromkeys(sorted(groups), 0)
    left = min(count, sum(len(items) for items in groups.values()))
    while left:
        # The fullest groups last: what small groups cannot give is shared among the others.
        for number in sorted(wanted, reverse=True):
            if left and wanted[number] < len(groups[number]):
                wanted[number] += 1
                left -= 1
    chosen: list[Item] = []
    for number, num in wanted.items():
        items = groups[number]
        chosen += [items[(2 * i + 1) * len(items) // (2 * num)] for i in range(num)]
    return chosen


METRICS = (
    "alignment",
    "structure_share",
    "confusion",
    "chance",
    "structure_chance",
    "confusion_chance",
    "structure_floor",
)
"""A; |M_s| / |M_prior|; share of subject tokens nearest to another's reference; what random choices
of as many tokens would give for each; and |M_s| / |M_prior| were M' exactly the subjects, which is
above 0 where M_prior holds more than they do."""
BRANCHES = ("winner", "loser")

Values = dict[str, NDArray[np.float64]]
"""Metric -> (P, S, V); NaN where an image has none, as confusion of a single subject."""
Place = tuple[str, str]
"""Kind of features and name of a block."""
Progress = Callable[[str, int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Premise:
    """What was measured on P pairs."""

    configured: Values
    """For the features that training is set to read."""
    places: dict[Place, Values]
    """For each kind at each block alone."""


def block_names(transformer: Any) -> tuple[str, ...]:
    """Every block of a FLUX transformer or of a UNet, in the order of the pass."""
    core = unwrap(transformer)
    if hasattr(core, "up_blocks"):
        return unet_blocks(core)
    double = (f"double.{i}" for i in range(len(core.transformer_blocks)))
    single = (f"single.{i}" for i in range(len(core.single_transformer_blocks)))
    return (*double, *single)


def only_block(prediction: Prediction, index: int) -> Prediction:
    """The prediction as if the block at `index` alone had been captured."""
    at = slice(index, index + 1)
    return replace(
        prediction,
        target_features=prediction.target_features[at],
        reference_features=prediction.reference_features[at],
    )


def chance_levels(
    matches_BRN: Tensor, priors: FocusPriors, config: FocusConfig
) -> tuple[Tensor, Tensor]:
    """What random M'_r of the same sizes give on average: A (B,), and |M_s| / |M_prior| (B,).

    A random choice overlaps a subject by the subject's share of the area chosen from (the image, or
    M_prior where `domain` is prior). With `overlap` argmax the choice is a little more confined
    than here, so that both are then approximate."""
    open_BN = priors.prior_BN if config.domain == "prior" else torch.ones_like(priors.prior_BN)
    room_B1 = open_BN.sum(1, keepdim=True).clamp(min=1)
    area_BR = (priors.subjects_BRN * open_BN.unsqueeze(1)).sum(2) / room_B1
    chosen_BR = matches_BRN.sum(2)
    counted_BR = (chosen_BR > 0).float()
    alignment_B = (area_BR * counted_BR).sum(1) / counted_BR.sum(1).clamp(min=1)
    return alignment_B, (1 - (chosen_BR / room_B1).clamp(max=1)).prod(1)


def metric_values(maps: FocusMaps, priors: FocusPriors, config: FocusConfig) -> Tensor:
    """`METRICS` of each image, (M, B)."""
    chance_B, structure_chance_B = chance_levels(maps.matches_BRN, priors, config)
    size_B = priors.prior_BN.sum(1)
    missing_B = torch.full_like(size_B, torch.nan)
    apart_BN = priors.prior_BN * (1 - priors.subjects_BRN.amax(1))
    num = priors.subjects_BRN.shape[1]
    columns = {
        "alignment": maps.alignment_B,
        "structure_share": torch.where(size_B > 0, maps.structure_BN.sum(1) / size_B, missing_B),
        "confusion": maps.confusion_B,
        "chance": chance_B,
        "structure_chance": structure_chance_B,
        "confusion_chance": torch.full_like(size_B, 1 - 1 / num) if num > 1 else missing_B,
        "structure_floor": torch.where(size_B > 0, apart_BN.sum(1) / size_B, missing_B),
    }
    return torch.stack([columns[name] for name in METRICS])


def noise_of(batch: PairBatch, seed: int) -> Tensor:
    """One noise (B, N, C) per pair, from its id alone: the same at all noise levels."""
    return _noise(batch, [stable_hash("premise", key) for key in batch.keys], seed)


def pair_noise(batch: PairBatch, seed: int) -> Tensor:
    """The noise (1, N, C) of `maps_over_sigmas`, the same for any pair."""
    return _noise(batch, [0], seed)


def _noise(batch: PairBatch, slots: Sequence[int], seed: int) -> Tensor:
    return draw_noise(batch.win_BNC, slots, seed=seed, step=0, config=NoiseConfig())[0]


@dataclass(frozen=True)
class _Level:
    """Winners and losers of a batch at one noise level."""

    batch: PairBatch
    noisy_BNC: Tensor
    sigma_B: Tensor

    @classmethod
    def of(cls, backbone: Backbone, batch: PairBatch, noise_BNC: Tensor, sigma: float) -> _Level:
        clean_BNC = torch.cat([batch.win_BNC, batch.lose_BNC])
        sigma_B = clean_BNC.new_full((len(clean_BNC),), sigma)
        noisy_BNC = backbone.add_noise(clean_BNC, noise_BNC.repeat(2, 1, 1), sigma_B)
        return cls(batch, noisy_BNC, sigma_B)

    def predict(self, backbone: Backbone, features: FeatureConfig) -> Prediction:
        batch = self.batch
        prompts, references = batch.prompts.repeat(2), batch.references.repeat(2)
        return backbone.predict(self.noisy_BNC, self.sigma_B, prompts, references, capture=features)

    def maps(self, prediction: Prediction, config: FocusConfig) -> tuple[FocusMaps, FocusPriors]:
        """Of all 2B images."""
        priors = self.batch.branch_priors(config.detail_image)
        masks = self.batch.references.repeat(2).masks
        return focus_maps(prediction, masks, priors, config, self.sigma_B), priors

    def values(self, prediction: Prediction, config: FocusConfig) -> NDArray[np.float64]:
        """(M, B, V)."""
        maps, priors = self.maps(prediction, config)
        both = metric_values(maps, priors, config).unflatten(1, (2, -1)).transpose(1, 2)
        return np.asarray(both.double().cpu().numpy())


def _measure_level(
    backbone: Backbone, level: _Level, focus: FocusConfig, premise: PremiseConfig
) -> dict[Place | None, NDArray[np.float64]]:
    """(M, B, V) for the configured features (key None) and for each place."""
    values: dict[Place | None, NDArray[np.float64]] = {
        None: level.values(level.predict(backbone, focus.features), focus)
    }
    blocks = block_names(backbone.transformer)
    for kind in premise.kinds:
        features = FeatureConfig(kind=kind, blocks=blocks)
        prediction = level.predict(backbone, features)
        reading = focus.model_copy(update={"features": features})
        for index, block in enumerate(blocks):
            values[kind, block] = level.values(only_block(prediction, index), reading)
    return values


@torch.no_grad()
def measure_premise(
    backbone: Backbone,
    batches: Sequence[PairBatch],
    focus: FocusConfig,
    premise: PremiseConfig,
    *,
    seed: int,
    progress: Progress | None = None,
    phase: str = "premise",
) -> Premise:
    """All metrics of the batches' pairs, in their order, for the backbone as it is."""
    parts: dict[Place | None, list[NDArray[np.float64]]] = {}
    done, total = 0, sum(len(batch) for batch in batches)
    for batch in batches:
        noise_BNC = noise_of(batch, seed)
        levels = [
            _measure_level(backbone, _Level.of(backbone, batch, noise_BNC, sigma), focus, premise)
            for sigma in premise.sigmas
        ]
        for place in levels[0]:
            stacked_MBSV = np.stack([level[place] for level in levels], axis=2)
            parts.setdefault(place, []).append(stacked_MBSV)
        done += len(batch)
        if progress:
            progress(phase, done, total, {})
    joined = {place: np.concatenate(batches_of, axis=1) for place, batches_of in parts.items()}
    named = {place: dict(zip(METRICS, values, strict=True)) for place, values in joined.items()}
    configured = named.pop(None)
    return Premise(configured, {place: v for place, v in named.items() if place is not None})


@torch.no_grad()
def noisy_images(
    backbone: Backbone, batch: PairBatch, sigmas: Sequence[float], noise_BNC: Tensor
) -> NDArray[np.uint8]:
    """What the model is shown of a batch of one pair: x_t decoded, (V, S, H, W, 3)."""
    shown = []
    for sigma in sigmas:
        pixels = backbone.decode(_Level.of(backbone, batch, noise_BNC, sigma).noisy_BNC)
        pixels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        shown.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
    return np.stack(shown, axis=1)


SIGMAS = (0.95, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1, 0.02)
Arrays = dict[str, NDArray[Any]]


@torch.no_grad()
def maps_over_sigmas(
    backbone: Backbone,
    batch: PairBatch,
    sigmas: tuple[float, ...],
    config: FocusConfig,
    *,
    seed: int = 0,
) -> Arrays:
    """Maps of a batch of one pair at S noise levels with one noise: "win.matched", "lose.weight"
    and so on, each (S, ...) float32; beside them what the noise level does not change."""
    if len(batch) != 1:
        raise ValueError(f"expected a batch of one pair, got {len(batch)}")
    noise_BNC = pair_noise(batch, seed)
    levels = [
        _level_arrays(backbone, _Level.of(backbone, batch, noise_BNC, sigma), config)
        for sigma in sigmas
    ]
    arrays = {name: np.stack([level[name] for level in levels]) for name in levels[0]}
    arrays["sigmas"] = np.array(sigmas, np.float32)
    arrays["grid"] = np.array(backbone.grid, np.int32)
    arrays["prior"] = batch.priors.prior_BN[0].cpu().numpy()
    arrays["subjects"] = batch.priors.subjects_BRN[0].cpu().numpy()
    arrays["detail"] = (batch.priors.detail_BN * batch.priors.prior_BN)[0].cpu().numpy()
    return arrays


def _level_arrays(backbone: Backbone, level: _Level, config: FocusConfig) -> Arrays:
    """One noise level: winner and loser in one pass, as in training."""
    maps, priors = level.maps(level.predict(backbone, config.features), config)
    named = {
        "matched": maps.matched_BN,
        "matches": maps.matches_BRN,
        "structure": maps.structure_BN,
        "weight": branch_weights(maps, priors, config),
        "similarity": maps.similarity_BRN,
        "alignment": maps.alignment_B,
        "gate": maps.gate_B,
        "confusion": maps.confusion_B,
    }
    arrays: Arrays = {}
    for name, both in named.items():
        arrays[f"win.{name}"], arrays[f"lose.{name}"] = both.float().cpu().numpy()
    return arrays


class PairMaps:
    """The focus maps of the data's first pair with the most subjects, before and after training."""

    def __init__(self, backbone: Backbone, data: PairData, config: TrainConfig, path: Path) -> None:
        self._backbone, self._config, self._path = backbone, config, path
        item = data.groups()[-1][0]
        self._sample, self._batch = data.samples[item].read(), data.batch([item])
        self._arrays: Arrays = {}

    def draw(self, phase: str) -> None:
        """`phase` is start (the base: the LoRA left out) or end."""
        transformer, config = self._backbone.transformer, self._config
        with reference_policy(transformer) if phase == "start" else nullcontext():
            arrays = maps_over_sigmas(
                self._backbone, self._batch, SIGMAS, config.focus, seed=config.seed
            )
        for name, array in arrays.items():
            self._arrays[f"{phase}.{name}" if "." in name else name] = array

    def write(self) -> None:
        """Maps and the pair's pictures in one safetensors file, readable without torch."""
        from safetensors.numpy import save

        pictures, info = about_pair(self._sample)
        arrays = {n: np.ascontiguousarray(a) for n, a in (self._arrays | pictures).items()}
        write_whole(self._path, save(arrays, {"info": json.dumps(info)}))


def about_pair(sample: ShardSample) -> tuple[Arrays, dict[str, Any]]:
    """The pictures that stand beside a pair's maps, and what it is."""
    images, pair = sample.images, sample.pair
    arrays = {
        "win": images.win,
        "lose": images.lose,
        "prior_mask": images.prior.astype(np.uint8),
        **{f"ref{i}": image for i, image in enumerate(images.references)},
    }
    return arrays, {"pair": pair.id, "prompt": pair.prompt, "class_names": list(pair.class_names)}
