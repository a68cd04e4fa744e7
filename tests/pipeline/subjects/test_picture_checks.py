"""What is told of pictures at ingest, and what is asked of pictures of people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import Picture
from focusdpo.data_schemas.subjects import Origin
from focusdpo.pipeline.subjects.ingest import NOT_TOLD, IngestConfig, ingest, origin_of, put_subject
from focusdpo.pipeline.subjects.picture_checks import has_common_mark, light_of, picture_notes
from focusdpo.store.artefacts import Store


def textured(side: int, seed: int = 0) -> np.ndarray:
    """Patches of light and dark, as things have."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (side // 8, side // 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(cells).resize((side, side), Image.Resampling.NEAREST))


def seen(image: np.ndarray, alpha: np.ndarray, size: int = 64) -> list[str]:
    return picture_notes(Picture(image=image, alpha=None, notes=()), alpha, size)


def middle(side: int, share: float = 0.6) -> np.ndarray:
    alpha = np.zeros((side, side), np.uint8)
    rim = round(side * (1 - share) / 2)
    alpha[rim : side - rim, rim : side - rim] = 255
    return alpha


def test_a_sharp_picture_of_a_whole_subject_is_not_spoken_of() -> None:
    assert seen(textured(256), middle(256)) == []


def test_blurred_tiny_and_cut_subjects_are_told() -> None:
    image = textured(256)
    soft = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(6)))
    (told,) = seen(soft, middle(256))
    assert "blurred" in told
    (told,) = seen(image, middle(256, 0.1))
    assert "smaller than 32 pixels" in told
    alpha = middle(256)
    alpha[:, :60] = alpha[:, 60:61]
    (told,) = seen(image, alpha)
    assert "cut by the picture's border" in told
    assert seen(np.full((256, 256, 3), 90, np.uint8), middle(256)) == [], "nothing to judge by"


def test_a_mark_that_all_pictures_share_is_told() -> None:
    """Soft pictures that differ, with and without the same pattern over them."""
    rng = np.random.default_rng(1)
    plain = [
        (128 + 900 * (ndimage.gaussian_filter(rng.random((256, 256, 3)), (3, 3, 0)) - 0.5))
        for _ in range(5)
    ]
    marked = []
    for one in plain:
        copy = one.copy()
        copy[100:140:8, 40:220] = 0.4 * copy[100:140:8, 40:220] + 0.6 * 255
        copy[100:140, 40:220:12] = 0.4 * copy[100:140, 40:220:12] + 0.6 * 255
        marked.append(copy)

    def maps(pictures: list[np.ndarray]) -> list[np.ndarray]:
        return [light_of(one.astype(np.uint8)) for one in pictures]

    assert has_common_mark(maps(marked)) and not has_common_mark(maps(plain))
    assert not has_common_mark(maps(marked[:3])), "three agree by chance too often"
    assert not has_common_mark(maps(plain[:1] * 4)), "one picture four times is no watermark"


def subject_folder(folder: Path, card: str) -> Path:
    (folder / "ada").mkdir(parents=True)
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[16:48, 16:48] = (200, 30, 30, 255)
    Image.fromarray(rgba).save(folder / "ada" / "a.png")
    (folder / "ada" / "subject.yaml").write_text(f"class_name: cat\n{card}")
    return folder


@pytest.mark.parametrize(
    ("card", "what"),
    [
        ("person: true\n", "a person, and no consent; write who consented"),
        ("person: true\nconsent: '  '\n", "no consent"),
        ("consent: hers\n", "write person: true"),
        ("person: perhaps\n", "person"),
    ],
)
def test_a_person_without_consent_is_refused(card: str, what: str, tmp_path: Path) -> None:
    folder = subject_folder(tmp_path / "subjects", card)
    with pytest.raises(UserError, match=what):
        ingest(folder, Store.open(tmp_path / "root"), IngestConfig(), strict=True)


def test_consent_and_source_are_kept_with_the_pictures(tmp_path: Path) -> None:
    card = "person: yes\nconsent: Ada, to training, 2026-11-02\nsource: our studio\n"
    folder = subject_folder(tmp_path / "subjects", card)
    store = Store.open(tmp_path / "root")
    (subject,) = ingest(folder, store, IngestConfig()).subjects
    artefact = subject.references[0].image.split("/")[1]
    assert origin_of(store, artefact) == Origin(
        source="our studio", person=True, consent="Ada, to training, 2026-11-02"
    )


def test_where_nothing_is_told_nothing_changes(tmp_path: Path) -> None:
    """Artefacts of before there were such fields are found under their keys."""
    store = Store.open(tmp_path / "root")
    pictures = [(np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), np.bool_))]
    subject = put_subject(store, id="a", class_name="cat", pictures=pictures, licence="MIT")
    (key,) = store.keys("subjects")
    assert set(store.artefact("subjects", key).files) == {
        "records.parquet", "ref0.png", "refmask0.png",
    }  # fmt: skip
    assert key == "741d7a5823e3bb178a439e23fefbd74e" and origin_of(store, key) == NOT_TOLD
    assert subject.references[0].image == f"subjects/{key}/ref0.png"
