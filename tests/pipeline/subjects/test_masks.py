"""From a picture to a reference: what is found, how it is placed, what colours it keeps."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import Picture
from focusdpo.pipeline.subjects.cutouts import cut_out


def disc(side: int = 64, radius: float = 0.3) -> np.ndarray:
    """(side, side) bool"""
    y, x = np.mgrid[:side, :side] / (side - 1) - 0.5
    return x**2 + y**2 < radius**2


def picture(image: np.ndarray) -> Picture:
    return Picture(image=image.astype(np.uint8), alpha=None, notes=())


@pytest.mark.parametrize("ground", [(255, 255, 255), (40, 90, 60)])
def test_a_uniform_background_is_found(ground: tuple[int, int, int]) -> None:
    noise = np.random.default_rng(0).integers(-4, 5, (200, 200, 3))
    inside = disc(200)
    image = np.clip(np.where(inside[..., None], (200, 30, 30), ground) + noise, 0, 255)
    image[90:110, 90:110] = ground  # a hole of the background's colour belongs to the subject
    cut, mask, note = cut_out(picture(image), 64, 24)
    assert note == []
    expected = np.asarray(Image.fromarray(inside).resize((64, 64)))
    assert (mask & expected).sum() / (mask | expected).sum() > 0.95
    assert (cut[~mask].mean(axis=0) > 200).all(), "white outside"


def test_light_that_falls_off_is_still_one_background() -> None:
    y, x = np.mgrid[:200, :200] / 199 - 0.5
    light = 245 - 120 * (x**2 + y**2) - 30 * x
    inside = disc(200)
    image = np.where(inside[..., None], (60, 30, 30), light[..., None])
    _, mask, note = cut_out(picture(image), 64, 24)
    expected = np.asarray(Image.fromarray(inside).resize((64, 64)))
    assert note == []
    assert (mask & expected).sum() / (mask | expected).sum() > 0.95


def test_a_subject_that_touches_one_side_is_found() -> None:
    inside = np.zeros((200, 200), np.bool_)
    inside[80:, 80:140] = True
    image = np.where(inside[..., None], (60, 30, 30), (240, 240, 240))
    _, mask, (note,) = cut_out(picture(image), 64, 24)
    assert "cut by the picture's border" in note
    assert mask.mean() == pytest.approx(inside.mean(), rel=0.05)


def test_a_photographs_background_is_not_guessed_at() -> None:
    """Sky above, meadow below: half of the border is alike, which is no uniform background."""
    y, x = np.mgrid[:200, :200]
    image = np.where((y < 110)[..., None], (150, 190, 230), (70, 120, 50))
    image = image + 25 * ((x // 7 + y // 5) % 2)[..., None] * (y >= 110)[..., None]
    image[disc(200, 0.2)] = (200, 30, 30)
    _, mask, note = cut_out(picture(image), 64, 24)
    assert "no uniform background" in note[0]
    assert mask.all()


@pytest.mark.parametrize("shape", [(300, 100), (100, 300), (64, 64), (7000, 16)])
def test_any_shape_becomes_a_centred_square(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 90, np.uint8)
    full = Picture(image=image, alpha=np.full(shape, 255, np.uint8), notes=())
    cut, mask, _ = cut_out(full, 64, 24)
    assert cut.shape == (64, 64, 3)
    share = min(shape) / max(shape)
    assert mask.mean() == pytest.approx(share, abs=1 / 64)
    assert (cut[mask] == 90).all()
    assert (cut[~mask] == 255).all()
    rows, columns = np.nonzero(mask)
    assert abs(rows.mean() - 31.5) <= 0.5
    assert abs(columns.mean() - 31.5) <= 0.5


def test_colours_under_transparency_do_not_bleed() -> None:
    """A cut-out on magenta must not get a magenta rim."""
    inside = disc(256)
    image = np.where(inside[..., None], (0, 160, 0), (255, 0, 255)).astype(np.uint8)
    cut, _, _ = cut_out(Picture(image=image, alpha=inside.astype(np.uint8) * 255, notes=()), 64, 24)
    assert (cut[..., 1].astype(int) >= np.minimum(cut[..., 0], cut[..., 2])).all()


def test_a_small_subject_is_gone_near_to_and_a_large_one_is_left_alone() -> None:
    image = np.full((400, 600, 3), 255, np.uint8)
    alpha = np.zeros((400, 600), np.uint8)
    image[300:340, 520:600] = (200, 30, 30)
    alpha[300:340, 520:600] = 255  # 80 x 40 pixels at the border of 600 x 400
    cut, mask, _ = cut_out(Picture(image=image, alpha=alpha, notes=()), 64, 24)
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert cols[-1] - cols[0] + 1 >= 50 and rows[-1] - rows[0] + 1 >= 25
    assert (cut[mask] == (200, 30, 30)).all(axis=1).mean() > 0.9
    whole = np.zeros((64, 64), np.uint8)
    whole[10:50, 20:60] = 255
    _, same, _ = cut_out(Picture(image=image[:64, :64], alpha=whole, notes=()), 64, 24)
    assert (same == (whole > 0)).all()


def photograph_on_grey() -> np.ndarray:
    """(200, 200, 3): a red disc on grey."""
    return np.where(disc(200)[..., None], (200, 30, 30), (190, 190, 190)).astype(np.uint8)


def nearly_opaque() -> np.ndarray:
    return np.full((200, 200), 254, np.uint8)


def with_a_hole() -> np.ndarray:
    alpha = np.full((200, 200), 255, np.uint8)
    alpha[0, 17] = 0
    return alpha


def with_round_corners(share: float = 0.2) -> np.ndarray:
    """As a phone's screenshots have: black under the corners."""
    radius = share * 200
    y, x = np.abs(np.mgrid[:200, :200] - 99.5) - (100 - radius)
    outside = (x > 0) & (y > 0) & (x**2 + y**2 > radius**2)
    return np.where(outside, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("alpha", [nearly_opaque(), with_a_hole(), with_round_corners()])
def test_an_alpha_that_cuts_nothing_out_is_no_mask(alpha: np.ndarray) -> None:
    image = np.where(alpha[..., None] > 0, photograph_on_grey(), 0).astype(np.uint8)
    cut, mask, note = cut_out(Picture(image=image, alpha=alpha, notes=()), 64, 24)
    assert note == []
    expected = np.asarray(Image.fromarray(disc(200)).resize((64, 64)))
    assert (mask & expected).sum() / (mask | expected).sum() > 0.95
    assert (cut[~mask].mean(axis=0) > 200).all(), "white outside"


def test_of_a_photograph_with_round_corners_the_corners_stay_out() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    alpha = with_round_corners()
    _, mask, note = cut_out(Picture(image=noise, alpha=alpha, notes=()), 64, 24)
    assert "the whole picture counts" in note[0]
    assert not mask[[0, 0, -1, -1], [0, -1, 0, -1]].any() and mask.mean() > 0.94


def test_a_book_cut_out_along_its_edge_stays_as_it_is() -> None:
    alpha = np.zeros((200, 200), np.uint8)
    alpha[2:, 3:] = 255  # no two corners alike
    alpha[-4:, :] = 0
    _, mask, note = cut_out(Picture(image=photograph_on_grey(), alpha=alpha, notes=()), 200, 24)
    assert note == [] and (mask == (alpha > 0)).all()


@pytest.mark.parametrize(
    ("most", "count", "words"),
    [
        (0, 0, "alpha is 0 everywhere"),
        (100, 4000, "alpha is at most 100 of 255"),
        (255, 1, "alpha leaves 1 opaque pixel, a subject has at least 64"),
    ],
)
def test_what_nobody_can_see_is_refused_for_what_it_is(most: int, count: int, words: str) -> None:
    alpha = np.zeros(200 * 200, np.uint8)
    alpha[:count] = most
    picture = Picture(image=photograph_on_grey(), alpha=alpha.reshape(200, 200), notes=())
    with pytest.raises(UserError, match=f"a.png: .*{words}"):
        cut_out(picture, 64, 24, None, "a.png")
