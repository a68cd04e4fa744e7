"""A person who knows nothing of the code: a subject, a build, review, training, evaluation, export;
all in the browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from browsing import needs_browser
from playwright.sync_api import expect
from studio_walk import (
    Shots,
    bring_pictures,
    browser_page,
    drop_files,
    look_around,
    served,
    wait_for_job,
)

pytestmark = [pytest.mark.slow, needs_browser]


def add_subject(page, address: str, name: str, word: str, paths: list[Path]) -> None:
    page.goto(f"{address}/add-subject")
    drop_files(page, "#drop", paths)
    expect(page.locator("#pictures li")).to_have_count(len(paths))
    page.fill("#name", name)
    page.fill("#class_name", word)
    page.fill("#licence", "MIT")


def test_the_whole_story(tmp_path: Path) -> None:
    subjects = bring_pictures(tmp_path / "pictures")
    shots = Shots(tmp_path / "shots")
    complaints: list[str] = []
    root = tmp_path / "data"
    with served(root) as address, browser_page(complaints=complaints) as page:
        (first, (word, paths)), *others = subjects.items()
        add_subject(page, address, first, word, paths)
        assert "the whole picture counts as the subject" in page.inner_text("#pictures")
        shots.take(page, "1-add-subject", full=True)

        page.click("#pictures li:first-child a.button")
        page.wait_for_selector("#editor[data-ready]")
        page.click("#clear")
        page.keyboard.press("c")
        box = page.locator("#canvas").bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        expect(page.locator("#messages p")).to_have_count(1)
        expect(page.locator("#messages p")).to_have_count(0, timeout=60_000)
        page.keyboard.press("b")
        page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5, steps=5)
        page.mouse.up()
        shots.take(page, "2-mend-the-mask")
        page.click("#keep")
        page.wait_for_url("**/add-subject/*")
        assert "mask drawn by hand" in page.inner_text("#pictures")
        page.click("#save")
        page.wait_for_selector("#saved:visible")
        assert f"{first} is registered" in page.inner_text("#saved-text")
        for name, (kind, pictures) in others:
            add_subject(page, address, name, kind, pictures)
            page.click("#save")
            page.wait_for_selector("#saved:visible")

        page.click("#saved a.primary")
        page.fill("#build input[name=variants]", "2")
        page.click("#build summary")
        page.fill("#build textarea", "compose.pair_rate=1\ncompose.triple_rate=0")
        page.click("#build button")
        page.wait_for_url("**/jobs/2*")
        page.wait_for_selector("#phases progress")
        page.get_by_text("generate: ").first.wait_for()
        shots.take(page, "3-build")
        assert wait_for_job(page) == "done", page.inner_text("#log")
        assert "pairs" in page.inner_text("#summary")

        page.goto(f"{address}/review?reviewer=Ada&mode=open")
        page.wait_for_selector("#review[data-ready]")
        page.keyboard.press("a")
        expect(page.locator("#count")).to_contain_text("1 of")
        page.wait_for_timeout(500)
        page.keyboard.press("r")
        expect(page.locator("#count")).to_contain_text("2 of")
        shots.take(page, "4-review", full=True)
        page.goto(f"{address}/review?reviewer=Grace&mode=blind&show=all")
        page.wait_for_selector("#review[data-ready]")
        page.keyboard.press("1")
        expect(page.locator("#count")).to_contain_text("1 of")
        shots.take(page, "5-review-blind", full=True)

        page.goto(f"{address}/jobs")
        page.click("#build button")
        page.wait_for_url("**/jobs/2*")
        assert wait_for_job(page) == "done", page.inner_text("#log")
        assert "generate" not in page.inner_text("#phases"), "reviews alone cost no model"

        page.goto(f"{address}/jobs")
        page.fill("#train input[name=name]", "first-try")
        page.fill("#train input[name=steps]", "12")
        shots.take(page, "6-jobs")
        page.click("#train button")
        page.wait_for_url("**/jobs/2*")
        expect(page.locator("#phases")).to_contain_text("train: ", timeout=120_000)
        shots.take(page, "7-train")
        assert wait_for_job(page) == "done", page.inner_text("#log")

        page.goto(f"{address}/jobs")
        for name, count in (("pairs", 3), ("singles", 2), ("triples", 1), ("same_class", 1)):
            page.fill(f"#evaluate input[name={name}]", str(count))
        page.click("#evaluate button")
        page.wait_for_url("**/jobs/2*")
        assert wait_for_job(page) == "done", page.inner_text("#log")
        page.click("#result")
        page.wait_for_load_state()
        shots.take(page, "8-evaluation")

        page.goto(f"{address}/jobs")
        page.click("#export button")
        page.wait_for_url("**/jobs/2*")
        assert wait_for_job(page) == "done", page.inner_text("#log")
        page.get_by_role("link", name="README.md").wait_for()
        page.click("details summary")
        shots.take(page, "9-export")
        with page.expect_download() as download:
            page.get_by_role("link", name="README.md").click()
        assert "library_name: " in Path(download.value.path()).read_text()

        look_around(page, address, shots)
        page.goto(f"{address}/jobs")
        page.click("#share button")
        page.wait_for_url("**/jobs/2*")
        assert wait_for_job(page) == "done", page.inner_text("#log")
        page.get_by_role("link", name="README.md").wait_for()
    export = tmp_path / "data-runs" / "first-try-export"
    assert (export / "README.md").is_file() and list(export.glob("*.safetensors"))
    assert not complaints
