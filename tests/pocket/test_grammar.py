"""Prompts in right English, and what the tokens make of them."""

from __future__ import annotations

import numpy as np
import pytest

from focusdpo.pocket.classes import BACKGROUNDS, class_names
from focusdpo.pocket.models.vocabulary import LENGTH, token_ids, words
from focusdpo.pocket.world.grammar import TEMPLATES, draw_prompt, plural, prompt_for


def said(prompt: str) -> list[str]:
    return [words()[i] for i in token_ids(prompt) if i]


@pytest.mark.parametrize(
    ("classes", "prompt"),
    [
        (["airplane"], "an airplane on sand"),
        (["cat", "cat"], "two cats on sand"),
        (["butterfly", "bus", "butterfly"], "two butterflies and a bus on sand"),
        (["dress", "dress", "dress"], "three dresses on sand"),
        (["fish", "fish", "owl"], "two fish and an owl on sand"),
        (
            ["teddy bear", "key", "umbrella", "key"],
            "a teddy bear, two keys and an umbrella on sand",
        ),
    ],
)
def test_captions_are_right_english(classes: list[str], prompt: str) -> None:
    assert prompt_for(classes, "sand") == prompt


def test_every_caption_is_known_word_for_word_and_fits() -> None:
    rng = np.random.default_rng(0)
    for number in range(600):
        count = 1 + number % 4
        classes = [str(word) for word in rng.choice(class_names(), count)]
        prompt = draw_prompt(classes, str(rng.choice(BACKGROUNDS)), rng)
        tokens = said(prompt)
        assert "<unk>" not in tokens
        assert len(tokens) < LENGTH
        assert set(classes) <= set(tokens)
        assert any(ground in tokens for ground in BACKGROUNDS)


def test_plain_captions_of_four_fit_with_their_background() -> None:
    for template in range(len(TEMPLATES)):
        prompt = prompt_for(["cat", "key", "bell", "top hat"], "wood", template)
        assert "wood" in said(prompt)


def test_article_and_plural_mean_the_same_class_word() -> None:
    assert said("a airplane on grass") == said("an airplane on grass")
    assert said("two t-shirts") == ["two", "t-shirt", "<plural>"]
    assert said("two objects") == ["two", "object", "<plural>"]
    assert said("a zebra on the grass") == ["<unk>", "on", "grass"]


def test_plurals_are_distinct() -> None:
    assert len({plural(word) for word in class_names()}) == len(class_names())


def test_the_order_of_words_is_free() -> None:
    rng = np.random.default_rng(1)
    first = [draw_prompt(["cat", "bell"], "sand", rng) for _ in range(200)]
    share = np.mean([text.index("cat") < text.index("bell") for text in first])
    assert 0.38 < share < 0.62
