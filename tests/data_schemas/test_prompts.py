"""Captions in right English, of anybody's words."""

from __future__ import annotations

import pytest

from focusdpo.data_schemas.prompts import article, caption, plural


@pytest.mark.parametrize(
    ("word", "one", "several"),
    [
        ("dog", "a dog", "dogs"),
        ("airplane", "an airplane", "airplanes"),
        ("hourglass", "an hourglass", "hourglasses"),
        ("unicorn", "a unicorn", "unicorns"),
        ("umbrella", "an umbrella", "umbrellas"),
        ("UFO", "a UFO", "UFOs"),
        ("ukulele", "a ukulele", "ukuleles"),
        ("U-shaped vase", "a U-shaped vase", "U-shaped vases"),
        ("urn", "an urn", "urns"),
        ("ewe", "a ewe", "ewes"),
        ("unidentified umbrella", "an unidentified umbrella", "unidentified umbrellas"),
        ("SUV", "an SUV", "SUVs"),
        ("RC car", "an RC car", "RC cars"),
        ("Robot", "a Robot", "Robots"),
        ("one-eyed cat", "a one-eyed cat", "one-eyed cats"),
        ("wolf plushie", "a wolf plushie", "wolf plushies"),
        ("wolf", "a wolf", "wolves"),
        ("snowman", "a snowman", "snowmen"),
        ("human", "a human", "humans"),
        ("toy", "a toy", "toys"),
        ("cactus", "a cactus", "cactuses"),
        ("glass", "a glass", "glasses"),
        ("lens", "a lens", "lenses"),
        ("fish", "a fish", "fish"),
        ("pair of shoes", "a pair of shoes", "pairs of shoes"),
        ("woman in red", "a woman in red", "women in red"),
        ("sunglasses", "sunglasses", "sunglasses"),
        ("headphones", "headphones", "headphones"),
    ],
)
def test_one_and_several(word: str, one: str, several: str) -> None:
    assert article(word) == one
    assert plural(word) == several


def test_a_class_is_named_once() -> None:
    assert caption(["dog"], "sand") == "a dog on sand"
    assert caption(["dog", "dog"], "sand") == "two dogs on sand"
    assert caption(["dog", "owl", "dog"], "a table") == "two dogs and an owl on a table"
    assert caption(["owl", "cat", "airplane"], "ice") == "an owl, a cat and an airplane on ice"
