"""The pages in a real browser: flip, keyboard, focus slider, live curves, and axe on every page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import needs_browser
from playwright.sync_api import expect
from small_root import small_version
from studio_runs import add_steps, make_evaluation, make_run
from studio_walk import browser_page, served

pytestmark = needs_browser

SERIOUS = {"serious", "critical"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("browser")
    small_version(made / "root", scenes=30)
    run = make_run(made / "runs/run")
    make_run(made / "runs/live", steps=4, finished=False)
    make_evaluation(made / "runs/eval", adapter=str(run / "adapter"))
    make_evaluation(made / "runs/other", gain=0.1)
    return made


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(folder / "root", "--runs", str(folder / "runs")) as found:
        yield found


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def page(complaints: list[str]) -> Iterator[Any]:
    with browser_page(complaints=complaints) as tab:
        yield tab
    assert not complaints, complaints


def shown(page: Any) -> str:
    words: str = page.inner_text(".which")
    return words


def test_flip_by_click_by_key_and_by_slider(page: Any, address: str) -> None:
    page.goto(f"{address}/pairs/pair3")
    assert shown(page) == "Winner" and not page.is_visible(".canvas img.lose")
    page.click(".canvas")
    assert shown(page) == "Loser" and page.is_visible(".canvas img.lose")
    page.keyboard.press("Escape")
    page.click(".canvas")
    page.keyboard.down("Space")
    assert shown(page) == "Loser"
    page.keyboard.up("Space")
    assert shown(page) == "Winner"
    page.focus("[data-blend]")
    for _ in range(3):
        page.keyboard.press("PageUp")
    assert shown(page) == "Loser at 30 %"
    assert page.evaluate("getComputedStyle(document.querySelector('.canvas .lose')).opacity") != "0"


def test_maps_by_key_and_button(page: Any, address: str) -> None:
    page.goto(f"{address}/pairs/pair3")
    page.keyboard.press("d")
    assert shown(page) == "Difference" and page.is_visible(".canvas img.over")
    page.wait_for_function("() => document.querySelector('.canvas .over').naturalWidth > 0")
    page.keyboard.press("p")
    assert shown(page) == "Prior"
    page.keyboard.press("p")
    assert shown(page) == "Winner" and not page.is_visible(".canvas img.over")
    page.click("[data-show=masks]")
    assert page.get_attribute("[data-show=masks]", "aria-pressed") == "true"


def test_arrows_lead_through_the_choice(page: Any, address: str) -> None:
    page.goto(f"{address}/pairs?sort=-margin")
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/pairs?sort=-margin&page=2")
    page.click(".pairgrid a >> nth=0")
    page.wait_for_url("**/pairs/pair*")
    first = page.url
    page.keyboard.press("ArrowRight")
    page.wait_for_function("(from) => location.href !== from", arg=first)
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(first)
    # in a slider an arrow is the slider's
    page.focus("[data-blend]")
    page.keyboard.press("ArrowRight")
    assert page.url == first and page.input_value("[data-blend]") == "1"


def test_pictures_of_the_next_page_are_fetched_ahead(page: Any, address: str) -> None:
    page.goto(f"{address}/pairs?sort=margin")
    asked = "performance.getEntriesByType('resource').map((one) => new URL(one.name).pathname)"
    asked = f"{asked}.filter((one) => one.startsWith('/thumbnails/'))"
    page.wait_for_function(f"() => {asked}.length == 30")
    fetched = set(page.evaluate(asked))
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/pairs?sort=margin&page=2")
    sources = "all => all.map(one => one.getAttribute('src'))"
    shown = page.eval_on_selector_all(".pairgrid img", sources)
    assert len(shown) == 6 and set(shown) <= fetched


def test_everything_of_the_grid_is_reached_by_tab(page: Any, address: str) -> None:
    page.goto(f"{address}/pairs")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.name || document.activeElement.pathname || ''")
        )
        # after the last of the page the browser's own parts have their turn
        if page.evaluate("document.activeElement !== document.body"):
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert {"subject", "class", "score", "low", "text", "sort", "/pairs/pair0"} <= reached


@pytest.mark.slow
def test_the_focus_slider_shows_the_maps_of_each_noise_level(page: Any, address: str) -> None:
    page.goto(f"{address}/focus/pair1")
    page.wait_for_selector("#focus-tools:not([hidden])", timeout=120_000)
    page.focus("#sigma")
    page.keyboard.press("Home")
    assert page.inner_text("#sigma-is") == "σ 0.95"
    noisy = drawn(page, "noisy")
    page.keyboard.press("End")
    assert page.inner_text("#sigma-is") == "σ 0.02"
    assert drawn(page, "noisy") != noisy
    winner = drawn(page, "noisy")
    page.click("button[data-branch=loser]")
    page.wait_for_selector("#focus[data-shown='base loser 7']")
    assert drawn(page, "noisy") != winner
    assert page.inner_text("#structure").endswith("%")


def drawn(page: Any, name: str) -> str:
    picture: str = page.evaluate(
        "(name) => document.querySelector(`canvas[data-map=${name}]`).toDataURL()", name
    )
    return picture


def test_curves_grow_while_a_run_goes_on(page: Any, address: str, folder: Path) -> None:
    page.goto(f"{address}/runs")
    page.click("text=runs/live")
    assert page.inner_text("#run-state") == "step 4 of 40"
    add_steps(folder / "runs/live", 4, 6)
    expect(page.locator("#run-state")).to_have_text("step 10 of 40", timeout=30_000)
    expect(page.locator("#run .facts")).to_contain_text("10 of 40", timeout=30_000)
    assert page.locator("#run svg.chart").count() >= 2


PAGES = [
    "/", "/subjects", "/subjects/s0", "/scenes", "/scenes/p0", "/pairs", "/pairs/pair0", "/rejects",
    "/rejects?reason=missing_subject", "/focus", "/focus/pair0", "/runs", "/evaluations", "/none",
    "/review", "/add-subject", "/add-subject/several", "/jobs", "/paint", "/paint?subject1=s0",
]  # fmt: skip


@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 390)])
def test_axe_finds_nothing_serious_and_no_page_is_wider_than_its_window(
    address: str, dark: bool, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    complaints: list[str] = []
    with browser_page(width=width, dark=dark, complaints=complaints) as page:
        more = []
        for path in ("/runs", "/evaluations"):
            page.goto(address + path)
            more.append(page.get_attribute("tbody a", "href"))
            if path == "/runs":
                boxes = page.locator("input[name=run]").all()
                runs = "&".join(f"run={box.get_attribute('value')}" for box in boxes)
                more.append(f"/runs/compare?{runs}")
        for path in [*PAGES, *more]:
            page.goto(address + path)
            page.wait_for_load_state("load")
            found = Axe().run(page).response["violations"]
            bad = [
                (one["id"], [node["html"][:160] for node in one["nodes"][:3]])
                for one in found
                if one["impact"] in SERIOUS
            ]
            assert not bad, f"{path}: {json.dumps(bad, indent=1)}"
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{path} is {wide} pixels wide in a window of {width}"
    assert all("404" in one for one in complaints), complaints
