"""Points of the mask editor: what is refused, what a segmenter with points and one without make of
them, and the page in a browser."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_suite
from axe_playwright_python.sync_playwright import Axe
from browsing import needs_browser
from PIL import Image
from playwright.sync_api import expect
from studio_client import Client
from studio_walk import bring_pictures, browser_page, drop_files, served

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.config import GenerateRun
from focusdpo.flows.settings import resolve
from focusdpo.flows.wiring import resident_parts, takes_points
from focusdpo.pipeline.parts import PointSegmenter
from focusdpo.studio.pages.upload_page import (
    MOST_POINTS,
    Prompt,
    read_prompt,
    whole_instances,
)

HERE = "/add-subject/0123456789abcdef"
SIZE = (240, 320)
TWO = {"points": [[160, 120], [10, 10]], "labels": [1, 0]}


def prompt(*places: tuple[int, int, int]) -> Prompt:
    points = np.array([[x, y] for x, y, _ in places], np.float64)
    return Prompt(points, np.array([label for *_, label in places], np.int64))


def mask_of(answer: Any) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content))) > 127


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SAM of random weights."""
    return tiny_suite.write_preset("flux-uno", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path]]:
    """A class, and pictures of one of it, the first a photograph."""
    return next(iter(bring_pictures(tmp_path_factory.mktemp("pictures"), 1).values()))


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("nothing", {}, "points: "),
    ("no points", {**TWO, "points": []}, "points: "),
    ("no list", {**TWO, "points": {"0": [1, 1]}}, "points: "),
    ("too many", {"points": [[1, 1]] * 33, "labels": [1] * 33}, "points: "),
    ("a text", {**TWO, "points": [[1, 1], ["1", 1]]}, "points[1]: "),
    ("one number", {**TWO, "points": [[1], [1, 1]]}, "points[0]: "),
    ("three numbers", {**TWO, "points": [[1, 1, 1], [1, 1]]}, "points[0]: "),
    ("no place", {**TWO, "points": [None, [1, 1]]}, "points[0]: "),
    ("left of it", {**TWO, "points": [[-1, 0], [1, 1]]}, "points[0]: "),
    ("right of it", {**TWO, "points": [[1, 1], [320, 1]]}, "points[1]: "),
    ("below it", {**TWO, "points": [[1, 1], [1, 240]]}, "points[1]: "),
    ("not finite", {**TWO, "points": [[1, 1], [float("nan"), 1]]}, "points[1]: "),
    ("endless", {**TWO, "points": [[1, float("inf")], [1, 1]]}, "points[0]: "),
    ("huge", {**TWO, "points": [[10**400, 1], [1, 1]]}, "points[0]: "),
    ("a truth", {**TWO, "points": [[True, 1], [1, 1]]}, "points[0]: "),
    ("no labels", {"points": TWO["points"]}, "labels: "),
    ("a label short", {**TWO, "labels": [1]}, "labels: "),
    ("another label", {**TWO, "labels": [1, 2]}, "labels[1]: "),
    ("a padding label", {**TWO, "labels": [1, -1]}, "labels[1]: "),
    ("half a label", {**TWO, "labels": [1, 0.0]}, "labels[1]: "),
    ("a true label", {**TWO, "labels": [True, 0]}, "labels[0]: "),
    ("nothing belongs", {**TWO, "labels": [0, 0]}, "labels: "),
]


@pytest.mark.parametrize(("values", "field"), [one[1:] for one in BAD], ids=[one[0] for one in BAD])
def test_what_is_wrong_is_named_by_its_field(values: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        read_prompt(json.loads(json.dumps(values)), SIZE)
    assert str(caught.value).startswith(field)


def test_points_in_all_corners_are_inside() -> None:
    corners = [[0, 0], [319, 0], [0, 239], [319.0, 239], [0.5, 0.25]]
    read = read_prompt({"points": corners, "labels": [1, 0, 1, 0, 1]}, SIZE)
    assert read.points.tolist() == corners and read.labels.tolist() == [1, 0, 1, 0, 1]
    most = {"points": [[1, 1]] * MOST_POINTS, "labels": [1] * MOST_POINTS}
    assert len(read_prompt(most, SIZE).points) == MOST_POINTS == 32


def box(left: int, right: int) -> np.ndarray:
    mask = np.zeros((4, 12), bool)
    mask[:, left:right] = True
    return mask


def test_whole_instances_are_added_and_left_out_in_any_order() -> None:
    wide, one, two = box(0, 8), box(0, 3), box(5, 8)
    seen = [wide, one, two]
    np.testing.assert_array_equal(whole_instances(prompt((1, 1, 1)), seen, (4, 12)), one)
    both = whole_instances(prompt((1, 1, 1), (6, 1, 1)), seen, (4, 12))
    np.testing.assert_array_equal(both, one | two)
    for places in (((4, 0, 1), (1, 1, 0)), ((1, 1, 0), (4, 0, 1))):
        np.testing.assert_array_equal(whole_instances(prompt(*places), seen, (4, 12)), wide & ~one)
    for places, said in (
        (((10, 2, 1),), "no subject at 10, 2"),
        (((1, 1, 1), (10, 2, 0)), "no subject at 10, 2"),
        (((1, 1, 1), (2, 1, 0)), "nothing is left"),
    ):
        with pytest.raises(UserError, match=said):
            whole_instances(prompt(*places), seen, (4, 12))
    with pytest.raises(UserError, match="use the brush"):
        whole_instances(prompt((1, 1, 1)), [], (4, 12))


def bring(studio: Client, path: Path, word: str = "") -> str:
    studio.post(f"{HERE}/note", json={"name": "a", "class_name": word, "licence": ""})
    answer = studio.post(f"{HERE}/pictures", params={"name": path.name}, content=path.read_bytes())
    return str(answer.json()["edit"])


def test_without_points_a_click_takes_the_subject_that_stands_there(
    tmp_path: Path, pictures: tuple[str, list[Path]]
) -> None:
    studio, (word, paths) = Client(tmp_path / "data"), pictures
    edit = bring(studio, paths[0], word)
    mask = mask_of(studio.post(f"{edit}/click", json={"points": [[160, 160]], "labels": [1]}))
    alpha = np.asarray(Image.open(paths[1]).getchannel("A")) > 127
    assert mask.shape == (320, 320) and mask[160, 160]
    assert 0.4 < mask.sum() / alpha.sum() < 1.8, (
        "about as large as the subject in its other picture"
    )
    for values, said in (
        ({"points": [[2, 2]], "labels": [1]}, f"{paths[0].name}: the segmenter sees no subject"),
        ({"points": [[160, 160], [161, 160]], "labels": [1, 0]}, "use the eraser"),
        ({"points": [[160, 320]], "labels": [1]}, "points[0]: "),
        ({"x": 160, "y": 160}, "points: "),
    ):
        answer = studio.post(f"{edit}/click", json=values)
        assert answer.status_code == 400 and said in answer.json()["error"]
    page = studio.page(edit).text
    assert "takes no points" in page and 'data-most="32"' in page


def test_with_points_the_mask_model_is_asked(
    tmp_path: Path, preset: Path, pictures: tuple[str, list[Path]]
) -> None:
    """No class word is given, and the answer is the segmenter's own."""
    studio = Client(tmp_path / "data", preset=str(preset))
    edit = bring(studio, pictures[1][0])
    assert "asked with the points themselves" in studio.page(edit).text
    view = np.asarray(Image.open(io.BytesIO(studio.get(f"{edit}/view.png").content)))
    run = resolve(GenerateRun, {"preset": str(preset)})
    segmenter = resident_parts(run.family).point_segmenter
    assert isinstance(segmenter, PointSegmenter)
    for values in ({"points": [[160, 120]], "labels": [1]}, TWO):
        mask = mask_of(studio.post(f"{edit}/click", json=values))
        own = np.array(values["points"], np.float64), np.array(values["labels"], np.int64)
        np.testing.assert_array_equal(mask, segmenter.segment_points(view, *own))


def test_what_a_suite_says_of_points_is_so(preset: Path) -> None:
    for name, expected in (("pocket", False), (str(preset), True)):
        family = resolve(GenerateRun, {"preset": name}).family
        found = resident_parts(family).point_segmenter is not None
        assert found is takes_points(family) is expected


class Editor:
    """The mask editor in a tab."""

    def __init__(self, page: Any, address: str, word: str, path: Path) -> None:
        self.page = page
        page.goto(f"{address}/add-subject")
        drop_files(page, "#drop", [path])
        expect(page.locator("#pictures li")).to_have_count(1)
        page.fill("#class_name", word)
        page.locator("#class_name").blur()
        page.click("#pictures li a.button")
        page.wait_for_selector("#editor[data-ready]")

    def click(self, x: float, y: float, **more: Any) -> None:
        """At shares of the canvas."""
        area = self.page.locator("#canvas").bounding_box()
        self.page.locator("#canvas").click(
            position={"x": area["width"] * x, "y": area["height"] * y}, **more
        )

    def counts(self, said: str) -> None:
        expect(self.page.locator("#pointed")).to_have_text(said, timeout=60_000)

    def inside(self) -> int:
        """Pixels of the mask."""
        count: int = self.page.evaluate(
            """() => {
              const all = pixels().data;
              let count = 0;
              for (let i = 0; i < all.length; i += 4) count += all[i] > 127;
              return count;
            }"""
        )
        return count


@pytest.fixture
def page() -> Iterator[Any]:
    complaints: list[str] = []
    with browser_page(complaints=complaints) as tab:
        yield tab
    # What is refused in words is an error to the browser's console all the same.
    assert not [one for one in complaints if "status of 400" not in one]


@pytest.mark.slow
@needs_browser
def test_points_by_mouse_and_by_keyboard(
    tmp_path: Path, preset: Path, pictures: tuple[str, list[Path]], page: Any
) -> None:
    sent: list[Any] = []
    page.on(
        "request",
        lambda asked: sent.append(asked.post_data_json) if asked.url.endswith("/click") else None,
    )
    with served(tmp_path / "data", "--preset", str(preset)) as address:
        editor = Editor(page, address, "", pictures[1][0])
        before = editor.inside()
        page.keyboard.press("c")
        editor.click(0.5, 0.5, modifiers=["Shift"])
        editor.counts("0 points belong, 1 does not")
        expect(page.locator("#messages")).to_contain_text("Now click what belongs")
        assert editor.inside() == before and not sent
        page.keyboard.press("z")
        editor.counts("No points")
        editor.click(0.5, 0.4)
        editor.counts("1 point belongs")
        first = editor.inside()
        editor.click(0.1, 0.1, button="right")
        editor.counts("1 point belongs, 1 does not")
        page.click("#away")
        expect(page.locator("#away")).to_have_attribute("aria-pressed", "true")
        editor.click(0.9, 0.1)
        editor.counts("1 point belongs, 2 do not")
        assert not [one["id"] for one in Axe().run(page).response["violations"]]
        page.keyboard.press("n")
        for key in ("ArrowRight", "ArrowDown", "Shift+ArrowDown", "Enter"):
            page.locator("#canvas").press(key)
        editor.counts("2 points belong, 2 do not")
        assert page.locator("#marks g.belongs").count() == 2
        assert page.locator("#marks g.outside").count() == 2
        looks = "all => all.map(one => getComputedStyle(one.parentNode).opacity + one.nextSibling"
        looks = f"{looks}.getAttribute('d').replace(/[^a-z]/g, ''))"
        plus, minus = "1hv", "1h"
        drawn = page.eval_on_selector_all("#marks circle", looks)
        assert drawn == [plus, minus, minus, plus]
        assert [one["labels"] for one in sent] == [[1], [1, 0], [1, 0, 0], [1, 0, 0, 1]]
        clicked = [[160, 128], [32, 32], [288, 32]]
        np.testing.assert_allclose(sent[-1]["points"][:3], clicked, atol=1)
        assert sent[-1]["points"][3] == [167, 168], "from the middle: 7 right, 7 and 1 down"
        for left in ("1 point belongs, 2 do not", "1 point belongs, 1 does not", "1 point belongs"):
            page.keyboard.press("z")
            editor.counts(left)
        assert editor.inside() == first, "undo takes a point back, and its mask"
        page.keyboard.press("Escape")
        editor.counts("No points")
        assert editor.inside() == before
        assert page.locator("#marks circle").count() == 0
        page.keyboard.press("z")
        editor.counts("1 point belongs")
        assert editor.inside() == first
        page.click("#clear")
        editor.counts("No points")
        assert editor.inside() == 0
        page.route("**/click", lambda route: None)  # an answer that never comes
        for give_up in ("z", "Escape"):
            editor.click(0.3, 0.3)
            expect(page.locator("#messages")).to_contain_text("Looking")
            page.keyboard.press(give_up)
            expect(page.locator("#messages p")).to_have_count(0)
        page.unroute("**/click")
        editor.click(0.5, 0.4)
        page.click("#keep")
        expect(page.locator("#pictures")).to_contain_text("mask drawn by hand")
        page.set_viewport_size({"width": 390, "height": 820})
        page.click("#pictures li a.button")
        page.wait_for_selector("#editor[data-ready]")
        assert editor.inside() == first, "what was still looked at is kept too"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
@needs_browser
def test_the_pocket_suite_takes_whole_subjects_and_the_brush_stays_on_top(
    tmp_path: Path, pictures: tuple[str, list[Path]], page: Any
) -> None:
    with served(tmp_path / "data") as address:
        editor = Editor(page, address, pictures[0], pictures[1][0])
        page.keyboard.press("c")
        editor.click(0.5, 0.5)
        editor.counts("1 point belongs")
        subject = editor.inside()
        assert 0 < subject < 320 * 320 / 2
        editor.click(0.51, 0.5, button="right")
        expect(page.locator("#messages")).to_contain_text("use the eraser")
        editor.click(0.02, 0.02)
        expect(page.locator("#messages")).to_contain_text("sees no subject")
        editor.counts("1 point belongs")
        assert editor.inside() == subject, "what was refused changes nothing"
        page.keyboard.press("b")
        editor.click(0.05, 0.05)
        mended = editor.inside()
        assert mended > subject
        page.keyboard.press("c")
        editor.click(0.45, 0.5)
        editor.counts("2 points belong")
        assert editor.inside() == mended
        page.keyboard.press("z")
        page.keyboard.press("z")
        editor.counts("1 point belongs")
        assert editor.inside() == subject
