"""Pictures from any model: who failed, to the number; pairing; resume; what a reader finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import foreign_pictures as fp
import numpy as np
import pytest
from foreign_pictures import DOUBLED, MISSING, RIGHT, SWAPPED
from PIL import Image

from focusdpo.data_schemas.errors import UserError
from focusdpo.evaluation.folder import EvaluationFolder
from focusdpo.evaluation.measure.foreign_plan import pairing
from focusdpo.evaluation.measure.judging import match
from focusdpo.evaluation.measure.run import MeasureResult, Request, finished, measure
from focusdpo.evaluation.measure.sight import Looked, PhotographSight
from focusdpo.pipeline.matching import NOBODY
from focusdpo.pipeline.parts import Detection
from focusdpo.reports.report import write_report


def run(tmp_path: Path, shown: dict, **other: object) -> tuple[Request, MeasureResult]:  # type: ignore[type-arg]
    made = fp.request(fp.write_rows(tmp_path, shown), tmp_path / "out", **other)  # type: ignore[arg-type]
    return made, measure(made)


def test_failed_subjects_are_counted_to_the_number(tmp_path: Path) -> None:
    shown = {"good": [RIGHT] * 4, "bad": [RIGHT, DOUBLED, MISSING, SWAPPED]}
    request, result = run(tmp_path, shown)
    # Doubled: the red one of two. Missing: the blue one. Swapped: both stand in the other's looks.
    assert result.failed == {"good": 0.0, "bad": pytest.approx((0 + 0.5 + 0.5 + 1) / 4)}
    folder = EvaluationFolder(Path(result.out))
    failed = {(one.model, one.scene_id): one.failed_each for one in folder.foreign}
    order = list(folder.prompts)
    assert [failed["adapter", scene] for scene in order] == [
        (False, False), (True, False), (False, True), (True, True),
    ]  # fmt: skip
    assert result.of("duplicate")["bad"].mean == pytest.approx(0.5 / 4)
    assert result.of("missing")["bad"].mean == pytest.approx(0.5 / 4)
    assert result.of("extra")["bad"].mean == pytest.approx(1 / 4)
    rows = {(row.metric, row.model): row for row in result.rows if row.group == "all"}
    gap = rows["failed", "adapter - base"]
    assert gap.mean == pytest.approx(0.5) and gap.scenes == 4
    assert rows["delta_other", "adapter"].mean > rows["delta_other", "base"].mean
    assert finished(request) is not None and measure(request).resumed


def test_existing_readers_read_it(tmp_path: Path) -> None:
    _, result = run(tmp_path, {"good": [RIGHT] * 3, "bad": [DOUBLED] * 3, "third": [MISSING] * 3})
    page = write_report(tmp_path / "report.html", evaluate_dir=Path(result.out)).read_text()
    for text in ("good", "bad", "third", "Worst pictures", "Failed subjects", "--check"):
        assert text in page
    numbers = json.loads((tmp_path / "report.json").read_text())["evaluation"]
    assert numbers["names"] == ["good", "bad"]
    measured = numbers["measured"]
    assert measured["models"] == ["good", "bad", "third"]
    cells = next(row for row in measured["rows"] if row["title"] == "Failed subjects")
    assert [cell["mean"] for cell in cells["cells"]] == [0.0, 0.5, 0.5]
    assert [gap and gap["mean"] for gap in cells["differences"]] == [None, 0.5, 0.5]
    assert {case["model"] for case in measured["worst"]} == {"bad", "third"}
    assert all(one.boxes for one in EvaluationFolder(Path(result.out)).of("model 3"))


def test_one_model_alone(tmp_path: Path) -> None:
    _, result = run(tmp_path, {"mine": [RIGHT, MISSING]})
    assert result.failed == {"mine": 0.25} and result.names == {"adapter": "mine"}
    page = write_report(tmp_path / "report.html", evaluate_dir=Path(result.out)).read_text()
    assert "mine: 25.0 %" in page


def test_large_pictures_are_shown_small_and_judged_as_they_are(tmp_path: Path) -> None:
    table = fp.write_rows(tmp_path, {"a": [RIGHT, SWAPPED]})
    exact = measure(fp.request(table, tmp_path / "exact"))
    request = fp.request(table, tmp_path / "small")
    half = request.measure.model_copy(update={"shown_side": 24})  # the toy world has 48 pixels
    small = measure(replace(request, measure=half))
    assert small.rows == exact.rows
    whole, shown = (EvaluationFolder(Path(one.out)) for one in (exact, small))
    for at, (one, other) in enumerate(zip(whole.records, shown.records, strict=True)):
        brought = Image.open(tmp_path / f"a-{at}.png")
        assert one.image.endswith(".png") and (whole.picture(one.image) == brought).all()
        assert other.image.endswith(".jpg")
        expected = np.asarray(brought.reduce(2), np.float64)
        assert np.abs(shown.picture(other.image) - expected).mean() < 8
        assert other.boxes == tuple(tuple(round(v / 2) for v in box) for box in one.boxes)


def test_intervals_of_one_scene_are_said_to_tell_nothing(tmp_path: Path) -> None:
    table = fp.write_rows(tmp_path, {"a": [RIGHT, MISSING, DOUBLED]})
    assert not any("one scene" in note for note in measure(fp.request(table, tmp_path / "o")).notes)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    table.write_text("".join(f"{json.dumps({**row, 'prompt': ''})}\n" for row in rows))
    result = measure(fp.request(table, tmp_path / "out"))
    assert result.scenes == 1 and result.pictures == 3
    assert any("one scene" in note and "give the prompts" in note for note in result.notes)


class _Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_and_judges_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = fp.write_rows(tmp_path, {"a": [RIGHT, DOUBLED] * 5, "b": [MISSING, SWAPPED] * 5})
    looked: list[int] = []
    plain = PhotographSight.look

    def look(self: PhotographSight, pictures, words):  # type: ignore[no-untyped-def]
        if len(looked) == 3:
            looked.append(0)
            raise _Stopped
        looked.append(len(pictures))
        return plain(self, pictures, words)

    monkeypatch.setattr(PhotographSight, "look", look)
    monkeypatch.setattr("focusdpo.evaluation.measure.run.KEEP_EVERY", 0.0)
    with pytest.raises(_Stopped):
        measure(fp.request(table, tmp_path / "out"))
    assert not (tmp_path / "out" / "run.json").exists()
    result = measure(fp.request(table, tmp_path / "out"))
    assert sum(looked) == 20 and result.pictures == 20
    whole = measure(fp.request(table, tmp_path / "other"))
    assert replace(result, out="", seconds=0) == replace(whole, out="", seconds=0)
    # A row that is added later costs itself alone.
    before = sum(looked)
    line = table.read_text().splitlines()[0].replace("square 0", "square again")
    table.write_text(table.read_text() + line + "\n")
    assert measure(fp.request(table, tmp_path / "out")).pictures == 21
    assert sum(looked) == before + 1


def test_models_with_other_scenes_are_told(tmp_path: Path) -> None:
    table = fp.write_rows(tmp_path, {"a": [RIGHT] * 6, "b": [MISSING] * 6})
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    for row in rows[6:]:
        row["prompt"] += " elsewhere"
    table.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    result = measure(fp.request(table, tmp_path / "out"))
    assert any("unpaired" in note and "0 of them the same" in note for note in result.notes)
    gap = next(r for r in result.rows if r.metric == "failed" and r.model == "adapter - base")
    assert gap.mean == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("ours", "theirs", "shared", "told"),
    [("abcd", "abcd", 4, ""), ("abcd", "abcx", 3, "by pairs"), ("abcd", "axyz", 0, "unpaired")],
)
def test_pairing(ours: str, theirs: str, shared: int, told: str) -> None:
    found = pairing(list(ours), list(theirs), ("A", "B"))
    assert len(found.scenes) == shared and told in found.note


def test_told_places_decide_who_is_who() -> None:
    left, right = np.zeros((2, 8, 8), np.bool_)
    left[2:6, :3], right[2:6, 5:] = True, True
    seen = [Detection("", mask, (0, 0, 1, 1), 0.9) for mask in (left, right)]
    free = Looked(seen, np.zeros((2, 1), np.float32), np.zeros((2, 2)), np.zeros((2, 2), np.bool_))
    similarity = np.array([[0.1, 0.9], [0.9, 0.1]])
    assert match(similarity, free, (), 0.0, 0.5) == [1, 0]
    boxes = ((0, 0, 4, 8), (4, 0, 8, 8))
    assert match(similarity, free, boxes, 0.0, 0.5) == [0, 1], "the place outweighs looks"
    assert match(similarity, free, ((0, 0, 4, 1), boxes[1]), 0.0, 0.5) == [NOBODY, 1]


def test_what_cannot_be_measured_is_left_out_by_name(tmp_path: Path) -> None:
    table = fp.write_rows(tmp_path, {"a": [RIGHT] * 3})
    (tmp_path / "a-1.png").write_bytes(b"no picture")
    result = measure(fp.request(table, tmp_path / "out"))
    assert result.pictures == 2 and len(result.left_out) == 1
    assert "pictures.jsonl, line 2" in result.left_out[0] and "a-1.png" in result.left_out[0]
    with pytest.raises(UserError, match="line 2"):
        measure(fp.request(table, tmp_path / "strict", strict=True))
    for at in (0, 2):
        (tmp_path / f"a-{at}.png").write_bytes(b"")
    with pytest.raises(UserError, match="no picture of a can be measured"):
        measure(fp.request(table, tmp_path / "none"))


def test_a_mask_of_another_size_or_empty_is_named(tmp_path: Path) -> None:
    from PIL import Image

    table = fp.write_rows(tmp_path, {"a": [RIGHT]})
    own = tmp_path / "references" / "red"
    Image.new("L", (5, 5), 255).save(own / "0_mask.png")
    Image.new("L", (48, 48), 0).save(own / "1_mask.png")
    with pytest.raises(UserError, match="can be measured"):
        measure(fp.request(table, tmp_path / "out"))
    (own / "0_mask.png").unlink()
    told = measure(fp.request(table, tmp_path / "out")).left_out
    assert len(told) == 1 and "the mask is empty" in told[0] and "1_mask.png" in told[0]
