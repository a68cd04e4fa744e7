"""What Prefect's page shows of an evaluation: a row per metric with its verdict, and the report, as
far as a page that came over http can."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from focusdpo.data_schemas.runs import EvalRow
from focusdpo.evaluation.folder import EvaluateResult
from focusdpo.flows.evaluate.run import summary, verdicts
from focusdpo.flows.prefect import display


def result(out: str) -> EvaluateResult:
    """20 scenes: identity rises, more subjects are missing, one group has 4 scenes."""
    means = {"identity": (0.7, 0.8, 0.1), "missing": (0.1, 0.3, 0.2)}
    rows = [
        EvalRow(
            protocol="pocket",
            metric=metric,
            group=group,
            model=model,
            mean=mean,
            low=mean - 0.02,
            high=mean + 0.02,
            scenes=scenes,
        )
        for group, scenes in (("all", 20), ("3 subjects", 4))
        for metric, values in means.items()
        for model, mean in zip(("base", "adapter", "adapter - base"), values, strict=True)
    ]
    return EvaluateResult(
        out=out, adapter="run/adapter", rows=rows, scenes=20, seconds=1.0, resumed=False
    )


def test_a_row_per_metric_with_its_verdict() -> None:
    found = verdicts(result("out"))
    assert [(row["metric"], row["group"], row["verdict"]) for row in found] == [
        ("Matched identity", "all", "better"),
        ("Missing rate", "all", "worse"),
        ("Matched identity", "3 subjects", "too few scenes"),
        ("Missing rate", "3 subjects", "too few scenes"),
    ]
    assert found[0]["adapter - base"] == "+0.100 [+0.080, +0.120]"
    assert found[1]["adapter"] == "30.0 %"
    lines = [line for line in summary(result("out")).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 and "| better | 20 |" in lines[2] and "| worse | 20 |" in lines[3]


@pytest.mark.parametrize("served", [False, True])
def test_a_report_opens_from_a_page_of_http(
    served: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if served:
        monkeypatch.setenv(display.REPORTS, "https://host/runs")
    page = tmp_path / "one" / "report.html"
    if served:
        assert display.address_of(page) == "https://host/runs/one/report.html"
        return
    sink = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(sink, "PNG")
    assert display.address_of(page) is None
    words = display.in_words(page, sink.getvalue())
    assert f"`{page}`" in words and "](data:image/png;base64," in words and "file:" not in words
