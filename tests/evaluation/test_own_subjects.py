"""evaluate --protocol subjects: a team's own subjects, in scenes that no dataset was built from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import photo_folder
import pytest
import toy_suite
import toy_world

from focusdpo.data_schemas.errors import UserError
from focusdpo.evaluation.dreambench_protocol import (
    BACKGROUNDS,
    OwnScenesConfig,
    own_scenes,
)
from focusdpo.evaluation.protocols import EvaluateConfig
from focusdpo.flows import wiring
from focusdpo.flows.commands.run import evaluate as command
from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.evaluate.run import evaluate, finished
from focusdpo.flows.settings import resolve
from focusdpo.pipeline.compose import ComposeConfig, compose
from focusdpo.store import outputs

SUBJECTS = {"red": ("disc", 0.0), "blue": ("disc", 240.0), "green": ("square", 120.0)}


def run_of(folder: Path, data: Path, **own: object) -> EvaluateRun:
    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True)
    for name in ("adapter.json", "pytorch_lora_weights.safetensors"):
        (adapter / name).write_bytes(b"{}")
    return resolve(
        EvaluateRun,
        {
            "adapter": str(adapter),
            "out": str(folder / "out"),
            "protocol": "subjects",
            "data": str(data),
            "ingest": {"size": toy_world.SIDE},
            "own_scenes": own,
            "evaluate": EvaluateConfig(resamples=200, batch=8),
        },
    )


def test_scenes_are_not_those_of_any_dataset() -> None:
    world = toy_world.three_subjects()
    subjects = list(world.subjects.values())
    plan = own_scenes(subjects, ("grey",), OwnScenesConfig(variants=3))
    assert plan.shown_id == "subjects" and len(plan.scenes) == 6 * 3 and plan.sets == 6
    assert all(scene.prompt.split(" on ")[1] in BACKGROUNDS for scene in plan.scenes)
    assert plan == own_scenes(subjects[::-1], ("grey",), OwnScenesConfig(variants=3))
    # The same subjects on the same places, as a dataset might name them: other noise all the same.
    twin = ComposeConfig(variants=3, same_class=True, triple_rate=0)
    seeds = {scene.id: scene.seed for scene in compose(subjects, BACKGROUNDS, twin)}
    assert all(seeds[scene.id] != scene.seed for scene in plan.scenes)
    apart = own_scenes(subjects, (), OwnScenesConfig(variants=1, same_class=False, single_rate=0))
    assert {frozenset(scene.subject_ids) for scene in apart.scenes} == {
        frozenset({"red", "green"}),
        frozenset({"blue", "green"}),
    }
    with pytest.raises(UserError, match="a wooden pier is named by build-dataset too"):
        own_scenes(subjects, ("a wooden pier",), OwnScenesConfig())


def test_own_subjects_from_the_folder_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(wiring.SUITES, "pocket", "photo_folder")
    # No DINO is asked for: whole pictures are not compared.
    monkeypatch.setitem(photo_folder.PARTS, "identity", toy_world.Identity())
    data = toy_suite.write_subjects(tmp_path / "subjects", SUBJECTS)
    run = run_of(tmp_path, data, variants=6)
    (data / "empty").mkdir()
    result = evaluate(run)
    (left_out,) = result.left_out
    assert "empty: no picture" in left_out, "left out, as a build does"
    again = finished(run)
    assert again is not None and again.left_out == result.left_out
    rows = {(r.metric, r.group, r.model): r for r in result.rows}
    assert {r.protocol for r in result.rows} == {"subjects"}
    assert {group for _, group, _ in rows} == {"all", "1 subject", "2 subjects", "same class"}
    assert not {"dino", "clip_i"} & {metric for metric, _, _ in rows}
    assert rows["identity", "all", "adapter - base"].mean > 0
    assert rows["missing", "all", "adapter"].mean < rows["missing", "all", "base"].mean
    assert rows["identity", "all", "base"].scenes == 6
    about = json.loads((Path(run.out) / "run.json").read_text())
    assert about["failed_detections"]["photographs"] == [0, 6], "alpha tells where they are"
    text = "\n".join(result.notes)
    assert "6 sets of subjects" in text and "DINO" not in text and "CLIP-T" in text
    assert finished(run) is not None
    calls = len(photo_folder.BASE.calls)
    toy_suite.write_subjects(data, {"blue": ("disc", 200.0)})
    assert finished(run) is None, "a changed subject is another evaluation"
    evaluate(run)
    assert len(photo_folder.BASE.calls) > calls


def test_what_will_be_painted_is_said_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(wiring.SUITES, "pocket", "photo_folder")
    monkeypatch.setitem(photo_folder.PARTS, "identity", toy_world.Identity())
    data = toy_suite.write_subjects(tmp_path / "subjects", SUBJECTS)
    run = run_of(tmp_path, data, variants=1, images_per_prompt=2, triple_rate=1)
    amount = (
        "3 subjects in 7 sets of subjects, 7 scenes, 2 pictures of each, seed 0: "
        "28 pictures by base and adapter (subjects)"
    )
    assert command(run, plan=True)["plan"]["what"] == amount
    assert capsys.readouterr().out.splitlines()[0] == amount
    assert not (Path(run.out) / "images").exists()
    command(run, prefect=False)
    assert capsys.readouterr().out.splitlines()[0] == amount
    assert len(list((Path(run.out) / "images").glob("*/*.png"))) == 28
    command(run, prefect=False)
    assert amount not in capsys.readouterr().out, "nothing was left to paint"


def test_bad_subjects_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(wiring.SUITES, "pocket", "photo_folder")
    data = toy_suite.write_subjects(tmp_path / "subjects", SUBJECTS)
    run = run_of(tmp_path, data)
    with pytest.raises(UserError, match="needs --data, the folder of your subjects"):
        evaluate(run.model_copy(update={"data": None}))
    for name in SUBJECTS:
        shutil.rmtree(data / name)
    (data / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no picture"):
        evaluate(run)


def test_other_protocols_settings_do_not_touch_pocket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key of a pocket evaluation is blind to them: none is made again for their sake."""
    from focusdpo.evaluation.protocols import plan_of
    from focusdpo.flows.evaluate.run import request_of

    def key(run: EvaluateRun) -> str:
        return plan_of(request_of(run)).key

    monkeypatch.setitem(wiring.SUITES, "pocket", "toy_suite")
    run = run_of(tmp_path, tmp_path).model_copy(update={"protocol": "pocket"})
    changes = {"dreambench": {"seed": 5}, "own_scenes": {"seed": 5}, "ingest": {"size": 99}}
    other = resolve(EvaluateRun, run.model_dump() | changes | {"data": "elsewhere"})
    assert key(run) == key(other)
    assert key(run) != key(resolve(EvaluateRun, run.model_dump() | {"evaluate": {"seed": 3}}))


def test_at_an_address_it_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that were sent are not painted again, and the rows are those of a folder."""
    monkeypatch.setitem(wiring.SUITES, "pocket", "photo_folder")
    monkeypatch.setitem(photo_folder.PARTS, "identity", toy_world.Identity())
    monkeypatch.setattr(outputs, "SEND_EVERY", 0.0)
    data = toy_suite.write_subjects(tmp_path / "subjects", SUBJECTS)
    here = run_of(tmp_path, data, variants=2)
    there = here.model_copy(update={"out": f"memory://{tmp_path.name}/{id(data)}"})
    painted: list[str] = []

    def stop(phase: str, done: int, total: int, figures: object) -> None:
        painted.append(phase)
        if phase == "paint adapter":
            raise KeyboardInterrupt

    monkeypatch.setenv("FOCUSDPO_OUTPUTS_DIR", str(tmp_path / "first"))
    with pytest.raises(KeyboardInterrupt):
        evaluate(there, stop)
    assert finished(there) is None and "paint base" in painted
    monkeypatch.setenv("FOCUSDPO_OUTPUTS_DIR", str(tmp_path / "second"))
    painted.clear()
    result = evaluate(there, lambda phase, *_: painted.append(phase))
    assert "paint base" not in painted and "paint adapter" in painted
    assert result.rows == evaluate(here).rows
    assert evaluate(there).resumed
