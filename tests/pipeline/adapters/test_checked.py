"""What a model hands over is finite, in its range and no empty picture, or the model is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import toy_world

from focusdpo.pipeline.adapters.checked import Checked, Faulty, to_uint8
from focusdpo.pipeline.adapters.painter import BackbonePainter, to_arrays
from focusdpo.pipeline.parts import Detection

PICTURE = toy_world.picture([("disc", 0.0, 0)])
MASK = toy_world.slot_mask("disc", 0)


class Says:
    """A part that answers with what it is given."""

    fingerprint = "says"

    def __init__(self, answer: object) -> None:
        self.generate = self.inpaint = self.embed = self.segment = self.look = lambda *_: answer
        self.embed_texts = self.caption = self.hue = self.unsafe = lambda *_: answer


NAN, INF = float("nan"), float("inf")
FAULTS = [
    ("generate", [np.zeros((8, 8, 3), np.uint8)], r"picture of one colour, \(0, 0, 0\)"),
    ("inpaint", [np.full((8, 8, 3), 127, np.uint8)], "picture of one colour"),
    ("generate", [PICTURE.astype(np.float32)], "float32, expected uint8"),
    ("generate", [], "0 results for 1 inputs"),
    ("embed", np.array([[NAN, 1.0]]), "50% of its vectors are not finite"),
    ("embed", np.array([[INF, 1.0]]), "not finite"),
    ("embed", np.zeros((1, 3)), "a vector of length 0"),
    ("embed_texts", np.array([[3.0, 4.0]]), "a vector of length 5"),
    ("segment", [[Detection("disc", MASK, (0, 0, 9, 9), NAN)]], "sure of a region by nan"),
    ("segment", [[Detection("disc", MASK, (0, 0, 9, 9), 7.0)]], "by 7.0, expected 0 to 1"),
    ("segment", [[Detection("disc", MASK[:9], (0, 0, 9, 9), 0.5)]], r"a mask \(9, 48\)"),
    ("caption", [" "], "an empty caption"),
    ("hue", np.array([INF]), "not finite"),
    ("unsafe", np.array([NAN]), "shares are not finite"),
    ("unsafe", np.array([1.5]), "shares from 1.5 to 1.5, expected 0 to 1"),
    ("unsafe", np.array([0.5, 0.5]), "2 results for 1 inputs"),
]


@pytest.mark.parametrize(("method", "answer", "message"), FAULTS)
def test_the_model_is_named_for_what_no_whole_one_gives(
    method: str, answer: object, message: str
) -> None:
    part = Checked("generator with the adapter runs/x", Says(answer))
    with pytest.raises(Faulty, match=rf"the generator with the adapter runs/x: .*{message}.*kept"):
        getattr(part, method)([PICTURE])


@pytest.mark.parametrize("bad", [{"confidence": NAN}, {"embedding": np.full(4, NAN)},
                                 {"class_scores": np.array([NAN, 1])}, {"hue": INF}])  # fmt: skip
def test_a_judge_is_named_too(bad: dict[str, object]) -> None:
    whole = toy_world.Judge().look([PICTURE])
    assert Checked("judge", Says(whole)).look([PICTURE]) is whole
    with pytest.raises(Faulty, match="the judge: "):
        Checked("judge", Says([[replace(whole[0][0], **bad)]])).look([PICTURE])


def test_a_hue_that_cannot_be_told_is_an_answer() -> None:
    assert np.isnan(Checked("judge", Says(np.array([NAN]))).hue([PICTURE], [MASK])).all()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_is_not_finite_is_no_pixel(value: float) -> None:
    images = torch.zeros(1, 3, 2, 2)
    images[0, 0, 0, 0] = value
    with pytest.raises(Faulty, match="of its pixels are not finite"):
        to_arrays(images)
    with pytest.raises(Faulty, match="8% of its pixels"):
        to_uint8(images.numpy())


def test_a_backbone_of_nan_paints_nothing() -> None:
    class Diverged:
        image_size = (8, 8)

        def generate(self, prompts: list[str], *_: object) -> torch.Tensor:
            return torch.full((len(prompts), 3, 8, 8), NAN)

    painter = Checked("generator", BackbonePainter(Diverged(), "diverged"))  # type: ignore[arg-type]
    assert painter.fingerprint == "diverged"
    with pytest.raises(Faulty, match="the generator: 100% of its pixels"):
        painter.generate(["a disc"], [[]], [1])
