"""A suite of parts that truly compute on a toy world of discs and squares told apart by colour."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import toy_world
from PIL import Image

from focusdpo.pipeline.describe import ClassNameCaptioner
from focusdpo.store.keys import digest

GENERATOR = toy_world.Generator(faults=0.36)
PARTS = {
    "generator": GENERATOR,
    "inpainter": GENERATOR,
    "segmenter": toy_world.Segmenter(),
    "identity": toy_world.Identity(),
    "clip": toy_world.Clip(),
    "captioner": ClassNameCaptioner(),
    "judge": toy_world.Judge(),
}
FINGERPRINTS = {role: part.fingerprint for role, part in PARTS.items()}


def vocabulary() -> tuple[tuple[str, ...], frozenset[str]]:
    return ("grey",), frozenset({"disc", "square"})


def fingerprint(role: str, *, adapter: str | None = None) -> str:
    return FINGERPRINTS[role] + weights_of(adapter)


def weights_of(adapter: str | None) -> str:
    """A digest that goes behind the base's fingerprint."""
    files = [] if adapter is None else sorted(Path(adapter).glob("*.safetensors"))
    return "".join(digest(file.read_bytes()) for file in files)


def build(role: str, *, adapter: str | None = None) -> Any:
    if adapter is None:
        return PARTS[role]
    # An adapter that changes nothing, by a name of its own.
    return dataclasses.replace(GENERATOR, fingerprint=fingerprint(role, adapter=adapter))


def write_subjects(folder: Path, hues: dict[str, tuple[str, float]]) -> Path:
    """`hues`: subject -> (word, hue in degrees), two pictures each, with alpha."""
    for name, (word, hue) in hues.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for at in range(2):
            mask = toy_world.shape_mask(word, 24, 24, radius=10 + 3 * at)
            rgba = np.zeros((toy_world.SIDE, toy_world.SIDE, 4), np.uint8)
            rgba[mask] = [*toy_world.colour_of(hue), 255]
            Image.fromarray(rgba, "RGBA").save(folder / name / f"{at}.png")
        (folder / name / "subject.yaml").write_text(f"class_name: {word}\n")
    return folder
