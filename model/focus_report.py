"""Focus maps of one pair over noise levels, as plain arrays for pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from focusdpo.model.adapter import reference_policy
from focusdpo.model.backbone import Backbone
from focusdpo.model.focus import branch_weights, focus_maps
from focusdpo.model.focus_config import FocusConfig, NoiseConfig
from focusdpo.model.noise import draw_noise
from focusdpo.model.training.batches import PairBatch, PairData, encode_pairs
from focusdpo.model.training.checkpoint import write_file
from focusdpo.model.training.config import TrainConfig

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
    shape = (batch.win_BNC.shape[1], batch.win_BNC.shape[2])
    noise_BNC, _ = draw_noise(shape, [0], seed=seed, step=0, config=NoiseConfig())
    levels = [_level(backbone, batch, noise_BNC.to(batch.win_BNC), s, config) for s in sigmas]
    arrays = {name: np.stack([level[name] for level in levels]) for name in levels[0]}
    arrays["sigmas"] = np.array(sigmas, np.float32)
    arrays["grid"] = np.array(backbone.grid, np.int32)
    arrays["prior"] = batch.priors.prior_BN[0].cpu().numpy()
    arrays["subjects"] = batch.priors.subjects_BRN[0].cpu().numpy()
    arrays["detail"] = (batch.priors.detail_BN * batch.priors.prior_BN)[0].cpu().numpy()
    return arrays


def _level(
    backbone: Backbone, batch: PairBatch, noise_BNC: Tensor, sigma: float, config: FocusConfig
) -> Arrays:
    """One noise level: winner and loser in one pass, as in training."""
    clean_BNC = torch.cat([batch.win_BNC, batch.lose_BNC])
    sigma_B = clean_BNC.new_full((2,), sigma)
    noisy_BNC = backbone.add_noise(clean_BNC, noise_BNC.repeat(2, 1, 1), sigma_B)
    references = batch.references.repeat(2)
    prediction = backbone.predict(
        noisy_BNC, sigma_B, batch.prompts.repeat(2), references, capture=config.features
    )
    priors = batch.branch_priors(config.detail_image)
    maps = focus_maps(prediction, references.masks, priors, config, sigma_B)
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
        self._sample = data.sample(data.groups()[-1][0])
        self._batch = encode_pairs(backbone, [self._sample], focus=config.focus)
        self._arrays: Arrays = {}

    def draw(self, phase: str) -> None:
        """`phase` is start (the base: the LoRA left out) or end."""
        args = (self._backbone, self._batch, SIGMAS, self._config.focus)
        if phase == "start":
            with reference_policy(self._backbone.transformer):
                arrays = maps_over_sigmas(*args, seed=self._config.seed)
        else:
            arrays = maps_over_sigmas(*args, seed=self._config.seed)
        for name, array in arrays.items():
            self._arrays[f"{phase}.{name}" if "." in name else name] = array

    def write(self) -> None:
        """Maps and the pair's pictures in one safetensors file, readable without torch."""
        from safetensors.numpy import save

        images, pair = self._sample.images, self._sample.pair
        arrays = {
            **self._arrays,
            "win": images.win,
            "lose": images.lose,
            "prior_mask": images.prior.astype(np.uint8),
            **{f"ref{i}": image for i, image in enumerate(images.references)},
        }
        info = {"pair": pair.id, "prompt": pair.prompt, "class_names": list(pair.class_names)}
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        write_file(self._path, save(arrays, {"info": json.dumps(info)}))
