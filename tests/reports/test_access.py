"""The report for everybody: on a phone, in the dark, by keyboard, on paper, read aloud; and the
records behind its figures."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from pathlib import Path

import pytest
from ablation_fixture import make_ablation, write_pictures
from browsing import needs_browser, page_of, serious
from evaluated import HOSTILE
from report_fixture import make_report
from small_root import small_version

from focusdpo.reports.ablation_page import write_ablation_report
from focusdpo.reports.charts import line_chart
from focusdpo.reports.render import (
    chart_csv,
    counts_csv,
    file_name,
    file_uri,
    record_json,
    render,
)
from focusdpo.reports.report import write_report
from focusdpo.reports.view import Count, Line, LineChart, ReportData


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return make_report(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, data: ReportData) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(data), encoding="utf-8")
    return path


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
@pytest.mark.slow
def test_axe_finds_nothing_serious(report: Path, width: int, dark: bool) -> None:
    with page_of(report, width=width, dark=dark) as page:
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        levels = [
            int(heading.evaluate("h => h.tagName[1]"))
            for heading in page.locator("h1, h2, h3, h4, h5, h6").all()
        ]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False)), levels


@needs_browser
@pytest.mark.slow
def test_detail_is_folded_on_a_phone_and_open_on_a_desk(report: Path) -> None:
    heights = {}
    for width in (390, 1280):
        with page_of(report, width=width) as page:
            folds = page.locator("details.fold")
            assert folds.count() >= 8
            assert page.locator("details.fold[open]").count() == (folds.count() * (width > 390))
            closed = page.evaluate("document.documentElement.scrollHeight")
            for fold in folds.all():
                fold.evaluate("one => { one.open = true; }")
            heights[width] = closed, page.evaluate("document.documentElement.scrollHeight")
    assert heights[390][0] < heights[390][1] / 2
    assert heights[1280][0] == heights[1280][1]
    with page_of(report, width=390, java_script_enabled=False) as page:
        assert page.locator("details.fold:not([open])").count() == 0


@needs_browser
@pytest.mark.slow
def test_axe_finds_nothing_serious_in_an_ablation(tmp_path: Path) -> None:
    ablation = make_ablation()
    write_pictures(tmp_path, ablation)
    write_ablation_report(tmp_path, ablation)
    for dark in (False, True):
        with page_of(tmp_path / "ablation.html", dark=dark) as page:
            assert serious(page) == []
            assert page.locator(".chartbox").count() == page.locator(".chartbox .records").count()


@needs_browser
@pytest.mark.slow
def test_all_is_reached_by_keyboard(report: Path) -> None:
    with page_of(report) as page:
        page.keyboard.press("Tab")
        skip = page.evaluate("document.activeElement.textContent")
        assert skip == "Skip to the report"
        wanted = page.locator("main a, main button, main summary").count()
        reached = 0
        for _ in range(1000):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement === document.body"):
                break
            reached += page.evaluate("document.activeElement.matches('main a, button, summary')")
        assert reached >= wanted > 40
        page.locator("figure.flip button").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("figure.flip figcaption").first.text_content() == "loser"


@needs_browser
def test_on_paper_nothing_is_cut_or_dark(report: Path) -> None:
    with page_of(report, width=680, dark=True) as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= 680
        assert not page.locator("nav.toc").is_visible()
        assert not page.locator(".records a").first.is_visible()
        assert page.locator("details:not([open])").count() > 0
        data = page.pdf(format="A4", margin={"top": "15mm", "left": "15mm", "right": "15mm"})
        assert data.startswith(b"%PDF") and 4 <= data.count(b"/Type /Page\n") <= 40


@needs_browser
def test_every_figure_gives_its_records(report: Path, tmp_path: Path) -> None:
    with page_of(report, accept_downloads=True) as page:
        without = page.evaluate(
            "[...document.querySelectorAll('.chartbox, .card, .reject')]"
            ".filter(f => !f.querySelector('.records a')).map(f => f.textContent.slice(0, 60))"
        )
        assert without == []
        with page.expect_download() as started:
            page.locator(".chartbox .records a").first.click()
        file = tmp_path / started.value.suggested_filename
        started.value.save_as(file)
        rows = list(csv.reader(io.StringIO(file.read_text())))
        assert file.suffix == ".csv" and rows[0] == ["what", "from", "to", "count"]
        assert len(rows) > 10


def test_a_pairs_record_is_the_stored_one(tmp_path: Path) -> None:
    version = small_version(tmp_path / "root", prompt=HOSTILE)
    page = write_report(tmp_path / "report.html", root=tmp_path / "root").read_text()
    row = version.rows[0]
    start = page.index(f'download="pair-{row.pair_id}.json" href="') + len(
        f'download="pair-{row.pair_id}.json" href="'
    )
    uri = page[start : page.index('"', start)]
    record = json.loads(base64.b64decode(uri.partition("base64,")[2]))
    assert record["pair"]["id"] == row.pair_id and record["pair"]["prompt"] == HOSTILE
    assert record["where"]["shard"] == f"shards/{row.shard}"
    assert record["where"]["offset"] == row.offset
    assert record["lineage"].endswith(f"--pair {row.pair_id}")
    beside = json.loads((tmp_path / "report.json").read_text())
    assert beside["dataset"]["pairs"][0]["record"]["kind"] == "pair"


def test_a_point_between_gaps_is_drawn() -> None:
    line = Line(name="a", x=(0, 1, 2, 3, 4), y=(1, math.nan, 2, 3, math.nan))
    drawn = str(line_chart(LineChart(title="t", explain="", x_label="step", lines=(line,))))
    path = re.findall(r' d="([^"]+)"', drawn)[0]
    assert re.fullmatch(r"M[\d. ]+h0M[\d. ]+L[\d. ]+", path), path


def test_downloads_are_harmless_and_exact(data: ReportData) -> None:
    sheet = counts_csv([Count(label="=HYPERLINK(1)", count=3, explain='a "b", c')])
    assert sheet.splitlines()[1] == '\'=HYPERLINK(1),3,"a ""b"", c"'
    for sign in "=+-@\t\r＝＋－＠":  # noqa: RUF001
        (cell,) = csv.reader([counts_csv([Count(label=f"{sign}A1", count=3)]).splitlines()[1][:4]])
        assert cell[0].startswith("'"), sign
    assert json.loads(record_json({"a": float("nan"), "b": (1, 2.5)})) == {"a": None, "b": [1, 2.5]}
    assert file_name("|M_s| / ../x", "csv") == "m_s-x.csv" and file_name("σ", "json")
    assert file_uri("a", "csv") == "data:text/csv;charset=utf-8;base64,YQ=="
    training = data.training
    assert training is not None
    head, *rows = csv.reader(io.StringIO(chart_csv(training.charts[0])))
    line = training.charts[0].lines[0]
    assert head == ["line", "step", "value"]
    assert [float(value) for _, _, value in rows] == pytest.approx(line.y, rel=1e-5)
