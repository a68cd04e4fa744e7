"""Base beside adapter with checkpoints in their public layouts: one model, its adapter put in and
taken out; the judge's parts measure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_suite
from PIL import Image, ImageDraw
from pocket_adapter import small_adapter

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.generate.demo_app import head_text, licence_text
from focusdpo.flows.generate.inference import Generator, again
from focusdpo.flows.generate.side_by_side import SHOWN, SideBySide, rows
from focusdpo.flows.wiring import build_part

pytestmark = pytest.mark.slow


def subject(path: Path, colour: str) -> Path:
    picture = Image.new("RGBA", (96, 96))
    ImageDraw.Draw(picture).ellipse((16, 16, 80, 80), fill=colour)
    picture.save(path)
    return path


def adapter_of(generator: Generator, folder: Path) -> Path:
    backbone = build_part(generator.run.family, "backbone")
    return small_adapter(backbone, folder, 0.05, "subjects: CC0")


def test_both_models_paint_and_are_measured(tmp_path: Path) -> None:
    preset = str(tiny_suite.write_preset("flux-uno", tmp_path / "models"))
    subjects = [
        (subject(tmp_path / "one.png", "red"), "ball"),
        (subject(tmp_path / "two.png", "blue"), "plate"),
    ]
    alone = SideBySide.of(preset, None)
    (before,) = alone.paint("a ball and a plate on snow", subjects, [0, 1])
    adapter = adapter_of(alone.base, tmp_path / "adapter")
    both = SideBySide.of(preset, adapter)
    base, adapted = both.paint("a ball and a plate on snow", subjects, [0, 1])
    for then, now, other in zip(before.pictures, base.pictures, adapted.pictures, strict=True):
        np.testing.assert_array_equal(np.asarray(then.image), np.asarray(now.image))
        assert not np.array_equal(np.asarray(now.image), np.asarray(other.image))
    assert len(base.records) == len(adapted.records) == 2
    table = rows([base, adapted])
    assert len(table) == len(SHOWN) and all(len(values) == 2 for _, _, values in table)
    path = adapted.pictures[1].save(tmp_path / "adapted.png")
    assert again(path).png() == path.read_bytes()
    assert "Backbone: flux-uno" in head_text(both.base.run.family, adapter)
    assert "CC0" in licence_text(both.base.run.family, adapter)
    with pytest.raises(UserError, match="preset"):
        SideBySide.of("none", None)
