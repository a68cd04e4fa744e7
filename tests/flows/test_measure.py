"""`focusdpo measure` and its Python calls, on the toy suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import foreign_pictures as fp
import numpy as np
import pytest
import toy_world
from foreign_pictures import DOUBLED, MISSING, RIGHT

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows import wiring
from focusdpo.flows.cli import main
from focusdpo.flows.measure.api import Measurer, measure

SETTINGS: dict[str, Any] = {"evaluate": {"resamples": 200, "batch": 4, "min_area": 0.001}}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(wiring.SUITES, "pocket", "toy_suite")
    monkeypatch.setattr("focusdpo.pocket.world.world.SCENE_SIZE", toy_world.SIDE)


def run_command(words: list[str]) -> object:
    """Its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code


def test_the_command_leaves_out_by_name_with_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = fp.write_rows(tmp_path, {"good": [RIGHT] * 2, "bad": [DOUBLED, MISSING]})
    words = ["measure", "--pictures", str(table), "--references", str(tmp_path / "references")]
    words += ["--set", "evaluate.resamples=200", "--set", "evaluate.min_area=0.001"]
    assert run_command([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    shares = {r["model"]: r["mean"] for r in told["rows"] if r["metric"] == "failed"}
    assert shares == {"base": 0.0, "adapter": 0.5, "adapter - base": 0.5}
    assert (tmp_path / "out" / "report.html").is_file()
    table.write_text(table.read_text() + "{broken\n")
    assert run_command([*words, "--out", str(tmp_path / "out")]) == 3
    assert "left out: " in (text := capsys.readouterr().out) and "line 5" in text
    assert run_command([*words, "--out", str(tmp_path / "strict"), "--strict"]) == 2
    assert "line 5" in capsys.readouterr().err


def test_three_lines_of_python(tmp_path: Path) -> None:
    table = fp.write_rows(tmp_path, {"good": [RIGHT] * 2, "bad": [DOUBLED, MISSING]})
    result = measure(
        table, out=tmp_path / "out", references=str(tmp_path / "references"), **SETTINGS
    )
    assert result.failed == {"good": 0.0, "bad": 0.5}


def test_batches_of_a_loop_of_ones_own(tmp_path: Path) -> None:
    fp.write_rows(tmp_path, {})
    meter = Measurer(out=tmp_path / "out", references=tmp_path / "references", **SETTINGS)
    with pytest.raises(UserError, match="no pictures"):
        meter.compute()
    for number, things in enumerate((RIGHT, DOUBLED)):
        picture = toy_world.picture(things, number)
        meter.add_batch([picture], [("red", "blue")], prompts=[f"p {number}"], model="mine")
    assert meter.compute().failed == {"mine": 0.25}
    meter.add_batch(
        [toy_world.picture(MISSING, 3)], [("red", "blue")], prompts=["p 3"], model="mine"
    )
    result = meter.compute()
    assert result.failed == {"mine": pytest.approx(1 / 3)} and result.pictures == 3
    with pytest.raises(UserError, match="1 images and 2 subjects"):
        meter.add_batch([picture], [("red",), ("blue",)])
    with pytest.raises(UserError, match="uint8"):
        meter.add_batch([np.zeros((4, 4, 3))], [("red",)])  # type: ignore[list-item]


def test_pictures_of_another_size_are_told_who_can_judge_them(tmp_path: Path) -> None:
    table = fp.write_rows(tmp_path, {"a": [RIGHT] * 2})
    from PIL import Image

    Image.new("RGB", (200, 100)).save(tmp_path / "a-1.png")
    result = measure(
        table, out=tmp_path / "out", references=str(tmp_path / "references"), **SETTINGS
    )
    assert "--lite DIR" in result.left_out[0] and "200 x 100" in result.left_out[0]
    with pytest.raises(UserError, match="is absent; docs/measure.md"):
        measure(table, out=tmp_path / "lite", lite=str(tmp_path / "nowhere"))


def test_the_check_stands_beside_the_results(tmp_path: Path) -> None:
    table = fp.write_rows(tmp_path, {"a": [RIGHT] * 2})
    result = measure(
        table,
        out=tmp_path / "out",
        references=str(tmp_path / "references"),
        check=True,
        measure={"composites": 6},
        **SETTINGS,
    )
    faults = {row.fault: row for row in result.check}
    assert set(faults) == {"none", "in place", "missing", "doubled", "replaced", "swapped"}
    assert all(row.pictures == 6 for row in result.check)
    # Some discs are too small for the toy judge at this size: most faults, and by their reasons.
    reasons = {"missing": "missing", "doubled": "doubled", "replaced": "doubled"}
    assert all(getattr(faults[fault], by) > 0.6 for fault, by in reasons.items())
    assert faults["swapped"].confused > 0.6 and faults["swapped"].found > faults["in place"].found
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Is the judge fit" in page and "replaced" in page


def test_exhibits_speak_of_the_models_by_their_names(tmp_path: Path) -> None:
    from focusdpo.flows.jobs import Page, Table, Text
    from focusdpo.flows.measure.config import MeasureRun
    from focusdpo.flows.measure.run import Measure
    from focusdpo.flows.runner import carry_out
    from focusdpo.flows.settings import resolve

    table = fp.write_rows(tmp_path, {"good|one": [RIGHT] * 2, "bad": [DOUBLED, MISSING]})
    given = {"pictures": str(table), "references": str(tmp_path / "references")}
    job = Measure(resolve(MeasureRun, {**given, "out": str(tmp_path / "out"), **SETTINGS}))
    result = carry_out(job, lambda *told: None, prefect=False)
    told, rows, page = job.exhibits(result)
    assert isinstance(told, Text) and isinstance(rows, Table) and isinstance(page, Page)
    assert "| metric | good\\|one | bad |" in told.markdown
    (failed,) = (line for line in told.markdown.splitlines() if line.startswith("| Failed"))
    assert "0.0" in failed and "50.0" in failed
    assert {row["model"] for row in rows.rows} == {"good|one", "bad", "bad - good|one"}
    assert page.path.is_file() and job.changed(result) and job.finished()
