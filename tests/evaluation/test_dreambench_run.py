"""evaluate by a DreamBench protocol on toy photographs, from the folder to the table."""

from __future__ import annotations

import json
from pathlib import Path

import in_process
import numpy as np
import photo_folder
import pytest
import torch
import toy_world
from PIL import Image

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.evaluations import EvalScene, WholeScores
from focusdpo.data_schemas.tables import from_parquet
from focusdpo.evaluation.protocols import EvaluateConfig
from focusdpo.flows import wiring
from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.evaluate.run import evaluate, finished
from focusdpo.flows.settings import resolve
from focusdpo.reports.report import write_report

MULTI = "dreambench-multi/uno"
SINGLE = "dreambench-single/kosmosg"
CONFIG = EvaluateConfig(resamples=200, batch=7)


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(wiring.SUITES, "pocket", "photo_folder")
    for one in (photo_folder.BASE, photo_folder.ADAPTED):
        one.calls.clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_folder.write_photo_folder(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter.json", "pytorch_lora_weights.safetensors"):
        (folder / name).write_bytes(b"{}")
    return folder


def run_of(data: Path, adapter: Path, protocol: str, **bench: object) -> EvaluateRun:
    return resolve(
        EvaluateRun,
        {
            "adapter": str(adapter),
            "out": str(adapter.parent / "out"),
            "protocol": protocol,
            "data": str(data),
            "dreambench": bench,
            "evaluate": CONFIG,
        },
    )


def painted() -> int:
    return sum(photo_folder.BASE.calls) + sum(photo_folder.ADAPTED.calls)


def test_from_the_folder_to_the_table(suite: None, data: Path, adapter: Path) -> None:
    """A base that forgets and doubles subjects, an adapter that does not: a prompt per pair."""
    run = run_of(data, adapter, MULTI, prompts=1)
    out = Path(run.out)
    result = evaluate(run)
    assert not result.resumed and result.scenes == 30 and painted() == 60
    about = json.loads((out / "run.json").read_text())
    assert about["protocol"] == f"{MULTI} [1 of 25 prompts] [changed prompts file]"
    assert about["shown"]["dog3"] == "05.jpg" and about["failed_detections"]["photographs"] == [
        0,
        180,
    ]
    assert about["failed_detections"]["base"][0] > about["failed_detections"]["adapter"][0]
    rows = {(r.metric, r.group, r.model): r for r in result.rows}
    assert {r.protocol for r in result.rows} == {about["protocol"]}
    assert {group for _, group, _ in rows} == {"all", "2 subjects", "same class"}
    assert rows["dino", "all", "base"].scenes == 30
    for metric, sign in (("identity", 1), ("missing", -1), ("scr_50", -1), ("duplicate", -1)):
        assert sign * rows[metric, "all", "adapter - base"].mean > 0, metric
    assert rows["identity", "all", "adapter - base"].low > 0
    judged = from_parquet((out / "scenes.parquet").read_bytes(), EvalScene)
    whole = from_parquet((out / "photographs.parquet").read_bytes(), WholeScores)
    assert [(a.model, a.scene_id, a.index) for a in judged] == [
        (b.model, b.scene_id, b.index) for b in whole
    ]
    assert all((out / one.image).is_file() for one in judged)
    mean = np.mean([one.dino for one in whole if one.model == "base"])
    assert rows["dino", "all", "base"].mean == pytest.approx(float(mean))
    assert Image.open(out / "grid.png").width == 2 + 12 * (toy_world.SIDE + 2)
    text = "\n".join(result.notes)
    for said in ("seed 0", "generator: ", "DINO: ", "CLIP-I, CLIP-T: ", "masks: ", "of 180"):
        assert said in text, said
    page = write_report(out / "report.html", evaluate_dir=out).read_text()
    assert MULTI in page


def test_a_stopped_run_goes_on_and_a_finished_one_is_only_read(
    suite: None, data: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(data, adapter, SINGLE, subjects=["cat", "vase"], prompts=2, images_per_prompt=2)
    out = Path(run.out)
    one = photo_folder.Generator.one
    left = [10]

    def stops(self, *args):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return one(self, *args)

    monkeypatch.setattr(photo_folder.Generator, "one", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run)
    assert len(list((out / "images").rglob("*.png"))) == 8, "the base's, and no batch begun"
    assert finished(run) is None
    monkeypatch.setattr(photo_folder.Generator, "one", one)
    photo_folder.BASE.calls.clear()
    photo_folder.ADAPTED.calls.clear()
    first = evaluate(run)
    assert photo_folder.BASE.calls == [] and painted() == 8
    kept = (out / "rows.json").read_bytes()
    again = evaluate(run)
    assert again.resumed and painted() == 8 and again.notes == first.notes
    assert again.rows == first.rows

    fresh = run.model_copy(update={"out": f"{run.out}-fresh"})
    evaluate(fresh)
    assert Path(fresh.out, "rows.json").read_bytes() == kept, "stopping changes nothing"


def test_one_base_serves_many_adapters(suite: None, data: Path, adapter: Path) -> None:
    few = {"subjects": ["cat"], "prompts": 2, "images_per_prompt": 1}
    first = run_of(data, adapter, SINGLE, **few)
    evaluate(first)
    painted_before = sum(photo_folder.BASE.calls)
    (adapter / "pytorch_lora_weights.safetensors").write_bytes(b"{ }")
    alone = first.model_copy(update={"out": f"{first.out}-alone"})
    evaluate(alone)
    assert sum(photo_folder.BASE.calls) == 2 * painted_before
    taking = first.model_copy(update={"out": f"{first.out}-taking", "base_from": first.out})
    evaluate(taking)
    assert sum(photo_folder.BASE.calls) == 2 * painted_before, "taken over, not painted"
    for name in ("rows.json", "scenes.parquet", "grid.png"):
        assert Path(taking.out, name).read_bytes() == Path(alone.out, name).read_bytes(), name


def test_a_base_of_other_pictures_is_refused(suite: None, data: Path, adapter: Path) -> None:
    few = {"subjects": ["cat"], "prompts": 2, "images_per_prompt": 1}
    first = run_of(data, adapter, SINGLE, **few)
    evaluate(first)
    painted_before = painted()
    own = {"out": f"{first.out}-other", "base_from": first.out}
    other = run_of(data, adapter, SINGLE, **few, seed=3).model_copy(update=own)
    with pytest.raises(UserError, match="its base painted other scenes.*leave out --base-from"):
        evaluate(other)
    wrong = first.model_copy(update={"out": own["out"], "base_from": str(adapter)})
    with pytest.raises(UserError, match="not an evaluation"):
        evaluate(wrong)
    assert painted() == painted_before and not Path(own["out"]).exists()
    finished_by = Path(first.out, "run.json").read_bytes()
    Path(first.out, "run.json").unlink()
    with pytest.raises(UserError, match="did not finish"):
        evaluate(first.model_copy(update=own))
    Path(first.out, "run.json").write_bytes(finished_by)
    picture = next(Path(first.out, "images/base").glob("*.png"))
    picture.write_bytes(picture.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        evaluate(first.model_copy(update=own))
    assert painted() == painted_before and not Path(own["out"]).exists()


def test_what_decides_is_in_the_key(
    suite: None,
    data: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = {"subjects": ["cat"], "prompts": 1, "images_per_prompt": 1}
    run = run_of(data, adapter, SINGLE, **few)
    evaluate(run)
    count = painted()
    stricter = run.model_copy(
        update={"evaluate": CONFIG.model_copy(update={"min_confidence": 0.99})}
    )
    assert finished(run) is not None and finished(stricter) is None
    result = evaluate(stricter)
    assert painted() == count, "another threshold measures anew and paints nothing anew"
    assert "confidence at least 0.99" in "\n".join(result.notes)
    cut = run_of(data, adapter, SINGLE, **few, shown="cut_out")
    shown = evaluate(cut)
    assert painted() == count + 2 and "[cut-outs shown]" in shown.rows[0].protocol
    other = run_of(data, adapter, SINGLE, **few, seed=3)
    assert finished(other) is None
    (adapter / "pytorch_lora_weights.safetensors").write_bytes(b"{ }")
    assert finished(cut) is None
    evaluate(cut)
    assert painted() == count + 3, "the base's pictures are kept"
    monkeypatch.setitem(photo_folder.FINGERPRINTS, "clip", "toy-2")
    assert finished(cut) is None, "another CLIP is another evaluation"


def test_the_generator_sees_what_the_protocol_shows(
    suite: None, data: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(self, prompt, references, seed):
        seen.append(references)
        return toy_world.picture([])

    monkeypatch.setattr(photo_folder.Generator, "one", look)
    few = {"subjects": ["dog3"], "prompts": 1, "images_per_prompt": 1}
    result = evaluate(run_of(data, adapter, "dreambench-single/all-refs", **few))
    expected = np.asarray(Image.open(data / "dog3" / "05.jpg"))
    assert np.array_equal(seen[0][0].image, expected) and seen[0][0].mask.all()
    assert "all of its photographs" in "\n".join(result.notes)
    rows = {(r.metric, r.model): r.mean for r in result.rows if r.group == "all"}
    assert rows["missing", "base"] == 1 and rows["identity", "base"] == 0, "nothing was painted"
    evaluate(run_of(data, adapter, SINGLE, **few, shown="cut_out"))
    cut = seen[-1][0]
    assert (cut.image[~cut.mask] == 255).all() and cut.mask.mean() > 0.3
    assert cut.image.shape[0] == cut.image.shape[1] < 30


def test_bad_input_is_told_before_anything_is_painted(
    suite: None, data: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(data, adapter, SINGLE)
    with pytest.raises(UserError, match="needs --data"):
        evaluate(run.model_copy(update={"data": None}))
    with pytest.raises(UserError, match="is no folder"):
        evaluate(run.model_copy(update={"data": str(tmp_path / "absent")}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no adapter"):
        evaluate(run.model_copy(update={"adapter": str(tmp_path / "empty")}))
    half = photo_folder.write_photo_folder(tmp_path / "half", ("cat", "dog"))
    with pytest.raises(UserError, match="28 of 30 subjects are missing"):
        finished(run.model_copy(update={"data": str(half)}))
    (half / "cat" / "04.jpg").write_bytes((data / "cat" / "04.jpg").read_bytes()[:200])
    damaged = run_of(half, adapter, SINGLE, allow_partial=True)
    with pytest.raises(UserError, match=r"cat/04\.jpg"):
        evaluate(damaged)
    monkeypatch.setitem(photo_folder.PARTS, "identity", toy_world.Identity())
    with pytest.raises(UserError, match="takes no whole pictures"):
        evaluate(run)
    assert painted() == 0
    with pytest.raises(UserError, match="protocol: got 'dreambench'"):
        run_of(data, adapter, "dreambench")


def test_the_command_prints_what_must_stand_beside_the_numbers(
    suite: None, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = photo_folder.write_photo_folder(tmp_path / "half", ("cat", "cat2", "dog", "dog2"))
    arguments = [
        "evaluate", "--adapter", str(adapter), "--out", str(tmp_path / "out"), "--no-prefect",
        "--protocol", MULTI, "--data", str(half), "--json",
        "--set", "dreambench.allow_partial=true", "--set", "dreambench.prompts=1",
        "--set", "evaluate.resamples=100",
    ]  # fmt: skip
    code, shown, _ = in_process.run(arguments, capsys)
    assert code == 0
    for said in (
        f"protocol {MULTI} [3 of 30 pairs] [1 of 25 prompts]",
        "whole picture and all of its photographs",
        "not found: ",
        "metric, same class",
        "clip_i",
    ):
        assert said in shown, said
    answer = json.loads(shown.strip().splitlines()[-1])
    assert answer["scenes"] == 3 and any("seed 0" in note for note in answer["notes"])


def test_on_checkpoints_in_their_public_layouts(tmp_path: Path) -> None:
    """FLUX with UNO paints, DINO, CLIP, Grounding DINO and SAM 2 measure: small random weights. The
    written DINO scores are those of the checkpoint loaded anew, and DINO v1 is told apart from the
    judge's DINOv2."""
    import tiny_suite
    import yaml

    from focusdpo.model.adapter import (
        AdapterCard,
        add_policy,
        policy_parameters,
        save_adapter,
    )
    from focusdpo.model.training.config import LoraConfig

    preset = yaml.safe_load(tiny_suite.write_preset("flux-uno", tmp_path).read_text())
    tree = {name: preset[name] for name in ("suite", "models", "evaluate")}
    run = resolve(
        EvaluateRun,
        tree
        | {
            "adapter": str(tmp_path / "adapter"),
            "out": str(tmp_path / "out"),
            "protocol": MULTI,
            "data": str(photo_folder.write_photo_folder(tmp_path / "data", ("cat", "cat2"))),
            "dreambench": {"allow_partial": True, "prompts": 2},
        },
    )
    backbone = wiring.build_part(run.family, "backbone")
    lora = LoraConfig(rank=2, alpha=2, targets=("to_q", "to_k", "to_v"))
    add_policy(backbone.transformer, lora, seed=0)
    with torch.no_grad():
        weights = {
            name: torch.randn(one.shape, generator=torch.Generator().manual_seed(1))
            for name, one in policy_parameters(backbone.transformer).items()
        }
    card = AdapterCard(
        lora=lora,
        base_fingerprint=backbone.fingerprint,
        dataset_version="v1",
        objective="focus_dpo",
        step=1,
    )
    save_adapter(tmp_path / "adapter", backbone.transformer, card, weights)

    result = evaluate(run)
    out = Path(run.out)
    text = "\n".join(result.notes)
    for role, label in (("identity", "DINO: "), ("judge_identity", "instances' identity: ")):
        assert f"{label}{run.models.model_dump()[role]['kind']}, " in text
    whole = from_parquet((out / "photographs.parquet").read_bytes(), WholeScores)
    dino = wiring.build_part(run.family, "identity")
    for one in whole[:3]:
        mine = dino.embed_whole([out / f"images/{one.model}/{one.scene_id}-{one.index}.png"])[0]
        for name, value in zip(("cat2", "cat"), one.dino_each, strict=True):
            theirs = dino.embed_whole(sorted(Path(run.data, name).glob("*.jpg")))
            assert value == pytest.approx(float((theirs @ mine).mean()), abs=1e-5)
    pictures = {
        model: [(out / one.image).read_bytes() for one in judged]
        for model in ("base", "adapter")
        if (judged := [o for o in _judged(out) if o.model == model])
    }
    assert all(a != b for a, b in zip(*pictures.values(), strict=True)), "the adapter paints"
    assert evaluate(run).resumed
    own = {"protocol": "subjects", "out": str(tmp_path / "own"), "own_scenes": {"variants": 1}}
    told = evaluate(resolve(EvaluateRun, run.model_dump() | own))
    assert told.scenes == 3 and "DINO: " not in "\n".join(told.notes)
    with pytest.raises(UserError, match=r"for checkpoints give --protocol dreambench-"):
        finished(resolve(EvaluateRun, run.model_dump() | {"protocol": "pocket"}))
    with pytest.raises(UserError, match=r"needs DINO v1.*kind: dino"):
        models = {**preset["models"], "identity": preset["models"]["judge_identity"]}
        finished(resolve(EvaluateRun, run.model_dump() | {"models": models}))


def _judged(out: Path) -> list[EvalScene]:
    return from_parquet((out / "scenes.parquet").read_bytes(), EvalScene)
