"""Orders from a CSV: all checked before a model is loaded, stopped and gone on."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import toy_suite
from hypothesis import given
from hypothesis import strategies as st
from in_process import run
from PIL import Image
from toy_root import Toy

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.generate.batch_jobs import (
    COLUMNS,
    MAX_PICTURES,
    Job,
    check_out,
    parse_jobs,
    parse_seeds,
)
from focusdpo.flows.generate.painted import read_about

Capture = pytest.CaptureFixture[str]
HEAD = "prompt,reference_1,class_1,reference_2,class_2,seeds,out\n"


def batch(toy: Toy, rows: str, capsys: Capture) -> tuple[int, dict, str]:
    (toy.subjects / "jobs.csv").write_text(HEAD + rows)
    out = toy.root.parent / "out"
    order = ["generate", "--batch", str(toy.subjects / "jobs.csv"), "--out", str(out), "--json"]
    code, said, err = run(order, capsys)
    return code, json.loads(said.splitlines()[-1]), err


@pytest.fixture
def out(toy: Toy) -> Path:
    return toy.root.parent / "out"


def test_every_row_becomes_a_picture_and_finished_ones_stay(
    toy: Toy, out: Path, capsys: Capture
) -> None:
    rows = (
        "a disc on grey,red/0.png,disc,,,3,one.png\n"
        "\n"
        ",red/0.png,disc,green/0.png,square,0-1,both/two.png\n"
    )
    code, told, _ = batch(toy, rows, capsys)
    assert code == 0 and told["painted"] == ["one.png", "both/two.png"]
    assert read_about(out / "one.png").seeds == (3,)
    assert read_about(out / "both" / "two.png").class_names == ("disc", "square")
    assert read_about(out / "both" / "two.png").seeds == (0, 1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    code, told, _ = batch(toy, rows, capsys)
    assert code == 0 and not told["painted"] and len(told["skipped"]) == 2
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}


def test_a_stopped_batch_goes_on_and_a_changed_row_is_painted_anew(
    toy: Toy, out: Path, capsys: Capture
) -> None:
    rows = ["a disc on grey,red/0.png,disc,,,3,one.png\n", ",blue/0.png,disc,,,1,two.png\n"]
    batch(toy, "".join(rows), capsys)
    first = (out / "one.png").read_bytes()
    (out / "one.png").unlink()
    code, told, _ = batch(toy, "".join(rows), capsys)
    assert code == 0 and told["painted"] == ["one.png"] and told["skipped"] == ["two.png"]
    assert (out / "one.png").read_bytes() == first
    rows[1] = rows[1].replace(",1,", ",2,")
    code, told, _ = batch(toy, "".join(rows), capsys)
    assert told["painted"] == ["two.png"] and read_about(out / "two.png").seeds == (2,)
    (toy.subjects / "red" / "0.png").write_bytes((toy.subjects / "green" / "0.png").read_bytes())
    assert batch(toy, "".join(rows), capsys)[1]["painted"] == ["one.png"]


def test_a_failed_row_is_told_and_the_others_go_on(toy: Toy, out: Path, capsys: Capture) -> None:
    """A picture of somebody else is not written over, and one that shows nothing cannot serve."""
    out.mkdir()
    Image.new("RGB", (8, 8)).save(out / "taken.png")
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(toy.subjects / "nothing.png")
    rows = (
        ",red/0.png,disc,,,0,taken.png\n,nothing.png,disc,,,0,empty.png\n"
        ",red/0.png,disc,,,0,good.png\n"
    )
    before = (out / "taken.png").read_bytes()
    code, told, _ = batch(toy, rows, capsys)
    assert code == 3 and told["painted"] == ["good.png"]
    assert "not from `focusdpo generate`" in told["failed"]["2"]
    assert "nothing is visible" in told["failed"]["3"]
    assert (out / "taken.png").read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == ["good.png", "taken.png"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,none.png,disc,,,0,a.png", "row 2, column reference_1: {folder}/none.png: no such"),
        ("x,red/0.png,disk,,,0,a.png", "row 2, column class_1: --class-name disk"),
        ("x,red/0.png,disc,blue/0.png,,0,a.png", "row 2, column class_2: empty"),
        ("x,,,blue/0.png,disc,0,a.png", "row 2, column reference_1: empty"),
        ("x,red/0.png,disc,,,0,../a.png", "row 2, column out: '../a.png': expected a relative"),
        ("x,red/0.png,disc,,,0,/tmp/a.png", "row 2, column out"),
        ("x,red/0.png,disc,,,0,a.jpg", "row 2, column out"),
        ("x,red/0.png,disc,,,x,a.png", "row 2, column seeds: 'x' is no seed"),
        ("x,red/0.png,disc,,,9-1,a.png", "row 2, column seeds: '9-1': a range goes up"),
        ("x,red/0.png,disc,,,0-64,a.png", f"row 2, column seeds: more than {MAX_PICTURES} seeds"),
        ("x\x07,red/0.png,disc,,,0,a.png", "row 2, column prompt: the prompt's character 2"),
        ("x,red/0.png,disc,0,a.png", "row 2: 5 cells, the head has 7"),
        ("x,red/0.png,disc,,,0,A.png\nx,red/0.png,disc,,,0,a.png", "row 3, column out: the same"),
        ('x,"red/0.png,disc,,,0,a.png', "not CSV"),
        ("", "no rows below the head"),
    ],
)
def test_bad_rows_are_told_before_a_model_is_loaded(
    toy: Toy, out: Path, capsys: Capture, monkeypatch, row: str, message: str
) -> None:
    monkeypatch.setattr(toy_suite, "build", lambda *_, **__: pytest.fail("a model is loaded"))
    good = "x,red/0.png,disc,,,0,good.png\n" if row else ""
    code, told, err = batch(toy, f"{row}\n{good}", capsys)
    assert code == 2 and message.format(folder=toy.subjects) in err, err
    assert told["exit_code"] == 2 and not out.exists()


def test_a_wrong_head_is_told() -> None:
    with pytest.raises(UserError, match="row 1: no such column: 'seed'; missing: class_1, out"):
        parse_jobs("prompt,reference_1,seed\n")
    with pytest.raises(UserError, match="row 1: twice: out"):
        parse_jobs("reference_1,class_1,out,out\n")
    with pytest.raises(UserError, match="row 1: missing"):
        parse_jobs("")


def test_a_spreadsheets_mark_and_line_ends_are_read(toy: Toy, out: Path, capsys: Capture) -> None:
    text = (HEAD + ",red/0.png,disc,,,0,a.png\n").replace("\n", "\r\n")
    path = toy.subjects / "marked.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert run(["generate", "--batch", str(path), "--out", str(out)], capsys)[0] == 0
    path.write_bytes(text.encode("utf-16"))
    code, _, err = run(["generate", "--batch", str(path), "--out", str(out)], capsys)
    assert code == 2 and "cannot be read as UTF-8" in err


WORD = st.text(st.characters(exclude_categories=("C", "Z"), codec="utf-8"), min_size=1, max_size=12)
LINE = st.lists(WORD, min_size=1, max_size=5).map(" ".join)
SEEDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5).map(tuple)


@given(
    st.lists(
        st.tuples(st.none() | LINE, st.lists(st.tuples(LINE, LINE), min_size=1, max_size=3), SEEDS),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_written_is_read(orders: list) -> None:
    """Quotes, commas and signs of any script come back as they were."""
    sink = io.StringIO()
    table = csv.DictWriter(sink, COLUMNS)
    table.writeheader()
    wanted = []
    for at, (prompt, subjects, seeds) in enumerate(orders):
        row = {"prompt": prompt or "", "seeds": ",".join(map(str, seeds)), "out": f"{at}.png"}
        for number, (file, word) in enumerate(subjects, start=1):
            row |= {f"reference_{number}": file, f"class_{number}": word}
        table.writerow(row)
        wanted.append(
            Job(row=at + 2, prompt=prompt, subjects=tuple(subjects), seeds=seeds, out=f"{at}.png")
        )
    assert parse_jobs(sink.getvalue()) == wanted


@given(st.text())
def test_any_text_is_jobs_or_a_told_error(text: str) -> None:
    for whole in (text, HEAD + text):
        try:
            jobs = parse_jobs(whole)
        except UserError:
            continue
        assert jobs and all(job.out.endswith(".png") for job in jobs)


@given(st.text(max_size=30))
def test_an_out_stays_in_its_folder(text: str) -> None:
    for name in (text, f"{text}.png"):
        try:
            check_out(name)
        except UserError:
            continue
        folder = Path("/results")
        assert (folder / name).resolve().is_relative_to(folder) and name.endswith(".png")


@given(st.text(alphabet="0123456789,- x", max_size=20))
def test_seeds_are_numbers_or_a_told_error(text: str) -> None:
    try:
        seeds = parse_seeds(text)
    except UserError:
        return
    assert 1 <= len(seeds) <= MAX_PICTURES and all(0 <= seed < 2**31 for seed in seeds)
