"""The acting pages in a real browser: keys, drag and drop, brush, and no barrier for anybody."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import needs_browser
from playwright.sync_api import expect
from small_root import small_version
from studio_walk import browser_page, drop_files, meadow, served

from focusdpo.pipeline.audit import Audit
from focusdpo.pipeline.subjects.registry import read_registry
from focusdpo.store.artefacts import Store

pytestmark = needs_browser
WAIT = 60_000
"""Milliseconds for what loads models."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studio") / "data"
    small_version(folder, scenes=8)
    return folder


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    with served(root) as where:
        yield where


@pytest.fixture
def page() -> Iterator[Any]:
    complaints: list[str] = []
    with browser_page(complaints=complaints) as tab:
        yield tab
    # What is refused in words is an error to the browser's console all the same.
    assert not [one for one in complaints if "status of 400" not in one]


def review(page: Any, address: str, query: str) -> None:
    page.goto(f"{address}/review?{query}")
    page.wait_for_selector("#review[data-ready]")


def shown(page: Any) -> str:
    return str(page.get_attribute("#review", "data-pair"))


@pytest.mark.slow
def test_the_keyboard_is_enough(root: Path, address: str, page: Any) -> None:
    review(page, address, "reviewer=Ada")
    pairs = []
    for key in "ars":
        pairs.append(shown(page))
        page.keyboard.press(key)
        expect(page.locator("#review")).not_to_have_attribute("data-pair", pairs[-1])
    expect(page.locator("#count")).to_have_text("3 of 8 decided by you")
    held = [(one.pair_id, one.decision) for one in Audit(Store.open(root)).reviews()]
    assert held == list(zip(pairs, ["accept", "reject", "swap"], strict=True))
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#review")).to_have_attribute("data-pair", pairs[-1])
    expect(page.locator("[data-decide=swap]")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("u")
    expect(page.locator("[data-decide=swap]")).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#count")).to_have_text("2 of 8 decided by you")
    for pair, left in ((pairs[1], "1 of 8"), (pairs[0], "0 of 8")):
        page.keyboard.press("u")
        expect(page.locator("#review")).to_have_attribute("data-pair", pair)
        expect(page.locator("#count")).to_have_text(f"{left} decided by you")
    page.keyboard.press("u")
    expect(page.locator("#messages")).to_contain_text("no decision of yours to undo")


def test_undo_takes_back_what_was_just_decided(root: Path, address: str, page: Any) -> None:
    """Deciding moves on to the next pair; undo is about the one before."""
    review(page, address, "reviewer=Edsger")
    first = shown(page)
    page.keyboard.press("r")
    expect(page.locator("#review")).not_to_have_attribute("data-pair", first)
    page.keyboard.press("u")
    expect(page.locator("#review")).to_have_attribute("data-pair", first)
    expect(page.locator("#count")).to_have_text("0 of 8 decided by you")
    expect(page.locator("#messages")).to_be_empty()
    own = [one for one in Audit(Store.open(root)).reviews() if one.reviewer == "Edsger"]
    assert [(one.pair_id, one.decision) for one in own] == [(first, "reject"), (first, "withdraw")]


def test_undo_at_the_end_of_the_queue(address: str, page: Any) -> None:
    review(page, address, "reviewer=Donald")
    for _ in range(8):
        last = shown(page)
        page.keyboard.press("a")
        expect(
            page.locator("#review[data-pair='" + last + "'] #pictures:not([hidden])")
        ).to_have_count(0)
    expect(page.locator("#messages")).to_contain_text("Nothing is left")
    page.keyboard.press("u")
    expect(page.locator("#pictures")).to_be_visible()
    expect(page.locator("#review")).to_have_attribute("data-pair", last)
    expect(page.locator("#count")).to_have_text("7 of 8 decided by you")


def test_space_flips_and_typing_a_reason_decides_nothing(address: str, page: Any) -> None:
    review(page, address, "reviewer=Barbara")
    before = [page.get_attribute(f"#{side}", "src") for side in ("left", "right")]
    page.keyboard.press("Space")
    after = [page.get_attribute(f"#{side}", "src") for side in ("left", "right")]
    assert after == before[::-1]
    assert page.inner_text("#left-title") == "Loser"
    page.fill("#reason", "a rare case as such")
    page.press("#reason", "r")
    page.keyboard.press("Space")
    expect(page.locator("#count")).to_have_text("0 of 8 decided by you")


def test_blind_review_shows_no_winner(root: Path, address: str, page: Any) -> None:
    review(page, address, "reviewer=Grace&mode=blind")
    text = page.inner_text("main").lower()
    assert "winner" not in text and "margin" not in text and "scorers" not in text
    first = shown(page)
    page.keyboard.press("1")
    expect(page.locator("#review")).not_to_have_attribute("data-pair", first)
    (one,) = [one for one in Audit(Store.open(root)).reviews() if one.reviewer == "Grace"]
    assert one.blind and one.decision in ("accept", "swap")


@pytest.mark.slow
def test_to_the_end_of_the_queue(address: str, page: Any) -> None:
    review(page, address, "reviewer=Edsger")
    for _ in range(8):
        before = page.inner_text("#count")
        page.keyboard.press("a")
        expect(page.locator("#count")).not_to_have_text(before)
        page.wait_for_timeout(150)
    expect(page.locator("#messages")).to_contain_text("Nothing is left to review here")


@pytest.mark.slow
def test_a_bad_picture_costs_no_other_and_is_named(address: str, page: Any, tmp_path: Path) -> None:
    meadow(200).save(tmp_path / "meadow.jpg")
    (tmp_path / "<b>drawing.png").write_bytes(b"<svg onload=alert(1)>")
    (tmp_path / "empty.png").write_bytes(b"")
    page.goto(f"{address}/add-subject")
    drop_files(page, "#drop", sorted(tmp_path.iterdir()))
    expect(page.locator("#pictures li")).to_have_count(1)
    expect(page.locator("#messages .bad")).to_have_count(2)
    told = page.inner_text("#messages")
    assert (
        "<b>drawing.png: this is SVG, a drawing, not an image" in told
        and "empty.png: the file is empty" in told
    )
    assert page.input_value("#name") == "b-drawing"
    page.reload()
    expect(page.locator("#pictures li")).to_have_count(1)
    page.click("#pictures li a.button")
    page.wait_for_selector("#editor[data-ready]")
    box = page.locator("#canvas").bounding_box()
    page.keyboard.press("e")
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 30, steps=4)
    page.mouse.up()
    page.click("#keep")
    expect(page.locator("#pictures")).to_contain_text("mask drawn by hand")


REVIEW = "/review?reviewer=Ada"
PAGES = ("/review", REVIEW, f"{REVIEW}&mode=blind", "/add-subject", "/jobs")


@pytest.mark.parametrize(("width", "dark"), [(1180, True), (390, False)])
@pytest.mark.slow
def test_nothing_serious_is_in_the_way_of_anybody(address: str, width: int, dark: bool) -> None:
    violations = []
    with browser_page(width=width, dark=dark) as page:
        for path in PAGES:
            page.goto(address + path)
            page.wait_for_timeout(400)
            for violation in Axe().run(page).response["violations"]:
                violations.append((path, violation["id"], violation["nodes"][0]["html"][:200]))
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{path} is {wide} wide on {width}"
    assert not violations


def test_all_pairs_at_once_and_one_undo(root: Path, address: str, page: Any) -> None:
    review(page, address, "reviewer=Everything&show=open")
    page.click("#bulk summary")
    expect(page.locator("#bulk-count")).to_have_text("8 pairs are chosen")
    page.click("[data-all=reject]")
    expect(page.locator("#messages")).to_contain_text(
        "8 rejected. Undo takes all of them back.", timeout=WAIT
    )
    expect(page.locator("#count")).to_have_text("8 of 8 decided by you")
    page.keyboard.press("u")
    expect(page.locator("#messages")).to_contain_text("8 decisions are taken back", timeout=WAIT)
    expect(page.locator("#count")).to_have_text("0 of 8 decided by you")
    own = [one for one in Audit(Store.open(root)).reviews() if one.reviewer == "Everything"]
    assert len(own) == 16 and {one.decision for one in own[8:]} == {"withdraw"}


@pytest.mark.slow
def test_several_subjects_from_a_zip(tmp_path: Path, page: Any) -> None:
    packed = tmp_path / "mine.zip"
    with zipfile.ZipFile(packed, "w") as made:
        for at, name in enumerate(("my star", "ball_2")):
            picture = meadow(96 + at)
            picture.save(tmp_path / "0.png")
            made.write(tmp_path / "0.png", f"mine/{name}/0.png")
        made.writestr("mine/ball_2/subject.yaml", "class_name: starr")
        made.writestr("mine/odd/0.png", "no picture")
    with served(tmp_path / "data") as address:
        page.goto(f"{address}/add-subject/several")
        page.set_input_files("#zip", packed)
        expect(page.locator("#messages")).to_contain_text("odd: left out", timeout=WAIT)
        page.click("#messages button")
        expect(page.locator("#drafts li")).to_have_count(2)
        page.select_option("#all-licence_choice", "CC0-1.0")
        page.click("#fill")
        page.click("#save")
        expect(page.locator("#messages")).to_contain_text("1 saved, 1 not", timeout=WAIT)
        wrong = page.locator("#drafts li:not([data-saved])")
        expect(wrong.locator(".said-here")).to_contain_text("Class: the models do not know 'starr'")
        wrong.locator("input[name=class_name]").fill("star")
        page.click("#save")
        expect(page.locator("#messages")).to_contain_text("1 saved", timeout=WAIT)
        expect(page.locator("#done")).to_be_visible()
    known = read_registry(Store.open(tmp_path / "data"))
    assert {name: one.licence for name, one in known.entries.items()} == {
        "ball_2": "CC0-1.0", "my-star": "CC0-1.0",
    }  # fmt: skip
