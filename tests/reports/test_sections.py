"""What the report reads is what the store, training and evaluation wrote."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import CHROMIUM, page_of
from evaluated import HOSTILE, agreement_row, evaluation_folder, scene_record
from PIL import Image
from small_root import small_version

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.model.training.config import TrainConfig
from focusdpo.reports.dataset_section import choose_pairs, collect_dataset
from focusdpo.reports.evaluation_section import (
    agreement_lines,
    agreement_notes,
    collect_evaluation,
    verdict_words,
)
from focusdpo.reports.report import write_report
from focusdpo.reports.training_section import collect_training
from focusdpo.store.samples import Sample


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    small_version(root, prompt=HOSTILE)
    return root


def test_dataset_counts_are_the_stores(root: Path) -> None:
    part = collect_dataset(root, "latest", pairs=3, rejects=2)
    assert {step.label: step.count for step in part.funnel} == {
        "scenes": 5,
        "sampled": 10,
        "complete": 5,
        "disrupted": 5,
        "pairs": 5,
    }
    assert [(r.label, r.count) for r in part.reject_reasons] == [("missing subject", 5)]
    assert dict(part.breakdowns)["By mode"][0].count == 5
    assert [card.margin for card in part.pairs] == pytest.approx([0.5, 0.52, 0.54])
    repainted = [(s.class_name, s.repainted) for s in part.pairs[0].subjects]
    assert repainted == [("cat", True), ("dog", False)]
    assert len(part.rejects) == 2
    assert part.rejects[0].image is not None
    assert part.rejects[0].prompt == HOSTILE
    win = next(h for h in part.histograms if h.title.startswith("Identity")).counts[0]
    assert sum(win[2]) == 10, "every winner's identity lies in a bin"
    assert ("generate", "5", "10", "10.0") in part.stages


def test_dataset_without_its_stages_still_reports(root: Path, tmp_path: Path) -> None:
    """A copy of versions and shards alone, as a team would share it."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("stages"))
    part = collect_dataset(copy, "latest", pairs=3, rejects=2)
    assert len(part.pairs) == 3
    assert part.rejects == ()
    assert part.funnel[-1].count == 5


def test_pairs_are_taken_from_each_mode(root: Path) -> None:
    from focusdpo.store.versions import open_version

    many = [
        dataclasses.replace(row, mode=mode, pair_id=f"{mode}{n}{row.pair_id}")
        for row in open_version(root).rows
        for mode, copies in (("all", 9), ("rank", 1))
        for n in range(copies)
    ]
    modes = [row.mode for row in choose_pairs(many, 8)]
    assert modes.count("all") == modes.count("rank") == 4
    assert len(choose_pairs(many, 500)) == len(many)


def test_dataset_report_in_a_browser(root: Path, tmp_path: Path) -> None:
    out = write_report(tmp_path / "report.html", root=root, commands=["focusdpo demo"])
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert numbers["dataset"]["funnel"][0] == {"label": "scenes", "count": 5, "explain": ""}
    assert numbers["training"] is None
    assert "MIT" in json.dumps(numbers["lineage"])
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with page_of(out, width=390) as tab:
        assert tab.locator(".pairs script, main script").count() == 0
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_report_loads_no_model(root: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from focusdpo.reports.report import write_report; "
        "write_report(Path(sys.argv[2]), root=Path(sys.argv[1])); "
        "assert not {'torch', 'prefect', 'matplotlib'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(root), str(tmp_path / "report.html")]
    subprocess.run(command, check=True, timeout=120)


def test_training_run_is_read(
    backbone: FluxBackbone, pair_samples: list[Sample], tmp_path: Path
) -> None:
    from focusdpo.model.training.run import train

    config = TrainConfig(steps=3, batch_pairs=2, micro_pairs=2, warmup=1, mixed_precision="no")
    train(backbone, pair_samples, config, tmp_path)
    part = collect_training(tmp_path)
    assert part.objective == "focus_dpo"
    loss = next(chart for chart in part.charts if chart.title == "Loss")
    assert loss.lines[0].x == (1.0, 2.0, 3.0)
    assert np.isfinite(loss.lines[0].y).all()
    titles = {chart.title for chart in part.buckets}
    assert titles == {
        "A(t): alignment",
        "|M_s| / |M_prior|",
        "Implicit accuracy",
        "What is left of a pair's gradient",
        "e_w against the reference policy",
        "e_l against the reference policy",
    }
    assert part.focus is not None
    assert [row.symbol for row in part.focus.rows][:5] == ["M_prior", "M_d", "M'", "M_s", "W"]
    assert all(len(row.maps) == len(part.focus.sigmas) for row in part.focus.rows)
    out = write_report(tmp_path / "report.html", train_dir=tmp_path)
    assert "Where the loss looks" in out.read_text()


def _run_folder(folder: Path, run: dict[str, Any], **config: object) -> Path:
    """The summary and settings of a training run; no tables."""
    (folder / "run.json").write_text(json.dumps({"steps": 60, "objective": "dpo", **run}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _tables(folder: Path, columns: dict[str, list[float]]) -> None:
    """One pair a step, at sigma 0.15 and 0.85 by turns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    steps = np.arange(1, len(next(iter(columns.values()))) + 1)
    bucket = np.where(steps % 2, 1, 8)
    edges = {"sigma_low": bucket / 10, "sigma_high": (bucket + 1) / 10}
    rows = {"step": steps, **columns}
    pq.write_table(pa.table(rows), folder / "steps.parquet")
    buckets = {**rows, **edges, "bucket": bucket, "count": np.ones(len(steps))}
    pq.write_table(pa.table(buckets), folder / "buckets.parquet")


def test_pair_gradient_and_safeguard_are_drawn_over_steps_and_noise(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path, {}, guards={"saturation": 0.02})
    _tables(folder, {"pair_gradient": [0.5, 0.3, 0.1, 0.1], "safeguard": [1.0, 0.5, 1.0, 0.5]})
    part = collect_training(folder)
    curves = {chart.title: chart for chart in part.charts}
    left = curves["What is left of a pair's gradient"]
    assert left.lines[0].y == (0.5, 0.3, 0.1, 0.1)
    assert (left.level, left.level_label) == (0.02, "saturated")
    buckets = {
        chart.title: [(b.start, round(b.mean, 6)) for b in chart.buckets] for chart in part.buckets
    }
    assert buckets == {
        "What is left of a pair's gradient": [(0.1, 0.3), (0.8, 0.2)],
        "SDPO's scale on the loser's gradient": [(0.1, 1.0), (0.8, 0.5)],
    }
    assert part.looks == ()


def test_an_objective_without_pairs_has_no_chart_of_them(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path, {})
    _tables(folder, {"loss": [1.0, 0.5], "pair_gradient": [np.nan] * 2, "safeguard": [np.nan] * 2})
    part = collect_training(folder)
    assert [chart.title for chart in part.charts] == ["Loss"]
    assert part.buckets == ()


LOOKS = [
    {"step": 20, "score": 0.01, "identity": 0.02, "confusion": 0.1, "copy_paste": 0.01},
    {"step": 40, "score": 0.03, "identity": 0.01, "confusion": 0.0, "copy_paste": 0.02},
    {"step": 60, "score": 0.02, "identity": float("nan"), "confusion": 0.1, "copy_paste": 0.03},
]


def test_looks_are_drawn_with_the_step_that_the_adapter_holds(tmp_path: Path) -> None:
    run = {"validation": LOOKS, "adapter_step": 40, "stopped": True}
    looks = {"every": 20, "keep": "best", "patience": 1, "metric": "identity"}
    part = collect_training(_run_folder(tmp_path, run, steps=400, validation=looks))
    rise, harm, copies = part.looks
    assert [line.name for line in rise.lines] == ["Matched identity", "Score"]
    assert rise.lines[1].x == (0.0, 20, 40, 60)
    assert rise.lines[1].y == (0.0, 0.01, 0.03, 0.02)
    assert rise.lines[0].x == (0.0, 20, 40), "what was not measured is left out"
    assert [line.name for line in harm.lines] == ["Confusion rate"]
    assert copies.lines[0].y[-1] == 0.03
    assert {chart.mark for chart in part.looks} == {40.0}
    told = {fact.label: (fact.value, fact.note) for fact in part.facts}
    assert told["adapter of step"] == ("40", "best of 3 looks by matched identity")
    assert told["stopped early"] == ("yes", "")
    assert part.notes == (
        "Validation ended training at step 60 of 400: the last look was no better than one before.",
    )
    page = write_report(tmp_path / "report.html", train_dir=tmp_path).read_text()
    assert "Validation while training" in page and part.notes[0] in page


def test_unseen_pairs_and_sample_pictures_are_shown(tmp_path: Path) -> None:
    rows = [
        {"step": 100, "score": 0.1, "held_out_loss": 0.59, "held_out_accuracy": 0.7},
        {"step": 200, "score": 0.05, "held_out_loss": 0.64, "held_out_accuracy": 0.65},
    ]
    looks = {"every": 100, "keep": "best", "metric": "held_out_accuracy"}
    run = {"validation": rows, "adapter_step": 100, "stopped": False}
    folder = _run_folder(tmp_path, run, validation=looks)
    (folder / "samples").mkdir()
    for step in range(100, 800, 100):
        sheet = Image.new("RGB", (1064, 600), (step // 4, 0, 0))
        sheet.save(folder / "samples" / f"step-{step:06d}.png")
    part = collect_training(folder)
    drawn = {chart.title: chart for chart in part.looks}
    assert set(drawn) == {"What should rise", "Held-out loss", "Held-out accuracy"}
    assert [line.name for line in drawn["What should rise"].lines] == ["Score"]
    loss = drawn["Held-out loss"]
    assert (loss.lines[0].y, loss.mark) == ((0.59, 0.64), 100.0)
    assert loss.level == pytest.approx(np.log(2))
    told = {fact.label: fact.note for fact in part.facts}
    assert told["adapter of step"] == "best of 2 looks by held-out accuracy"
    steps = [picture.alt for picture in part.sheets]
    assert steps == [f"Samples after step {step}" for step in (100, 300, 500, 700)]
    page = write_report(tmp_path / "report.html", train_dir=folder).read_text()
    assert "Samples while training" in page and "Samples after step 700" in page


def test_a_run_to_its_last_step_says_so(tmp_path: Path) -> None:
    run = {"validation": LOOKS, "adapter_step": 60, "stopped": False}
    part = collect_training(_run_folder(tmp_path, run, validation={"keep": "last"}))
    told = {fact.label: (fact.value, fact.note) for fact in part.facts}
    assert told["adapter of step"] == ("60", "the last step")
    assert told["stopped early"] == ("no", "")
    assert part.notes == ()


def test_a_run_that_did_not_look_shows_no_looks(tmp_path: Path) -> None:
    part = collect_training(_run_folder(tmp_path, {"validation": [], "adapter_step": 60}))
    assert part.looks == ()
    assert "adapter of step" not in {fact.label for fact in part.facts}
    page = write_report(tmp_path / "report.html", train_dir=tmp_path).read_text()
    assert "Validation while training" not in page and "<h3>Curves" not in page


def test_skipped_steps_are_told_with_their_reason(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path, {})
    _tables(folder, {"loss": [1.0, 0.5, 0.4], "skipped": [0.0, 1.0, 0.0]})
    note = "1 step was skipped: the gradient was far above the usual (guards.spike)."
    assert collect_training(folder).notes == (note,)


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Twelve scenes; the adapter gains 0.1 in identity, but loses 0.3 in scene 3."""
    return evaluation_folder(tmp_path)


def test_evaluation_is_read(evaluation: Path) -> None:
    part = collect_evaluation(evaluation, extremes=1, randoms=2)
    row = next(r for r in part.rows if (r.metric, r.group) == ("identity", "all"))
    assert row.difference is not None
    assert row.difference.mean == pytest.approx(0.1 - 0.4 / 12 + 0.0055)
    assert row.scenes == 12
    assert {r.group for r in part.rows} == {"all", "2 subjects", "held-out classes"}
    assert not [r for r in part.rows if r.metric == "hue_error"], "never measured, so no row"
    worst = part.examples[0]
    assert (worst.why, worst.scene_id, worst.prompt) == ("worst", "scene03", HOSTILE)
    assert len(worst.references) == 1
    assert [example.why for example in part.examples] == [
        "worst",
        "median",
        "best",
        *["random"] * 2,
    ]
    assert "12 scenes" in part.notes[0]
    out = write_report(evaluation / "report.html", evaluate_dir=evaluation)
    models = json.loads(out.with_suffix(".json").read_text())["lineage"]["models"]
    assert [model["fingerprint"] for model in models] == ["b1", "a1", "j1"]


def test_scenes_cured_and_spoilt_are_counted_and_the_median_failed_one_leads(
    tmp_path: Path,
) -> None:
    """Half a scene of two failed: cured means that nobody fails any more."""
    failed = {1: (0.5, 0.0), 2: (1.0, 0.5), 4: (0.5, 0.5), 5: (0.0, 0.5), 8: (1.0, 0.0)}
    folder = evaluation_folder(tmp_path, failed=failed)
    outcomes = collect_evaluation(folder).outcomes
    assert outcomes is not None and outcomes.median is not None
    assert (outcomes.scenes, outcomes.failed, outcomes.cured, outcomes.spoilt) == (12, 5, 2, 1)
    assert {one.scene_id for one in outcomes.cured_shown} == {"scene01", "scene08"}
    assert [one.scene_id for one in outcomes.spoilt_shown] == ["scene05"]
    # By change: 5 (-0.5), 4 (0), then 1 and 2 (both +0.5, the lesser gain in identity first), 8.
    assert outcomes.median.scene_id == "scene01"
    page = write_report(folder / "report.html", evaluate_dir=folder).read_text()
    assert "2 of 12 scenes cured" in page and "1 of 12 scenes spoilt" in page
    assert "the median one of the 5 (of 12)" in page


def test_scorer_and_judge_side_by_side(evaluation: Path) -> None:
    part = collect_evaluation(evaluation, extremes=1, randoms=2)
    base, change = part.agreement
    assert (base.spearman, change.spearman, change.change) == (0.4, None, True)
    assert part.agreement_notes == (
        "Matched identity: only the scorer sees a gain: its own preferences, not what the judge "
        "measures.",
    )
    page = write_report(evaluation / "report.html", evaluate_dir=evaluation).read_text()
    assert "Scorer against judge" in page and part.agreement_notes[0] in page
    about = json.loads((evaluation / "run.json").read_text())
    (evaluation / "run.json").write_text(json.dumps({**about, "agreement": []}))
    assert (
        "Scorer against judge"
        not in write_report(evaluation / "report.html", evaluate_dir=evaluation).read_text()
    )


@pytest.mark.parametrize(
    ("scorer", "judge", "words"),
    [
        (0.1, 0.1, "both see a gain"),
        (-0.1, -0.1, "both see a loss"),
        (0.0, 0.0, "neither"),
        (0.1, -0.1, "opposite"),
        (0.0, 0.1, "only the judge sees a gain"),
        (-0.1, 0.0, "only the scorer sees a loss"),
    ],
)
def test_agreement_in_words(scorer: float, judge: float, words: str) -> None:
    rows = [agreement_row("adapter - base", scorer, judge, 0.1)]
    assert words in agreement_notes(agreement_lines(rows))[0]


def test_verdict_words_of_a_picture() -> None:
    assert verdict_words(scene_record("base", 0, 0.5)) == "all found, none confused"
    lost = scene_record("base", 0, 0.5, boxes=((), (20, 20, 40, 40)), missing=0.5, confusion=1.0)
    assert verdict_words(lost) == "cat missing; 1 of 1 found look like another subject"
    twice = scene_record("base", 0, 0.5, duplicate=0.5)
    assert verdict_words(twice) == "1 painted more than once"


@pytest.mark.parametrize("name", ["run.json", "rows.json", "scenes.parquet"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_evaluation_is_named(evaluation: Path, name: str, damage: str) -> None:
    path = evaluation / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=name):
        write_report(evaluation / "out.html", evaluate_dir=evaluation)
    assert not (evaluation / "out.html").exists()


def test_unwritable_place_is_named(evaluation: Path) -> None:
    (evaluation / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(evaluation / "file" / "report.html", evaluate_dir=evaluation)
