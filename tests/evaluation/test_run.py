"""An evaluation on the toy suite: what it leaves in its folder, and one model at a time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_suite
import toy_world
from evaluated import evaluation_folder, scene_record

from focusdpo.data_schemas.errors import TakenAway, UserError
from focusdpo.data_schemas.evaluations import EvalScene, ScorerView
from focusdpo.data_schemas.runs import Watch, quiet
from focusdpo.data_schemas.tables import from_parquet, to_parquet
from focusdpo.evaluation import pocket_protocol
from focusdpo.evaluation.comparison import rows
from focusdpo.evaluation.dreambench_protocol import BENCHES
from focusdpo.evaluation.folder import EvaluationFolder, read_pictures
from focusdpo.evaluation.held_out import HeldOut, HeldOutConfig
from focusdpo.evaluation.pocket_protocol import PocketPanel
from focusdpo.evaluation.protocols import PROTOCOLS, EvaluateConfig
from focusdpo.evaluation.run import paint_missing, painting_by
from focusdpo.flows import wiring
from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.doctor import run_check
from focusdpo.flows.evaluate.run import evaluate, finished
from focusdpo.flows.settings import resolve
from focusdpo.pocket.world.identities import draw_identity
from focusdpo.pocket.world.world_subjects import WorldSubject
from focusdpo.reports.report import write_report
from focusdpo.store.keys import BESIDE, digests_in, sealed, unsealed

CONFIG = EvaluateConfig(images_per_scene=2, resamples=100, batch=6)


@pytest.fixture
def held_out() -> HeldOut:
    """Ten scenes of a red disc and a green square."""
    world = toy_world.three_subjects()
    subjects = {
        name: WorldSubject(
            id=name,
            identity=draw_identity(world.subjects[name].class_name, np.random.default_rng(0)),
            pictures=tuple(world.shown(name)),
        )
        for name in ("red", "green")
    }
    scenes = [world.scene("red", "green", variant=number) for number in range(10)]
    return HeldOut(scenes=scenes, subjects=subjects, held_out_classes=())


@pytest.fixture
def panel(held_out: HeldOut, monkeypatch: pytest.MonkeyPatch) -> PocketPanel:
    monkeypatch.setattr(pocket_protocol, "held_out_scenes", lambda *_: held_out)
    return PocketPanel(toy_suite, HeldOutConfig(split="val"), CONFIG)


def painted(panel: PocketPanel, out: Path, key: str = "k", watch: Watch = quiet) -> list[str]:
    def generator() -> toy_world.Generator:
        return toy_suite.GENERATOR

    by = painting_by(generator)
    return paint_missing(out, "some arm", key, panel, 2, by, batch=6, watch=watch)


def test_one_model_at_a_time(held_out: HeldOut, panel: PocketPanel, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    names = painted(
        panel, tmp_path, watch=lambda what, done, total, _: told.append((what, done, total))
    )
    assert told[-1] == ("paint some arm", 20, 20) and len(told) == 5
    measured = panel.measure("some arm", tmp_path, names, quiet)
    records, views = measured.judged, measured.beside
    assert [(one.scene_id, one.index) for one in records] == [
        (scene.id, index) for scene in held_out.scenes for index in range(2)
    ]
    assert {(one.model, one.protocol) for one in records} == {("some arm", "pocket/val")}
    pictures = read_pictures(tmp_path, names[:2])
    assert pictures[0].shape == (toy_world.SIDE, toy_world.SIDE, 3)
    assert not np.array_equal(*pictures)
    assert [(v.scene_id, v.index) for v in views] == [(r.scene_id, r.index) for r in records]
    assert {view.model for view in views} == {"some arm"}


def test_a_stopped_painting_goes_on_with_the_same_pixels(
    panel: PocketPanel, tmp_path: Path
) -> None:
    names = painted(panel, tmp_path / "whole")

    def stop(what: str, done: int, total: int, _: object) -> None:
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        painted(panel, tmp_path / "stopped", watch=stop)
    left = tmp_path / "stopped" / names[7]
    before = left.stat().st_mtime_ns
    assert not (tmp_path / "stopped" / names[12]).exists()
    assert painted(panel, tmp_path / "stopped") == names
    assert left.stat().st_mtime_ns == before, "what was painted is kept"
    for name in names:
        whole, stopped = (tmp_path / folder / name for folder in ("whole", "stopped"))
        assert whole.read_bytes() == stopped.read_bytes(), name
    painted(panel, tmp_path / "stopped", key="another")
    assert left.stat().st_mtime_ns != before, "pictures of another key are painted anew"


def test_base_and_adapter_are_over_the_scenes_of_their_difference() -> None:
    """A metric that one of the two has no value of in some scene: no column has that scene."""
    base = [scene_record("base", i, 0.2 + 0.1 * (i == 0)) for i in range(4)]
    adapter = [
        scene_record("adapter", i, 0.25, hue_error=9.0, confusion=math.nan if i == 0 else 0.1)
        for i in range(4)
    ]
    base = [replace(one, confusion=0.9 if one.scene_id == "scene00" else 0.0) for one in base]
    found = [row for row in rows(base, adapter, CONFIG) if row.group == "all"]
    table = {(row.metric, row.model): row for row in found}
    means = [table["confusion", model] for model in ("base", "adapter", "adapter - base")]
    assert [one.mean for one in means] == pytest.approx([0.0, 0.1, 0.1])
    assert [one.scenes for one in means] == [3, 3, 3]
    assert ("hue_error", "adapter") not in table, "nothing to hold it against"


@pytest.mark.parametrize("name", ["../outside.png", "/etc/outside.png", "images/../../x.png", ""])
def test_a_picture_outside_the_folder_is_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = evaluation_folder(tmp_path / "e")
    (tmp_path / "outside.png").write_bytes((folder / "images/base/scene00-0.png").read_bytes())
    records = EvaluationFolder(folder).records
    changed = [replace(one, image=name) for one in records]
    (folder / "scenes.parquet").write_bytes(to_parquet(changed, EvalScene))
    with pytest.raises(UserError, match=f"names the picture '{re.escape(name)}'"):
        write_report(tmp_path / "report.html", evaluate_dir=folder)


def test_no_picture_is_read_through_a_link(tmp_path: Path) -> None:
    folder = evaluation_folder(tmp_path / "e")
    (folder / "images").rename(tmp_path / "elsewhere")
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"e/images: a link"):
        write_report(tmp_path / "report.html", evaluate_dir=folder)


@pytest.mark.parametrize(
    ("file", "value", "said"),
    [
        ("rows.json", [{"metric": "identity"}], r"rows\.json: 0\.protocol: "),
        ("rows.json", {}, r"rows\.json: the file: "),
        ("run.json", [], r"run\.json: the file: "),
        ("subjects.json", {"subjects": {"a": {"pictures": 3}}}, r"subjects\.a\.pictures: "),
    ],
)
def test_a_damaged_file_is_named_with_its_field(
    file: str, value: object, said: str, tmp_path: Path
) -> None:
    folder = evaluation_folder(tmp_path / "e")
    (folder / file).write_text(json.dumps(value))
    with pytest.raises(UserError, match=said):
        write_report(tmp_path / "report.html", evaluate_dir=folder)


def test_an_unknown_protocol_is_told_with_those_there_are() -> None:
    assert set(PROTOCOLS) >= {"pocket", "subjects", *BENCHES}
    given = {"adapter": "a", "out": "o", "protocol": "pokcet"}
    with pytest.raises(UserError, match=r"protocol: got 'pokcet'; there are pocket, dreambench-"):
        resolve(EvaluateRun, given)
    run = resolve(EvaluateRun, {**given, "protocol": "no_such_module:plan"})
    with pytest.raises(UserError, match=r"No module named 'no_such_module'"):
        finished(run)
    documented = (Path(__file__).parents[2] / "docs/dreambench.md").read_text("utf-8")
    for name in PROTOCOLS:
        shown = f"`{name}`" in documented or f"--protocol {name}" in documented
        assert shown or name == "pocket", name


@pytest.fixture
def run(held_out: HeldOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvaluateRun:
    """An evaluation of an adapter that changes nothing."""
    monkeypatch.setitem(wiring.SUITES, "pocket", "toy_suite")
    monkeypatch.setattr(pocket_protocol, "held_out_scenes", lambda *_: held_out)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter.json", "pytorch_lora_weights.safetensors"):
        (adapter / name).write_bytes(b"{}")
    return EvaluateRun(adapter=str(adapter), out=str(tmp_path / "out"), evaluate=CONFIG)


def test_the_folder_holds_both_views_and_their_agreement(
    run: EvaluateRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(run.out)
    first = evaluate(run)
    assert not first.resumed and evaluate(run).resumed
    judged = from_parquet((out / "scenes.parquet").read_bytes(), EvalScene)
    scored = from_parquet((out / "scorer.parquet").read_bytes(), ScorerView)
    assert [(one.model, one.scene_id, one.index) for one in judged] == [
        (one.model, one.scene_id, one.index) for one in scored
    ]
    about = json.loads((out / "run.json").read_text())
    assert set(about["fingerprints"]) == {
        "judge",
        "segmenter",
        "identity",
        "clip",
        "base",
        "adapter",
    }
    rows = {(row["metric"], row["model"]): row for row in about["agreement"]}
    assert rows["identity", "base"]["count"] == 20 and rows["identity", "base"]["spearman"] > 0.5
    change = rows["identity", "adapter - base"]
    assert change["spearman"] is None, "the toy adapter changes nothing"
    assert (change["scorer_mean"], change["judge_mean"]) == (0, 0)
    monkeypatch.setitem(toy_suite.FINGERPRINTS, "segmenter", "toy-2")
    assert finished(run) is None, "another scorer is another evaluation"


READERS: dict[str, Callable[[EvaluationFolder], object]] = {
    "run.json": lambda folder: folder.about,
    "rows.json": lambda folder: folder.rows,
    "subjects.json": lambda folder: folder.prompts,
    "scenes.parquet": lambda folder: folder.records,
    "scorer.parquet": lambda folder: folder.views,
    "config.yaml": lambda folder: folder.settings,
    "images/base/*-0.png": lambda folder: folder.picture(folder.of("base")[0].image),
    "references/red/0.png": lambda folder: folder.picture("references/red/0.png"),
}


def test_a_folder_that_is_taken_away_in_the_middle_is_not_called_finished(
    run: EvaluateRun, tmp_path: Path
) -> None:
    out = Path(run.out)

    def take(phase: str, done: int, total: int, figures: object) -> None:
        if phase == "paint adapter" and out.exists() and not (tmp_path / "taken").exists():
            out.rename(tmp_path / "taken")

    with pytest.raises(TakenAway, match="was taken away.* run the same command again"):
        evaluate(run, take)
    assert not (out / "run.json").exists()
    assert not evaluate(run).resumed and run_check(out).ok


def test_a_picture_that_lies_elsewhere_is_told_by_reader_and_doctor(run: EvaluateRun) -> None:
    evaluate(run)
    out = Path(run.out)
    rows = [replace(row, image="../victim.png") for row in EvaluationFolder(out).records]
    (out / "scenes.parquet").write_bytes(to_parquet(rows, EvalScene))
    about = unsealed((out / "run.json").read_bytes())
    about[BESIDE] = digests_in(out, about[BESIDE])
    (out / "run.json").write_bytes(sealed(about))
    with pytest.raises(UserError, match=r"scenes.parquet: names the picture .* which is outside"):
        _ = EvaluationFolder(out).records
    told = run_check(out)
    assert not told.ok and "'../victim.png'" in told.told


@pytest.mark.slow
def test_one_flipped_bit_is_seen_by_reader_and_doctor_and_made_anew(
    run: EvaluateRun, tmp_path: Path
) -> None:
    evaluate(run)
    out = Path(run.out)
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run_check(out).ok
    for name, read in READERS.items():
        path = sorted(out.glob(name))[0]
        if name.startswith("images"):
            path = out / EvaluationFolder(out).of("base")[0].image
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        told = run_check(out)
        assert not told.ok and str(path) in told.told
        with pytest.raises(UserError, match=f"{re.escape(str(path))}: (damaged|cannot be read)"):
            read(EvaluationFolder(out))
        if name == "run.json":
            path.write_bytes(whole[path])
            continue
        assert not evaluate(run).resumed, "what was damaged is made anew"
        assert run_check(out).ok and path.read_bytes() == whole[path], name
    out.rename(tmp_path / "moved")
    there = run.model_copy(update={"out": str(tmp_path / "moved")})
    assert evaluate(there).resumed, "it works from its new place"
    for name in ("run.json", "subjects.json"):
        values = json.loads((tmp_path / "moved" / name).read_text())
        values.pop("blake2b")
        values.pop("digests", None)
        (tmp_path / "moved" / name).write_text(json.dumps(values))
    assert evaluate(there).resumed, "one of before there were checksums is taken as it is"
