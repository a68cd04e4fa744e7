"""The report's page: self-contained, escaped, honest; and in a real browser without a complaint."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
from browsing import Shown, needs_browser, page_of
from evaluated import HOSTILE
from hypothesis import given
from hypothesis import strategies as st
from report_fixture import make_report

from focusdpo.data_schemas.errors import UserError
from focusdpo.reports.charts import line_chart, nice_ticks, running_mean
from focusdpo.reports.metric_texts import (
    Headline,
    bounds,
    choose,
    headline,
    judge,
    mean_text,
    number,
)
from focusdpo.reports.render import as_json, record_json, render
from focusdpo.reports.report import write_report
from focusdpo.reports.view import EvaluationPart, Interval, ReportData

finite = st.floats(-1e6, 1e6, allow_nan=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return make_report(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return render(data)


@pytest.fixture(scope="module")
def elements(page: str) -> Shown:
    return Shown(page)


def test_page_asks_for_nothing_from_outside(page: str, elements: Shown) -> None:
    elements.asks_for_nothing()
    style = page.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert len(page) < 8_000_000


def test_policy_allows_only_the_own_script_and_style(elements: Shown) -> None:
    policies = [a["content"] for t, a in elements.tags if a.get("http-equiv")]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policies[0]
    assert sum(tag == "script" for tag, _ in elements.tags) == 1


def test_hostile_words_are_shown_and_do_nothing(elements: Shown) -> None:
    text = elements.text
    assert text.count(HOSTILE) >= 4, "prompt, reject, tooltip, configuration"
    assert not [a for t, a in elements.tags if "evil.example" in a.get("src", "")]


def test_every_picture_and_chart_has_words(elements: Shown) -> None:
    pictures = [a for t, a in elements.tags if t == "img"]
    assert len(pictures) > 50
    charts = [a for t, a in elements.tags if t == "svg" and a.get("role") == "img"]
    assert charts
    assert all(len(chart["aria-label"]) > 15 for chart in charts)


TEXT_COLOURS = ("ink", "muted", "base", "adapter", "winner", "loser", "better", "worse")


def _luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, WCAG 2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_colours_have_contrast_in_light_and_dark(page: str) -> None:
    themes = re.findall(r":root \{(.*?)\}", page, re.DOTALL)[:2]
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", theme))
        ground = _luminance(colours["bg"])
        for name in TEXT_COLOURS:
            light, dark = sorted((ground, _luminance(colours[name])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, theme)


def test_looks_have_a_dot_each_and_a_line_at_the_adapter(data: ReportData) -> None:
    assert data.training is not None
    drawn = str(line_chart(data.training.looks[0]))
    assert drawn.count('class="dot ') == 7, "none where a look measured nothing"
    assert "nan" not in drawn
    assert ">adapter</text>" in drawn and ">base</text>" in drawn


def test_parts_are_optional(data: ReportData) -> None:
    alone = dataclasses.replace(data, training=None, evaluation=None)
    shown = Shown(render(alone))
    text = shown.text
    assert "12 preference pairs" in text
    assert "have not been compared" in text
    assert "evaluation" not in [attributes.get("id") for _, attributes in shown.tags]


def test_json_holds_the_numbers_and_no_pictures(data: ReportData) -> None:
    values = json.loads(record_json(data))
    assert data.evaluation is not None and data.evaluation.rows[0].difference is not None
    assert values["dataset"]["pairs"][0]["win"].keys() == {"alt", "mime", "size", "blake2b"}
    assert values["evaluation"]["rows"][0]["difference"]["low"] == pytest.approx(
        data.evaluation.rows[0].difference.low
    )
    assert as_json((math.nan, math.inf, 1.5)) == [None, None, 1.5]


@needs_browser
@pytest.mark.slow
def test_page_in_a_browser(page: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    with page_of(path, width=390) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, "no sideways scrolling"
        broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
        assert tab.evaluate(broken) == 0
        first = "document.querySelector('figure.flip img').src"
        flip = "document.querySelector('figure.flip button').click()"
        winner = tab.evaluate(first)
        tab.evaluate(flip)
        assert tab.evaluate(first) == tab.evaluate("document.querySelector('img.lose').src")
        assert tab.evaluate(first) != winner
        tab.evaluate(flip)
        assert tab.evaluate(first) == winner
        tab.evaluate("document.getElementById('flip-all').click()")
        pressed = tab.locator("figure.flip button[aria-pressed=true]").count()
        assert pressed == tab.locator("figure.flip").count()


@needs_browser
def test_page_works_without_scripts(page: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    with page_of(path, java_script_enabled=False) as tab:
        losers = tab.locator("img.lose")
        assert losers.count() == 12, "losers stand beside winners, no flip needed"
        assert losers.first.is_visible()


@given(finite, finite, st.sampled_from(["higher", "lower"]))
def test_verdict_mirrors_with_the_direction(a: float, b: float, better: str) -> None:
    low, high = min(a, b), max(a, b)
    verdict = judge(Interval(mean=(a + b) / 2, low=low, high=high), better, 50)  # type: ignore[arg-type]
    mirrored = judge(Interval(mean=-(a + b) / 2, low=-high, high=-low), better, 50)  # type: ignore[arg-type]
    opposite = {"better": "worse", "worse": "better", "undecided": "undecided"}
    opposite["unchanged"] = "unchanged"
    assert mirrored == opposite[verdict]
    assert (verdict in ("undecided", "unchanged")) == (low <= 0 <= high)


def _with_difference(data: ReportData, low: float, high: float) -> EvaluationPart:
    assert data.evaluation is not None
    difference = Interval(mean=(low + high) / 2, low=low, high=high)
    rows = tuple(
        dataclasses.replace(row, difference=difference, verdict=judge(difference, row.better, 50))
        for row in data.evaluation.rows
    )
    return dataclasses.replace(data.evaluation, rows=rows)


def _headline(part: EvaluationPart) -> Headline:
    return headline(part.rows, part.protocol)


def test_headline_says_what_the_intervals_allow(data: ReportData) -> None:
    undecided = _headline(_with_difference(data, -0.01, 0.03)).text
    assert undecided.startswith(
        "Failed subjects, matched identity and leakage margin are undecided: +1.0 pp"
    )
    assert undecided.endswith("all intervals hold zero.")
    assert "improves" not in undecided
    better = _headline(_with_difference(data, 0.01, 0.03))
    assert "improves matched identity by +0.020 [+0.010, +0.030]" in better.text
    assert "; the adapter worsens failed subjects by +2.0 pp" in better.text
    assert "Worse: confusion rate, missing rate, duplicate rate, pattern error," in better.detail
    worse = _headline(_with_difference(data, -0.03, -0.01)).text
    assert worse.startswith("The adapter improves failed subjects by \N{MINUS SIGN}2.0 pp")
    assert "; the adapter worsens matched identity by" in worse
    assert "and leakage margin by \N{MINUS SIGN}0.020" in worse


@given(st.dictionaries(st.text(min_size=1, max_size=4), finite, max_size=60), st.integers(0, 4))
def test_examples_are_chosen_by_rule(scores: dict[str, float], extremes: int) -> None:
    items = list(scores.items())
    chosen = choose(items, extremes=extremes, randoms=5)
    assert chosen == choose(items[::-1], extremes=extremes, randoms=5), "order must not matter"
    names = [name for _, name in chosen]
    assert len(names) == len(set(names))
    worst = [scores[name] for why, name in chosen if why == "worst"]
    others = [value for name, value in scores.items() if ("worst", name) not in chosen]
    assert not worst or not others or max(worst) <= min(others)


@given(finite, finite)
def test_ticks_lie_in_the_range(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    assert 1 <= len(ticks) <= 12
    span = max(high - low, 1e-12)
    assert all(low - 1e-6 * span <= tick <= high + 1e-6 * span for tick in ticks)


def test_running_mean_skips_gaps() -> None:
    assert running_mean([1.0, math.nan, 3.0], 3) == [1.0, 2.0, 3.0]
    assert math.isnan(running_mean([math.nan], 1)[0])


def test_numbers_carry_their_unit() -> None:
    assert number(-0.061, "rate", signed=True) == "\N{MINUS SIGN}6.1 pp"
    assert number(0.121, "rate") == "12.1 %"
    assert number(float("nan"), "cosine") == "\N{EN DASH}"
    assert bounds(Interval(mean=0, low=-3, high=4), "degrees") == "[\N{MINUS SIGN}3.0, 4.0]"


def test_small_differences_keep_their_digits() -> None:
    tiny = Interval(mean=-0.0001234, low=-0.0004, high=0.0002)
    assert bounds(tiny, "cosine", signed=True) == "[\N{MINUS SIGN}0.0004, +0.0002]"
    assert mean_text(tiny, "cosine", signed=True) == "\N{MINUS SIGN}0.0001"
    none = Interval(mean=0.0, low=0.0, high=0.0)
    assert mean_text(none, "rate", signed=True) == "0.0 pp"


def test_few_scenes_get_no_verdict() -> None:
    clear = Interval(mean=0.2, low=0.1, high=0.3)
    assert judge(clear, "higher", 9) == "too few scenes"
    assert judge(clear, "higher", 10) == "better"


def test_nothing_given_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to report"):
        write_report(tmp_path / "report.html")


def test_unfinished_training_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json: missing, so this run did not finish"):
        write_report(tmp_path / "report.html", train_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"moved: no such folder; give one that a run wrote"):
        write_report(tmp_path / "report.html", train_dir=tmp_path / "moved")
