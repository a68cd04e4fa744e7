"""A suite of parts that truly compute on a toy world of discs and squares told apart by colour."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from focusdpo.pipeline.describe import ClassNameCaptioner


def _toy_world() -> Any:
    path = Path(__file__).parents[1] / "pipeline" / "conftest.py"
    spec = importlib.util.spec_from_file_location("toy_world", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["toy_world"] = module
    spec.loader.exec_module(module)
    return module


TOY = _toy_world()
GENERATOR = TOY.Generator(faults=0.3)
PARTS = {
    "generator": GENERATOR,
    "inpainter": GENERATOR,
    "segmenter": TOY.Segmenter(),
    "identity": TOY.Identity(),
    "clip": TOY.Clip(),
    "captioner": ClassNameCaptioner(),
}
FINGERPRINTS = {role: part.fingerprint for role, part in PARTS.items()}


def vocabulary() -> tuple[tuple[str, ...], frozenset[str]]:
    return ("grey",), frozenset({"disc", "square"})


def fingerprint(role: str) -> str:
    return FINGERPRINTS[role]


def build(role: str, *, adapter: str | None = None) -> Any:
    return PARTS[role]


def write_subjects(folder: Path, hues: dict[str, tuple[str, float]]) -> Path:
    """`hues`: subject -> (word, hue in degrees), two pictures each, with alpha."""
    for name, (word, hue) in hues.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for at in range(2):
            mask = TOY.shape_mask(word, 24, 24, radius=10 + 3 * at)
            rgba = np.zeros((TOY.SIDE, TOY.SIDE, 4), np.uint8)
            rgba[mask] = [*TOY.colour_of(hue), 255]
            Image.fromarray(rgba, "RGBA").save(folder / name / f"{at}.png")
        (folder / name / "subject.yaml").write_text(f"class_name: {word}\n")
    return folder
