"""An evaluation on the toy suite: what it leaves in its folder, and one model at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import toy_suite
import toy_world

from focusdpo.data_schemas.evaluations import EvalScene, ScorerView
from focusdpo.data_schemas.tables import from_parquet
from focusdpo.evaluation import run as evaluation
from focusdpo.evaluation.held_out import HeldOut
from focusdpo.evaluation.pocket_protocol import EvaluateConfig
from focusdpo.evaluation.run import evaluate, evaluate_model, pictures_of, scorer_view
from focusdpo.flows import wiring
from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.world_subjects import WorldSubject
from focusdpo.pocket.identities import Identity

CONFIG = EvaluateConfig(images_per_scene=2, resamples=100, batch=6)


@pytest.fixture
def held_out() -> HeldOut:
    """Ten scenes of a red disc and a green square."""
    world = toy_world.three_subjects()
    subjects = {
        name: WorldSubject(
            id=name,
            identity=Identity(world.subjects[name].class_name, 0.0, 0.9, 0.5, "plain"),
            pictures=tuple(world.shown(name)),
        )
        for name in ("red", "green")
    }
    scenes = [world.scene("red", "green", variant=number) for number in range(10)]
    return HeldOut(scenes=scenes, subjects=subjects, held_out_classes=())


def test_one_model_at_a_time(held_out: HeldOut, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    records = evaluate_model(
        "some arm",
        held_out,
        toy_world.Generator(faults=0.3),
        toy_world.Judge(),
        CONFIG,
        tmp_path,
        lambda what, done, total, _: told.append((what, done, total)),
        "pocket/val",
    )
    assert told[-1] == ("paint some arm", 10, 10) and len(told) == 4
    assert [(one.scene_id, one.index) for one in records] == [
        (scene.id, index) for scene in held_out.scenes for index in range(2)
    ]
    assert {(one.model, one.protocol) for one in records} == {("some arm", "pocket/val")}
    pictures = pictures_of(tmp_path, records[:2])
    assert pictures[0].shape == (toy_world.SIDE, toy_world.SIDE, 3)
    assert not np.array_equal(*pictures)
    views = scorer_view(records, held_out, toy_world.Segmenter(), toy_world.Identity(), tmp_path)
    assert [(v.scene_id, v.index) for v in views] == [(r.scene_id, r.index) for r in records]
    assert {view.model for view in views} == {"some arm"}


def test_the_folder_holds_both_views_and_their_agreement(
    held_out: HeldOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(wiring.SUITES, "pocket", "toy_suite")
    monkeypatch.setattr(evaluation, "held_out_scenes", lambda *_: held_out)
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    adapter.mkdir()
    for name in ("adapter.json", "pytorch_lora_weights.safetensors"):
        (adapter / name).write_bytes(b"{}")
    run = EvaluateRun(adapter=str(adapter), out=str(out), evaluate=CONFIG)
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
    assert evaluation.finished(run) is None, "another scorer is another evaluation"
