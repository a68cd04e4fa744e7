"""The comparison's page: what differs between two versions or two adapters, exactly and no more."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from browsing import needs_browser, page_of, serious
from evaluated import GAIN, HOSTILE, evaluation_folder
from in_process import run
from kept_root import build, register

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.build.changes import changed_causes
from focusdpo.pipeline.subjects import registry
from focusdpo.reports.comparison_page import amount, compare, write_comparison
from focusdpo.store.artefacts import Store


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions: cat and dog; then fox comes and dog goes; then another setting."""
    root = tmp_path_factory.mktemp("dataset")
    store = Store.open(root)
    register(store, "cat", "dog")
    build(store)
    register(store, "fox")
    registry.remove(store, ["dog"])
    build(store)
    build(store, setting=1)
    return root


def versions(root: Path) -> list[str]:
    from focusdpo.flows.build.changes import versions

    return [one["id"] for one in versions(str(root))]


def test_what_came_and_went_is_shown_with_pictures(root: Path) -> None:
    first, second, _ = versions(root)
    data = compare(first, second, root=root, causes=changed_causes)
    change = data.dataset
    assert change is not None and data.adapters is None
    assert dict(change.subjects) == {"came": ("fox",), "went": ("dog",)}
    assert change.totals == (4, 4, 0), "two pairs each: fox, cat and fox; dog, cat and dog"
    assert len(change.came) == 4 and len(change.went) == 4
    assert {p.record["where"]["index"].split("/")[1] for p in change.came} == {second}
    assert {p.record["where"]["index"].split("/")[1] for p in change.went} == {first}
    assert [(one.label, one.count) for one in change.came_because] == [("subject added: fox", 4)]
    assert data.headline.text == "From 6 to 6 pairs: 4 came, 4 went."
    assert "fox came; dog went" in data.headline.detail
    back = compare(second, first, root=root, causes=changed_causes).dataset
    assert back is not None
    assert {p.id for p in back.went} == {p.id for p in change.came}


def test_the_same_version_twice_says_so(root: Path) -> None:
    data = compare("latest", "latest", root=root, causes=changed_causes)
    assert data.headline.text == "Both versions hold the same pairs."
    assert data.dataset is not None and data.dataset.totals == (0, 0, 0)


def test_numbers_lie_beside_the_page(root: Path, tmp_path: Path) -> None:
    first, second, _ = versions(root)
    page = write_comparison(tmp_path / "c.html", first, second, root=root, causes=changed_causes)
    values = json.loads((tmp_path / "c.json").read_text())
    assert values["dataset"]["totals"] == [4, 4, 0]
    assert values["dataset"]["came"][0]["win"].keys() == {"alt", "mime", "size", "blake2b"}
    text = page.read_text()
    assert f"--compare {first} {second}" in text
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)
    assert "default-src 'none'" in text


def test_adapters_are_paired_scene_by_scene(tmp_path: Path) -> None:
    a = evaluation_folder(tmp_path / "a")
    b = evaluation_folder(tmp_path / "b", [more + 0.05 for more in GAIN], "a2")
    data = compare(str(a), str(b), root=None)
    change = data.adapters
    assert change is not None and data.dataset is None
    row = next(r for r in change.rows if (r.metric, r.group) == ("identity", "all"))
    assert row.difference is not None
    assert row.difference.mean == pytest.approx(0.05)
    assert row.difference.low == pytest.approx(0.05) == row.difference.high, "each scene's alike"
    assert row.verdict == "better"
    assert row.base is not None and row.base.mean < 0.66, "A's adapter, and not the base"
    assert data.headline.text.startswith("Against A, B improves matched identity by +0.050")
    assert change.notes == ()
    backwards = compare(str(b), str(a), root=None).adapters
    assert backwards is not None
    other = next(r for r in backwards.rows if (r.metric, r.group) == ("identity", "all"))
    assert other.verdict == "worse" and other.difference is not None
    assert other.difference.mean == pytest.approx(-0.05)


def test_the_scenes_that_differ_most_stand_side_by_side(tmp_path: Path) -> None:
    a = evaluation_folder(tmp_path / "a", [0.0] * 12)
    gain = [0.3 if i == 7 else -0.2 * (i == 3) for i in range(12)]
    b = evaluation_folder(tmp_path / "b", gain, shade=200)
    change = compare(str(a), str(b), root=None).adapters
    assert change is not None
    shown = {one.why: one for one in reversed(change.examples)}
    assert shown["worst"].scene_id == "scene03" and shown["worst"].prompt == HOSTILE
    assert shown["best"].scene_id == "scene07"
    best = shown["best"]
    assert best.base.data != best.adapter.data, "each adapter's own picture"
    assert best.base.alt.startswith("A: cat, dog") and best.adapter.alt.startswith("B: cat, dog")
    assert best.record["A"]["image"] == best.record["B"]["image"] == "images/adapter/scene07-0.png"
    assert "the same adapter" in change.notes[0], "both are called a1"
    page = write_comparison(tmp_path / "c.html", str(a), str(b)).read_text()
    assert HOSTILE not in page and "B gains most" in page


def test_what_is_not_paired_is_refused(tmp_path: Path, root: Path) -> None:
    a = evaluation_folder(tmp_path / "a", held_out={"split": "val"})
    b = evaluation_folder(tmp_path / "b", held_out={"split": "test"})
    with pytest.raises(UserError, match=r"different settings \(held_out\.split val -> test\)"):
        compare(str(a), str(b), root=None)
    fewer = evaluation_folder(tmp_path / "c", GAIN[:11])
    whole = evaluation_folder(tmp_path / "d")
    with pytest.raises(UserError, match="different scenes: .*scene11"):
        compare(str(fewer), str(whole), root=None)
    with pytest.raises(UserError, match="no such folder; give two folders"):
        compare(str(tmp_path / "none"), str(whole), root=None)
    with pytest.raises(UserError, match="nowhere"):
        compare("nowhere", "latest", root=root, causes=changed_causes)
    (whole / "run.json").unlink()
    with pytest.raises(UserError, match=r"run\.json: missing"):
        compare(str(a), str(whole), root=None)


def test_the_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, _ = versions(root)
    out = tmp_path / "c.html"
    words = ["report", "--root", str(root), "--compare", first, second, "--out", str(out)]
    code, shown, _ = run([*words, "--json"], capsys)
    assert code == 0
    assert json.loads(shown.splitlines()[-1]) == {"command": "report", "report": str(out)}
    code, _, error = run(["report", "--compare", "a", "b", "--train", "x"], capsys)
    assert code == 2 and "--compare goes with" in error


def test_amounts() -> None:
    minus = "\N{MINUS SIGN}"
    assert [amount(3), amount(2.25), amount(-1, signed=True)] == ["3", "2.2", f"{minus}1"]
    assert amount(0, signed=True) == "0" and amount(4, signed=True) == "+4"
    assert amount(0.559, True) == "55.9 %" and amount(-0.041, True, True) == f"{minus}4.1 pp"


@needs_browser
@pytest.mark.parametrize(("kind", "dark"), [("dataset", False), ("adapters", True)])
@pytest.mark.slow
def test_the_page_is_accessible(root: Path, tmp_path: Path, kind: str, dark: bool) -> None:
    out = tmp_path / "c.html"
    if kind == "dataset":
        write_comparison(
            out, versions(root)[1], versions(root)[2], root=root, causes=changed_causes
        )
    else:
        a = evaluation_folder(tmp_path / "a")
        b = evaluation_folder(tmp_path / "b", [0.0] * 12, "a2")
        write_comparison(out, str(a), str(b))
    for width in (390, 1280):
        with page_of(out, width=width, dark=dark) as page:
            page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
            assert serious(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.emulate_media(media="print")
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
                "rgb(255, 255, 255)"
            )
