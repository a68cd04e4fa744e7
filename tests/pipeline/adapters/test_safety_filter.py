"""The filter of unsafe pictures on a small random checkpoint in the public layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_encoders import pictures
from tiny_filter import save_filter_folder
from transformers import pipeline

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.adapters.safety_filter import (
    ImageClassifierConfig,
    build,
    checks,
    fingerprint,
    sources,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_filter_folder(tmp_path_factory.mktemp("filter"))


def test_shares_are_those_of_transformers_own_pipeline(folder: Path) -> None:
    """Whatever the batch; torch's threads do not matter at one thread."""
    config = ImageClassifierConfig(source=str(folder), batch=3)
    shown = pictures(5)
    found = build(config, "cpu").unsafe(shown)
    official = pipeline("image-classification", model=str(folder), device="cpu")
    for image, share in zip(shown, found, strict=True):
        told = {one["label"]: one["score"] for one in official(Image.fromarray(image))}
        assert share == pytest.approx(told["nsfw"], abs=1e-5)
    assert np.ptp(found) > 1e-3, "pictures are told apart"
    alone = build(config, "cpu").unsafe(shown[3:4])
    np.testing.assert_allclose(alone, found[3:4], atol=1e-6)
    assert build(config, "cpu").unsafe([]).shape == (0,)


def test_several_labels_count_together(tmp_path: Path) -> None:
    labels = ("drawings", "hentai", "neutral", "porn", "sexy")
    folder = save_filter_folder(tmp_path / "five", labels=labels)
    shown = pictures(3)
    each = [
        build(ImageClassifierConfig(source=str(folder), unsafe=(one,)), "cpu").unsafe(shown)
        for one in labels
    ]
    np.testing.assert_allclose(np.sum(each, axis=0), 1, atol=1e-5)
    both = build(ImageClassifierConfig(source=str(folder), unsafe=("porn", "hentai")), "cpu")
    np.testing.assert_allclose(both.unsafe(shown), each[1] + each[3], atol=1e-6)


def test_the_fingerprint_tells_what_decides_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    config = ImageClassifierConfig(source=str(folder))
    one = fingerprint(config)
    assert build(config, "cpu").fingerprint == one
    assert fingerprint(config.model_copy(update={"batch": 1})) == one
    assert fingerprint(config.model_copy(update={"threshold": 0.9})) != one
    assert fingerprint(config.model_copy(update={"unsafe": ("normal",)})) != one
    other = save_filter_folder(tmp_path / "other", seed=1)
    assert fingerprint(config.model_copy(update={"source": str(other)})) != one
    ((field, source, patterns),) = sources(config)
    assert (field, source) == ("models.safety.source", str(folder)) and patterns
    assert {Path(name).match(one) for one in patterns for name in ("model.safetensors",)} == {
        True, False
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"id2label": {"0": "cat", "1": "dog"}}, "models.safety.unsafe: nsfw; .*cat, dog"),
        ({"architectures": ["ViTModel"]}, "expected a model ...ForImageClassification"),
        ({"problem_type": "multi_label_classification"}, "several labels to a picture"),
        ({"hidden_size": 48}, "models.safety.source: "),
        ({"model_type": "no-such"}, "no image classifier that transformers knows"),
        ({"id2label": None}, "has no id2label"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, object], told: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    about = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps(about))
    (whole,) = checks(ImageClassifierConfig(source=str(copy))).values()
    with pytest.raises(UserError, match=told):
        whole()


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    (whole,) = checks(ImageClassifierConfig(source=str(folder))).values()
    assert whole() == (
        "ViTForImageClassification of normal, nsfw; refuses what is nsfw by 0.5 or more"
    )
    with pytest.raises(UserError, match="focusdpo fetch"):
        fingerprint(ImageClassifierConfig(source="nobody/nothing"))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(UserError, match="preprocessor_config.json"):
        fingerprint(ImageClassifierConfig(source=str(tmp_path)))


def test_all_labels_cannot_be_unsafe(folder: Path) -> None:
    config = ImageClassifierConfig(source=str(folder), unsafe=("normal", "nsfw"))
    with pytest.raises(UserError, match="name some of them"):
        fingerprint(config)


def test_a_damaged_checkpoint_is_caught_at_the_border(tmp_path: Path) -> None:
    """Weights that are not finite name the filter, and no picture passes by it."""
    from focusdpo.pipeline.adapters.checked import Checked, Faulty

    folder = save_filter_folder(tmp_path / "nan")
    part = build(ImageClassifierConfig(source=str(folder)), "cpu")
    with torch.no_grad():
        part.model.classifier.bias.fill_(float("nan"))
    with pytest.raises(Faulty, match="the safety: .*shares are not finite"):
        Checked("safety", part).unsafe(pictures(2))
