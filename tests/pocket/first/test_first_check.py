"""The check of the packaged models, and the parts by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.parts import Image, ReferenceImage, Seen, Vectors
from focusdpo.pocket.cards import Figure
from focusdpo.pocket.first import parts
from focusdpo.pocket.first.check import is_confused, judge_scenes, match_classes
from focusdpo.pocket.first.identities import Identity

MASK = np.ones((4, 4), bool)


def seen(name: int, vector: int, hue: float = 0.0) -> Seen:
    """An instance of a class, alike to one individual."""
    scores = np.full(3, 0.05, np.float32)
    scores[name] = 0.9
    return Seen(MASK, (0, 0, 4, 4), 0.9, scores, np.eye(3, dtype=np.float32)[vector], hue)


class ByHand:
    """A judge whose answers a test writes down."""

    fingerprint = "by hand"
    class_names = ("cat", "fish", "car")

    def __init__(self, rows: list[list[Seen]]) -> None:
        self.rows = rows

    def look(self, images: Sequence[Image]) -> list[list[Seen]]:
        return self.rows

    def embed_references(self, images: Sequence[Image], masks: Sequence[np.ndarray]) -> Vectors:
        return np.eye(3, dtype=np.float32)[np.arange(len(images)) % 2]

    def hue(self, images: Sequence[Image], masks: Sequence[np.ndarray]) -> Vectors:
        return np.array([10.0, 200.0] * (len(images) // 2), np.float32)

    def pattern(self, images: Sequence[Image], masks: Sequence[np.ndarray]) -> Vectors:
        return np.zeros((len(images), 2, 4, 4), np.float32)


def test_scenes_are_counted_by_hand() -> None:
    rows = [[Identity(name, 0, 0.9, 0.5, "plain") for name in ("cat", "fish")]] * 4
    blank = np.zeros((4, 4, 3), np.uint8)
    references = [[ReferenceImage(blank, MASK)] * 2] * 4
    told = judge_scenes(
        ByHand([
            [seen(0, 0, 350.0), seen(1, 1, 200.0)],
            [seen(0, 1, 10.0), seen(1, 0, 200.0)],
            [seen(0, 0, 10.0)],
            [seen(0, 0, 10.0), seen(1, 1, 200.0), seen(1, 1, 200.0)],
        ]),
        [blank] * 4, rows, references,
    )  # fmt: skip
    assert told.recognised.tolist() == [[True, True], [True, True], [True, False], [True, True]]
    assert told.hue_error[0].tolist() == [20.0, 0.0]
    assert np.isnan(told.hue_error[2]).tolist() == [False, True]
    assert told.confused.tolist() == [False, True, True, True]


def test_each_wanted_class_takes_an_instance_of_its_own() -> None:
    assert match_classes([seen(0, 0), seen(1, 1)], [1, 0]) == [1, 0]
    assert match_classes([seen(0, 0), seen(2, 1)], [0, 0]) == [0, None]
    assert match_classes([seen(0, 0), seen(0, 1)], [0, 0]) == [0, 1]


def test_confusion_needs_the_nearer_reference_to_be_another() -> None:
    vectors = np.eye(3, dtype=np.float32)[:2]
    assert not is_confused([seen(0, 0), seen(1, 1)], [0, 1], vectors)
    assert is_confused([seen(0, 0), seen(1, 0)], [0, 1], vectors)
    assert is_confused([seen(0, 0)], [0, None], vectors)


def test_a_figure_knows_whether_it_is_reached() -> None:
    assert Figure("m", "f", 0.8, ">= 0.80").ok
    assert not Figure("m", "f", float("nan"), ">= 0.80").ok
    assert not Figure("m", "f", 0.5, "< 0.50").ok
    assert Figure("m", "f", 3.0, "").ok


def test_unknown_parts_and_misplaced_adapters_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="there are generator"):
        parts.build("painter")
    with pytest.raises(UserError, match="takes no adapter"):
        parts.fingerprint("clip", adapter=tmp_path)
    with pytest.raises(UserError, match="holds no adapter"):
        parts.fingerprint("generator", adapter=tmp_path)


def test_fingerprints_cost_no_torch() -> None:
    code = (
        "import sys; from focusdpo.pocket.first import parts;"
        "print(parts.fingerprint('identity'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"


def test_a_built_part_has_the_fingerprint_that_was_planned_and_is_built_once() -> None:
    for name in ("segmenter", "identity", "clip", "judge"):
        assert parts.build(name).fingerprint == parts.fingerprint(name)
        assert parts.build(name) is parts.build(name)


@pytest.mark.slow
def test_the_packaged_autoencoder_reaches_what_is_wanted() -> None:
    from focusdpo.pocket.first.check import check_all

    assert [figure for figure in check_all(("autoencoder",)) if not figure.ok] == []
