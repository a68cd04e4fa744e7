"""Words of appearance are taken out; what stands there stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from focusdpo.data_schemas.candidates import Instance, Sampled
from focusdpo.pipeline.describe import (
    APPEARANCE,
    ClassNameCaptioner,
    DescribeConfig,
    describe,
    without_appearance,
)


@pytest.mark.parametrize(
    ("caption", "name", "expected"),
    [
        ("cat", "cat", "cat"),
        ("a cat", "cat", "cat"),
        ("a photo of a red cat", "cat", "cat"),
        ("A small, fluffy red cat", "cat", "cat"),
        ("a small striped cat sitting on a wooden chair", "cat", "small cat sitting on a chair"),
        ("a dog with a red and white collar", "dog", "dog with a collar"),
        ("a dog in black and white", "dog", "dog"),
        ("a teapot made of blue porcelain", "teapot", "teapot"),
        ("a black-and-white dog, sitting", "dog", "dog, sitting"),
        ("an orange on a plate", "orange", "orange on a plate"),
        ("a worn brown teddy bear", "teddy bear", "worn teddy bear"),
        ("a tabby", "cat", "cat"),
        ("concatenate", "cat", "cat"),
        ("", "cat", "cat"),
        ("cat with the", "cat", "cat"),
        ("cat wearing a silver, golden", "cat", "cat"),
    ],
)
def test_known_captions(caption, name, expected):
    assert without_appearance(caption, name) == expected


WORDS = st.sampled_from(
    sorted(APPEARANCE)[::9]
    + ["cat", "sitting", "a", "with", "and", "of", ",", "big", "Red,", "hat"]
)


@given(st.lists(WORDS, max_size=14).map(" ".join), st.integers(1, 12))
def test_no_word_of_appearance_is_left_and_the_class_stays(caption, most):
    said = without_appearance(caption, "cat", most)
    words = said.replace(",", " ").split()
    assert "cat" in words
    assert not APPEARANCE.intersection(words)
    assert len(words) <= most
    assert words[0] not in {"a", "an", "the", "with", "and", "of"}
    assert words[-1] not in {"a", "an", "the", "with", "and", "of"} and said[-1] != ","
    assert without_appearance(said, "cat", most) == said


class Talkative:
    fingerprint = "talkative"

    def caption(self, images, masks, class_names):
        return [
            f"a {'dark' if image[mask].mean() < 128 else 'bright'} red {name} facing left"
            for image, mask, name in zip(images, masks, class_names, strict=True)
        ]


def test_found_instances_are_described_in_order():
    images = {"i": np.zeros((4, 4, 3), np.uint8), "m": np.full((4, 4), 255, np.uint8)}
    sampled = [Sampled(id="c", scene_id="s", index=0, seed=0, image="i")]

    def instance(name, mask):
        return Instance(
            candidate_id="c",
            scene_id="s",
            subject_id=name,
            class_name="cat",
            found="one" if mask else "missing",
            box=(0, 0, 4, 4) if mask else None,
            mask=mask,
            confidence=1.0,
            extra=0,
        )

    instances = [instance("a", "m"), instance("b", None), instance("c", "m")]
    config = DescribeConfig(batch=1)
    plain = describe(sampled, instances, images.__getitem__, ClassNameCaptioner(), config)
    assert [(d.instance.subject_id, d.caption) for d in plain.records] == [
        ("a", "cat"),
        ("c", "cat"),
    ]
    said = describe(sampled, instances, images.__getitem__, Talkative(), config)
    assert {d.caption for d in said.records} == {"cat facing left"}
