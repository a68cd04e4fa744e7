"""The ablation's files: every arm and number is there, the words claim what intervals allow."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from ablation_fixture import BEST, make_ablation, with_contrast, write_pictures
from browsing import Shown, needs_browser, page_of
from PIL import Image

from focusdpo.data_schemas.ablations import BASE, Ablation, read_ablation, to_json
from focusdpo.data_schemas.errors import UserError
from focusdpo.reports.ablation_page import (
    evenly,
    publish,
    read_grid,
    render,
    write_ablation_report,
)
from focusdpo.reports.ablation_tables import markdown
from focusdpo.reports.ablation_verdict import Lookup, and_list, find, spoken

HOSTILE = "<img src=https://evil.example/x onerror=alert(1)>|*&\"'"


@pytest.fixture(scope="module")
def ablation() -> Ablation:
    return make_ablation()


@pytest.fixture(scope="module")
def folder(ablation: Ablation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    write_pictures(folder, ablation)
    write_ablation_report(folder, ablation)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "ablation.html").read_text("utf-8")


@pytest.fixture(scope="module")
def cells(page: str) -> Shown:
    return Shown(page)


def verdict(ablation: Ablation) -> tuple[str, ...]:
    finding = find(Lookup(ablation))
    return finding.headline, *finding.details


def plain(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-")


def test_all_files_are_there(folder: Path):
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names == {
        "ablation.json", "ablation.html", "ablation.md", "curves.svg", "pictures.png",
    }  # fmt: skip


def test_every_arm_stands_in_the_tables_with_its_own_numbers(ablation: Ablation, cells: Shown):
    look = Lookup(ablation)
    main = [row for row in cells.rows if len(row) == 8][: 3 * 10]
    tables = [main[at : at + 10] for at in range(0, 30, 10)]
    for source, rows in zip(look.sources, tables, strict=True):
        assert "Failed subjects" in rows[0][1] and "Matched identity" in rows[0][2]
        arms = [arm for arm in ablation.arms if arm.source in ("", source)]
        for arm, row in zip(arms, rows[1:], strict=True):
            label = re.sub(r"[\s◆]", "", row[0])
            assert label == re.sub(r"[\s_]", "", arm.label)
            numbers = [float(n) for n in re.findall(r"[+-]?\d+\.\d+", plain(row[2]))]
            mean = look.row(arm.name, "identity")
            assert mean is not None
            expected = [mean.mean]
            if arm.name != BASE:
                one = look.contrast(arm.name, BASE, "identity")
                assert one is not None
                expected += [mean.seed_std, one.mean, one.family_low, one.family_high]
            assert numbers == pytest.approx(expected, abs=6e-4), arm.name
    assert look.sources[0] == "both", "the chosen arm's pairs come first"


def test_contrasts_of_the_chosen_arm(ablation: Ablation, cells: Shown):
    rows = [row for row in cells.rows if len(row) == 8 and "Matched identity" in row[1]]
    against = {re.sub(r"\s", "", row[0]): row for row in rows[:8]}
    assert len(against) == 8
    row = against["DPO"]
    one = Lookup(ablation).contrast(BEST, "dpo/both", "identity")
    assert one is not None and one.family == "main"
    numbers = [float(n) for n in re.findall(r"[+-]\d\.\d+", plain(" ".join(row[2:5])))]
    expected = [one.mean, one.low, one.high, one.family_low, one.family_high]
    assert numbers == pytest.approx(expected, abs=6e-4)
    assert "undecided" in row[7] and "better" in against["base"][7]


def test_the_verdict_beats_only_whom_the_family_interval_beats(ablation: Ablation):
    headline, *details = verdict(ablation)
    assert headline.startswith(
        "FocusDPO (M_s and M_d) on pairs of both sources: beats the base, SFT"
    )
    assert "PatchDPO (as released) on matched identity and leakage margin; is undecided" in headline
    assert "undecided against DPO and DPO in M_prior on" in headline
    text = " ".join(details)
    assert "matched identity +0.031 [+0.019, +0.043]" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "worse on copy-paste guard" in text


def test_the_verdict_follows_single_intervals(ablation: Ablation):
    changed = ablation
    for metric in ("identity", "leakage_margin"):
        for rival in ("dpo/both", "dpo_prior/both"):
            changed = with_contrast(changed, BEST, rival, metric, 0.001, 0.02)
    assert "undecided" not in verdict(changed)[0]
    assert "beats the base, SFT, DPO, DPO in M_prior, PatchDPO" in verdict(changed)[0]
    changed = with_contrast(changed, BEST, "dpo/both", "leakage_margin", -0.001, 0.02)
    assert (
        "is better on matched identity and undecided on leakage margin against DPO."
        in (verdict(changed)[0])
    )
    changed = with_contrast(changed, BEST, BASE, "identity", -0.03, -0.01)
    changed = with_contrast(changed, BEST, BASE, "leakage_margin", -0.03, -0.01)
    assert "is worse than the base on matched identity and leakage margin" in verdict(changed)[0]


def test_a_metric_on_too_few_scenes_reads_as_a_sentence(ablation: Ablation):
    few = tuple(
        dataclasses.replace(one, scenes=8) if one.metric == "leakage_margin" else one
        for one in ablation.contrasts
    )
    headline = verdict(dataclasses.replace(ablation, contrasts=few))[0]
    assert "against" in headline and "too few scenes on" not in headline
    assert ", with too few scenes to tell about leakage margin" in headline


def test_nothing_decided_is_said_to_be_undecided(ablation: Ablation):
    wide = tuple(
        dataclasses.replace(one, family_low=-0.1, family_high=0.2) for one in ablation.contrasts
    )
    headline, *details = verdict(dataclasses.replace(ablation, contrasts=wide))
    assert "beats" not in headline and "worse" not in headline
    assert headline.count("undecided") == 1
    assert not [text for text in details if "Against the base it is also" in text]


def test_a_rival_without_a_contrast_was_not_compared(ablation: Ablation):
    fewer = tuple(one for one in ablation.contrasts if one.b != "sft/both")
    headline = verdict(dataclasses.replace(ablation, contrasts=fewer))[0]
    assert headline.endswith("was not compared with SFT.")


def test_few_seeds_validation_and_another_arm_ahead_are_told(ablation: Ablation):
    changed = dataclasses.replace(ablation, seeds=(0,), protocol="pocket/val", best="focus_s/both")
    text = " ".join(verdict(changed)[1:])
    assert "One training seed" in text
    assert "These are validation scenes" in text
    assert "FocusDPO (M_s and M_d) on pairs of both sources has the highest mean" in text
    none = dataclasses.replace(ablation, best="nobody")
    assert verdict(none) == ("No FocusDPO arm was measured, so there is no verdict.",)
    assert "no verdict" in render(none, None)


def test_a_contrast_is_found_from_both_sides(ablation: Ablation):
    look = Lookup(ablation)
    forth, back = look.contrast(BEST, BASE, "identity"), look.contrast(BASE, BEST, "identity")
    assert forth is not None and back is not None
    assert (back.mean, back.low, back.family_high) == (-forth.mean, -forth.high, -forth.family_low)
    assert (look.verdict(forth), look.verdict(back)) == ("better", "worse")


def test_page_asks_for_nothing_from_outside(page: str, cells: Shown):
    cells.asks_for_nothing()
    assert "http" not in re.sub(r'http-equiv="', "", page)


def test_hostile_words_are_shown_and_do_nothing(ablation: Ablation, folder: Path):
    arms = tuple(dataclasses.replace(arm, label=HOSTILE) for arm in ablation.arms)
    hostile = dataclasses.replace(
        ablation, arms=arms, command=HOSTILE, machine={HOSTILE: HOSTILE}, protocol=HOSTILE
    )
    cells = Shown(render(hostile, read_grid(folder, Lookup(hostile))))
    assert cells.text.count(HOSTILE) > 50
    assert not [a for _, a in cells.tags if "evil" in a.get("src", "") or "onerror" in a]
    text = markdown(hostile)
    assert "<img" not in text and "&lt;img" in text
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line[:1] == "|"}
    assert widths == {4, 9}, "no cell is torn apart: readings, arms and contrasts"


def test_what_has_no_number_is_a_dash(ablation: Ablation, cells: Shown):
    groups = [[cell.strip() for cell in row] for row in cells.rows if len(row) == 6]
    assert ["base", "\N{EN DASH}", "0.700"] in [row[:3] for row in groups], "no margin of one alone"
    assert "nan" not in cells.text.lower()
    empty = tuple(
        dataclasses.replace(one, mean=math.nan, low=math.nan, high=math.nan)
        for one in ablation.contrasts
    )
    bare = Shown(render(dataclasses.replace(ablation, contrasts=empty), None))
    assert "nan" not in bare.text.lower()
    assert "was not compared with the base" in bare.text


def test_parts_are_optional(ablation: Ablation, tmp_path: Path):
    bare = dataclasses.replace(ablation, curves=(), search=(), agreement=(), pictures={})
    write_ablation_report(tmp_path, bare)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ablation.html", "ablation.json", "ablation.md",
    ]  # fmt: skip
    empty = dataclasses.replace(bare, rows=(), contrasts=(), arms=ablation.arms[:1])
    assert "no verdict" in render(empty, None)


def test_the_record_comes_back(ablation: Ablation, folder: Path, tmp_path: Path):
    text = to_json(ablation)
    assert "NaN" not in text and json.loads(text)["search"][0]["winner_rise"] is None
    back = read_ablation(folder / "ablation.json")
    assert math.isnan(back.search[0].winner_rise)
    assert to_json(back) == text
    before = (folder / "ablation.html").read_bytes()
    assert write_ablation_report(folder, back).read_bytes() == before


def test_a_bad_record_is_named(ablation: Ablation, tmp_path: Path):
    path = tmp_path / "ablation.json"
    with pytest.raises(UserError, match=r"ablation\.json: missing"):
        read_ablation(path)
    values = json.loads(to_json(ablation))
    values["rows"][3]["mean"] = "much"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"ablation\.json: rows\.3\.mean: .*valid number"):
        read_ablation(path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"ablation\.json: the file: Invalid JSON"):
        read_ablation(path)


def test_a_missing_picture_is_named_before_anything_is_written(ablation: Ablation, tmp_path: Path):
    write_pictures(tmp_path, ablation)
    for path in (tmp_path / "arms/sft/both/images").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"arms/sft/both/images/.*-0\.png: cannot be read"):
        write_ablation_report(tmp_path, ablation)
    assert not list(tmp_path.glob("ablation.*"))


def test_scenes_are_taken_at_even_distances(ablation: Ablation, folder: Path):
    names = [str(n) for n in range(80)]
    assert evenly(names, 8) == ["5", "15", "25", "35", "45", "55", "65", "75"]
    assert evenly(names[:3], 8) == names[:3]
    grid = read_grid(folder, Lookup(ablation))
    assert grid is not None and grid.of == 12
    assert [len(grid.scenes), len(grid.arms)] == [8, 9]
    assert [name for name, _ in grid.scenes[1].references] == ["duck", "teapot", "house"]
    first = Image.open(folder / f"base/images/base/{grid.scenes[0].id}-0.png")
    assert np.array_equal(grid.painted[0][0], np.asarray(first))


def test_the_labelled_grid_is_twice_as_large(folder: Path):
    sheet = np.asarray(Image.open(folder / "pictures.png"))
    # References and nine arms of 32 pixels with 4 between them.
    assert sheet.shape[0] == 4 + 10 * 36
    assert sheet[:, :160].min() < 100, "labels"


def test_curves_stand_alone(folder: Path):
    text = (folder / "curves.svg").read_text("utf-8")
    assert text.count("<svg") == 1
    links = set(re.findall(r'"(https?://[^"]+)"', text))
    assert {link.split("/")[2] for link in links} <= {
        "www.w3.org",
        "purl.org",
        "creativecommons.org",
    }


def test_markdown_says_the_same(ablation: Ablation):
    text = markdown(ablation)
    assert text.startswith("**FocusDPO (M\\_s and M\\_d) on pairs of both sources: beats the base")
    (best, *_) = [line for line in text.splitlines() if "| **FocusDPO, M\\_s and M\\_d** |" in line]
    assert "| 0.831<br>**+0.031 \\[+0.019, +0.043\\]** |" in best
    assert text.count("| base | 80.0 % | 0.800 |") == 3


def test_words():
    assert [and_list(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a", "a and b", "a, b and c",
    ]  # fmt: skip
    assert spoken("PatchDPO, as released") == "PatchDPO (as released)"
    assert spoken("DPO") == "DPO"


@needs_browser
def test_page_in_a_browser(folder: Path):
    with page_of(folder / "ablation.html", width=400) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= 400, "no sideways scrolling"
        assert tab.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0


def test_other_readings_are_told_with_their_intervals(page: str):
    """Green, red or grey by the family's interval; the default reading is what they are less."""
    text = markdown(make_ablation())
    assert "Other readings" in text
    assert "**\u22120.020 \\[\u22120.030, \u22120.010\\]**" in text
    assert "| +0.003 \\[\u22120.007, +0.013\\] |" in text
    assert 'id="readings"' in page
    without = dataclasses.replace(make_ablation(), readings=())
    assert "Other readings" not in markdown(without)


def test_what_belongs_into_documentation_is_copied(folder: Path, tmp_path: Path):
    write_ablation_report(folder, make_ablation())
    copied = publish(folder, tmp_path / "docs")
    assert {path.name for path in copied} == {"ablation.md", "curves.svg", "pictures.png"}
    text = (tmp_path / "docs/ablation.md").read_text("utf-8")
    for name in re.findall(r"\]\((.+?)\)", text):
        assert (tmp_path / "docs" / name).read_bytes() == (folder / name).read_bytes()
