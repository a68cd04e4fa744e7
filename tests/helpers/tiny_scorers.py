"""Real pocket scorers of small shape with random weights, and pictures for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import nn

from focusdpo.pocket.weightfiles import save_weights
from focusdpo.pocket.world.identities import class_names, sample_identities
from focusdpo.pocket.world.world import Scenes, render_scenes


def save_random(name: str, net: nn.Module, model: BaseModel, folder: Path) -> Path:
    """Weights and settings as a recipe writes them; returns the folder."""
    save_weights(name, net, {"model": model.model_dump()}, folder)
    return folder


def arrays(images_BCHW: torch.Tensor) -> list[NDArray[np.uint8]]:
    """Images in [0, 1] as uint8 arrays."""
    return list((images_BCHW.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy())


def small_scenes(count: int = 4, seed: int = 3) -> tuple[Scenes, list[list[str]]]:
    """Scenes of two subjects of the training classes, and their class words."""
    people = sample_identities("held_out", class_names("train"), 2 * count, seed)
    rows = [people[2 * i : 2 * i + 2] for i in range(count)]
    scenes = render_scenes(rows, list(range(seed, seed + count)))
    return scenes, [[one.class_name for one in row] for row in rows]
