"""Any backbone as generator and inpainter: uint8 in and out, references brought to one shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_flux
import torch
from tiny_backbone import tiny_backbone
from tiny_flux2 import save_tiny_flux2, tiny_config

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbones import flux2_klein, flux_uno
from focusdpo.model.backbones.flux import SamplingConfig, fit_long_side
from focusdpo.pipeline.adapters.painter import (
    BackbonePainter,
    PaintingBackbone,
    prepare_reference,
    to_arrays,
    to_tensor,
)
from focusdpo.pipeline.parts import Image, ReferenceImage

PROMPTS = ["a cat and a dog on grass", "a car and a cat on grass", "a dog and a car on grass"]
SEEDS = [1, 2, 3]
SIZE = (64, 96)


@pytest.fixture(scope="module")
def flux1() -> PaintingBackbone:
    backbone = tiny_backbone(image_size=SIZE)
    backbone.sampling = SamplingConfig(steps=3, guidance=2.0)
    return backbone


@pytest.fixture(scope="module")
def flux2(tmp_path_factory: pytest.TempPathFactory) -> PaintingBackbone:
    folder = save_tiny_flux2(tmp_path_factory.mktemp("flux2"))
    return flux2_klein.build(tiny_config(folder, image_size=SIZE), "cpu")


@pytest.fixture(params=["flux1", "flux2"])
def backbone(request: pytest.FixtureRequest) -> PaintingBackbone:
    found: PaintingBackbone = request.getfixturevalue(request.param)
    return found


def reference(height: int, width: int, seed: int = 0) -> ReferenceImage:
    """Noise with a mask over its middle."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    mask[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
    return ReferenceImage(rng.integers(0, 256, (height, width, 3)).astype(np.uint8), mask)


def references() -> list[list[ReferenceImage]]:
    """Two of different sizes for each of three prompts."""
    return [[reference(96, 96, i), reference(40, 70, 9 + i)] for i in range(3)]


def pictures() -> list[Image]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8) for _ in range(3)]


def shown_side(backbone: PaintingBackbone) -> int | None:
    return None if getattr(backbone, "keeps_aspect", False) else 96


@pytest.mark.slow
def test_a_picture_is_the_backbones_own(backbone: PaintingBackbone) -> None:
    painted = BackbonePainter(backbone, "f").generate(PROMPTS[:1], references()[:1], [7])
    prepared = [prepare_reference(one, shown_side(backbone)) for one in references()[0]]
    with torch.no_grad():
        direct = backbone.generate(
            PROMPTS[:1], [i[None] for i, _ in prepared], [m[None] for _, m in prepared], [7]
        )
    assert painted[0].shape == (*SIZE, 3) and painted[0].dtype == np.uint8
    assert np.array_equal(painted[0], to_arrays(direct)[0])


def test_no_picture_depends_on_the_batch(backbone: PaintingBackbone) -> None:
    two, three = BackbonePainter(backbone, "f", batch=2), BackbonePainter(backbone, "f", batch=3)
    mask = np.zeros(SIZE, bool)
    mask[16:48, 16:80] = True
    for row in (references(), [[], [], []]):
        painted = [p.generate(PROMPTS, row, SEEDS) for p in (two, three)]
        repainted = [p.inpaint(pictures(), [mask] * 3, PROMPTS, row, SEEDS) for p in (two, three)]
        for one, other in (painted, repainted):
            gaps = [np.abs(a.astype(int) - b).max() for a, b in zip(one, other, strict=True)]
            assert max(gaps) <= 1


@torch.no_grad()
def test_guidance_asked_for_is_as_if_it_were_the_settings(flux1: PaintingBackbone) -> None:
    mask = np.zeros(SIZE, bool)
    mask[16:48, 16:80] = True
    given = ([pictures()[0]], [mask], PROMPTS[:1], references()[:1], [7])

    def painted(backbone: Any, guidance: float | None) -> list[Image]:
        painter = BackbonePainter(backbone, "f")
        made = painter.generate(*given[2:], guidance=guidance)
        return made + painter.inpaint(*given, guidance=guidance)

    other = tiny_backbone(image_size=SIZE)
    other.sampling = SamplingConfig(steps=3, guidance=3.5)
    own = painted(flux1, None)
    assert all(map(np.array_equal, painted(other, 2.0), own))
    assert not any(map(np.array_equal, painted(other, None), own))
    assert all(map(np.array_equal, painted(flux1, None), own)), "a call's guidance stayed"


def test_a_reference_is_a_white_square_around_its_subject() -> None:
    one = reference(40, 80)
    image, mask = prepare_reference(one, 80)
    assert image.shape == (3, 80, 80) and mask.shape == (80, 80)
    assert int(mask.sum()) == int(one.mask.sum())
    assert torch.equal(image[:, 20:60] * mask[20:60], to_tensor(one.image) * mask[20:60])
    assert (image[:, mask == 0] == 1).all()
    small, inside = prepare_reference(one, 40)
    assert small.shape == (3, 40, 40) and set(inside.unique().tolist()) == {0.0, 1.0}
    assert abs(int(inside.sum()) * 4 - int(mask.sum())) < 0.1 * int(mask.sum())


def test_arrays_go_there_and_back() -> None:
    image = pictures()[0]
    assert np.array_equal(to_arrays(to_tensor(image)[None])[0], image)
    assert to_arrays(torch.full((1, 3, 2, 2), 1.5))[0].max() == 255
    assert to_arrays(torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16))[0].dtype == np.uint8


def test_a_repaint_is_the_backbones_own(backbone: PaintingBackbone) -> None:
    """With and without references; the hole is where the mask is set."""
    painter, hole = BackbonePainter(backbone, "f"), np.zeros(SIZE, bool)
    hole[:, :32] = True
    shown = [prepare_reference(one, shown_side(backbone)) for one in references()[0]]
    painted = []
    for row, pairs in (([], []), (references()[0], shown)):
        painted += painter.inpaint(pictures()[:1], [hole], PROMPTS[:1], [row], [5])
        with torch.no_grad():
            direct = backbone.inpaint(
                to_tensor(pictures()[0])[None],
                torch.from_numpy(hole)[None],
                PROMPTS[:1],
                [image[None] for image, _ in pairs],
                [mask[None] for _, mask in pairs],
                [5],
            )
        assert np.array_equal(painted[-1], to_arrays(direct)[0])
    assert not np.array_equal(*painted)
    other = painter.inpaint(pictures()[:1], [~hole], PROMPTS[:1], [[]], [5])[0]
    assert not np.array_equal(other, painted[0])


def test_wrong_calls_are_refused(flux1: PaintingBackbone) -> None:
    painter, mask = BackbonePainter(flux1, "f"), np.zeros(SIZE, bool)
    rows = references()[:2]
    with pytest.raises(UserError, match="equally many"):
        painter.generate(PROMPTS[:2], [rows[0], rows[1][:1]], [1, 2])
    with pytest.raises(UserError, match="2 prompts"):
        painter.generate(PROMPTS[:2], rows, [1])
    with pytest.raises(UserError, match="1 prompts"):
        painter.inpaint(pictures()[:2], [mask], PROMPTS[:1], [[]], [1])
    with pytest.raises(UserError, match=r"96 x 96 pixels.*paints 96 x 64"):
        painter.inpaint([np.zeros((96, 96, 3), np.uint8)], [mask], PROMPTS[:1], [[]], [1])
    with pytest.raises(UserError, match="a mask of 64 x 64"):
        painter.inpaint(pictures()[:1], [mask[:, :64]], PROMPTS[:1], [[]], [1])
    assert painter.generate([], [], []) == []
    assert painter.fingerprint == "f"


def test_size_generate_and_inpaint_are_all_it_asks_for() -> None:
    """Any object that has them will do."""

    class Grey:
        image_size = (8, 8)

        def generate(self, prompts, images, masks, seeds):  # type: ignore[no-untyped-def]
            return torch.zeros(len(prompts), 3, 8, 8)

        def inpaint(self, pictures, regions, prompts, images, masks, seeds):  # type: ignore[no-untyped-def]
            return torch.where(regions[:, None], torch.zeros(()), pictures)

    painter, white = BackbonePainter(Grey(), "grey"), np.full((8, 8, 3), 255, np.uint8)
    assert (painter.generate(["x"], [[]], [0])[0] == 128).all()
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    painted = painter.inpaint([white], [mask], ["x"], [[]], [0])[0]
    assert (painted[:4] == 128).all() and (painted[4:] == 255).all()


@pytest.fixture(scope="module")
def uno_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("uno")
    return tiny_flux.make_flux(folder / "flux"), tiny_flux.make_uno(folder / "lora")


def photograph(height: int, width: int) -> ReferenceImage:
    """A picture that is shown whole."""
    rng = np.random.default_rng(height)
    picture = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return ReferenceImage(picture, np.ones((height, width), bool))


def test_a_photograph_is_shown_in_its_own_shape_as_uno_does(
    uno_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """UNO's preprocess_ref: the long side becomes 64 (one reference), both are cut to tokens."""
    painter = BackbonePainter(flux_uno.build(tiny_flux.tiny_config(*uno_folders), "cpu"), "f", 4)
    backbone: Any = painter.backbone
    shown: list[list[tuple[int, int]]] = []
    encode = backbone.encode_references

    def watched(images: Any, masks: Any) -> Any:
        made = encode(images, masks)
        shown.append(list(made.grids))
        return made

    monkeypatch.setattr(backbone, "encode_references", watched)
    wide, tall, square = photograph(768, 1024), photograph(1000, 600), photograph(96, 96)
    words = ["a cat", "a dog", "a car", "a red cat"]
    seeds = [1, 2, 3, 4]
    together = painter.generate(words, [[wide], [tall], [square], [wide]], seeds)
    assert shown == [[(3, 4)], [(4, 2)], [(4, 4)]]
    alone = painter.generate(words[1:2], [[tall]], seeds[1:2])[0]
    assert np.abs(together[1].astype(int) - alone.astype(int)).max() <= 1
    with_uno = fit_long_side(to_tensor(wide.image)[None], torch.ones(1, 768, 1024), 64, 16)[0]
    as_painted = backbone.encode_images(with_uno)
    white = prepare_reference(wide, 64)[0]
    assert as_painted.shape[1] == 12 and white.shape[1:] == (64, 64)


def test_a_text_encoder_that_waits_comes_once_for_a_call(
    uno_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_flux.tiny_config(*uno_folders, offload=True)
    painter = BackbonePainter(flux_uno.build(config, "cpu"), "f", batch=1)
    moves: list[int] = []
    encoder: Any = painter.backbone
    lent = encoder._encode_prompts._t5
    to = lent.to
    monkeypatch.setattr(lent, "to", lambda *args, **kw: (moves.append(1), to(*args, **kw))[1])
    words = ["a cat", "a dog", "a car", "a cat"]
    painter.generate(words, [[], [], [], []], [1, 2, 3, 4])
    assert len(moves) == 2  # there and back


def test_klein_takes_photographs_as_they_are(flux2: PaintingBackbone) -> None:
    backbone: Any = flux2
    made = backbone.encode_references(
        [to_tensor(photograph(48, 64).image)[None]], [torch.ones(1, 48, 64)]
    )
    rows, columns = made.grids[0]
    assert (rows, columns) == (columns * 3 // 4, columns)
