"""`out` at an address: train, evaluate and retrain end as in a local folder, also when the machine
with its disk is gone in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plain_build as building
import pyarrow.parquet as pq
import pytest
from in_process import run as command
from s3_server import BUCKET, KEY_ID, SECRET, TOKEN, S3Server
from toy_root import HUES, TOY_CLI, Toy
from toy_team import FIRST, SECOND, Stopped, StoppedAt, Team

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows import wiring
from focusdpo.flows.config import BuildRun, EvaluateRun, TrainRun
from focusdpo.flows.evaluate.run import evaluate, finished
from focusdpo.flows.generate.inference import Generator
from focusdpo.flows.retrain.promotion import history, read_promoted
from focusdpo.flows.settings import resolve
from focusdpo.flows.train.run import TrainOutcome, train
from focusdpo.sharing.adapter_export import export_adapter
from focusdpo.store import cache, outputs

STEPS = {"steps": 12, "batch_pairs": 2, "save_every": 3, "warmup": 1, "mixed_precision": "no"}
QUICK = {**STEPS, "lora": {"rank": 2}, "tensorboard": False}
HELD_OUT = {"singles": 2, "pairs": 3, "same_class_pairs": 0, "triples": 0}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's disk, and parts that can be trained."""
    monkeypatch.setenv("FOCUSDPO_OUTPUTS_DIR", str(tmp_path / "machine"))
    monkeypatch.setitem(wiring.SUITES, "pocket", "toy_trainer")
    wiring.resident_parts.cache_clear()
    yield
    wiring.resident_parts.cache_clear()


@pytest.fixture(params=["memory", "s3"])
def address(request: pytest.FixtureRequest, s3: S3Server) -> str:
    base = "memory://" if request.param == "memory" else f"s3://{BUCKET}/"
    return f"{base}{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset."""
    toy = Toy(tmp_path_factory.mktemp("subjects"), tmp_path_factory.mktemp("data") / "root")
    toy.add(**HUES)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(wiring.SUITES, "pocket", "toy_suite")
        wiring.resident_parts.cache_clear()
        building.execute(building.prepare(resolve(BuildRun, toy.tree())))
    return toy.root


@pytest.fixture(scope="module")
def calm(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a local folder that nothing disturbed."""
    out = tmp_path_factory.mktemp("calm") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(wiring.SUITES, "pocket", "toy_trainer")
        wiring.resident_parts.cache_clear()
        training(root, out)
    return out


def training(root: Path, out: str | Path, watch: Any = None) -> TrainOutcome:
    run = resolve(TrainRun, {"root": str(root), "out": str(out), "train": QUICK})
    return train(run, watch) if watch else train(run)


def rows(run: Path, name: str) -> list[dict[str, str]]:
    """A table without times."""
    table = pq.read_table(run / f"{name}.parquet").to_pylist()
    return [{k: repr(v) for k, v in row.items() if not k.endswith("seconds")} for row in table]


def outcome(run: Path) -> tuple[Any, ...]:
    """All that a training decides, to the bit."""
    names = ("adapter/adapter.json", "adapter/pytorch_lora_weights.safetensors")
    files = [(run / name).read_bytes() for name in (*names, "focus.safetensors", "config.json")]
    return (*files, rows(run, "steps"), rows(run, "buckets"))


def stop_at(step: int) -> Any:
    def watch(phase: str, done: int, total: int, figures: Any) -> None:
        if phase == "train" and done == step:
            raise Stopped

    return watch


def lose_machine(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "machine")


@pytest.mark.slow
def test_a_lost_machine_is_gone_on_from_to_the_bit(
    root: Path, address: str, tmp_path: Path, calm: Path
) -> None:
    with pytest.raises(Stopped):
        training(root, address, stop_at(5))
    assert not outputs.holds(address, "run.json")
    with pytest.raises(UserError, match=r"adapter: nothing is there; .* holds checkpoints, config"):
        outputs.local(f"{address}/adapter")
    lose_machine(tmp_path)
    with pytest.raises(Stopped):
        training(root, address, stop_at(10))
    lose_machine(tmp_path)
    result = training(root, address)
    assert result.resumed_from == 9
    assert (result.out, result.adapter) == (address, f"{address}/adapter")
    lose_machine(tmp_path)
    there = outputs.local(address)
    assert outcome(there) == outcome(calm)
    assert not (there / "checkpoints").exists(), "readers have no use for them"
    again = training(root, address)
    assert again.resumed_from == 12 and again.final == result.final


def test_a_checkpoint_that_was_never_sent_is_made_again(
    root: Path, s3: S3Server, tmp_path: Path, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store stays away when the second one is sent; here the disk is the same."""
    address = f"s3://{BUCKET}/{uuid.uuid4().hex}"

    def away(phase: str, done: int, total: int, figures: Any) -> None:
        if phase == "train" and done == 5:
            s3.fail(refuse=10**6, only="PUT")

    with monkeypatch.context() as patched:
        patched.setenv("FOCUSDPO_STORAGE_ATTEMPTS", "2")
        with pytest.raises(ConnectionError, match="Run the same command again"):
            training(root, address, away)
    s3.fail()
    assert training(root, address).resumed_from == 3
    assert outcome(outputs.local(address)) == outcome(calm)


@pytest.mark.slow
def test_kill_9_and_another_machine(
    root: Path, s3: S3Server, tmp_path: Path, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at any moment, also while it sends; credentials are in no log."""
    address = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    words = ["train", "--root", str(root), "--out", address, "--no-prefect", "--json", "-v"]
    settings = {**STEPS, "lora.rank": 2, "tensorboard": "false"}
    more = [part for k, v in settings.items() for part in ("--set", f"train.{k}={v}")]
    s3.fail(slow=0.02)  # or it would be done before it is killed
    for number, wanted in enumerate((2, 5)):
        machine = {"FOCUSDPO_OUTPUTS_DIR": str(tmp_path / f"machine-{number}")}
        process = subprocess.Popen(
            [*TOY_CLI, *words[-1:], *words[:-1], *more],
            env={**os.environ, **machine, "TOY_SUITE": "toy_trainer"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            if sent(s3, address) >= wanted:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        _, told = process.communicate()
        assert process.returncode == -signal.SIGKILL, told.decode()
        assert not [secret for secret in (KEY_ID, SECRET, TOKEN) if secret in told.decode()]
    s3.fail()
    result = training(root, address)
    assert result.resumed_from > 0
    assert outcome(outputs.local(address)) == outcome(calm)


def sent(s3: S3Server, address: str) -> int:
    """The number of the state that is there."""
    found = s3.objects(BUCKET).get(f"{address.removeprefix(f's3://{BUCKET}/')}/outputs.json")
    return int(json.loads(found)["number"]) if found else 0


def test_two_trainings_on_one_out_are_told_apart(root: Path, address: str, tmp_path: Path) -> None:
    told: list[str] = []

    def other(phase: str, done: int, total: int, figures: Any) -> None:
        if phase == "train" and done == 1:
            with pytest.raises(UserError) as refused:
                training(root, address)
            told.append(str(refused.value))

    training(root, address, other)
    assert len(told) == 1
    assert f"{address}: another process of this machine writes here" in told[0]


@pytest.mark.slow
def test_evaluate_gives_the_rows_of_a_local_run(
    root: Path, address: str, tmp_path: Path, calm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training(root, f"{address}/train")
    lose_machine(tmp_path)
    adapter = f"{address}/train/adapter"
    given = {"held_out": HELD_OUT, "evaluate": {"resamples": 100}}
    run = resolve(EvaluateRun, {"adapter": adapter, "out": f"{address}/evaluate", **given})
    assert finished(run) is None
    here = {"adapter": str(calm / "adapter"), "out": str(tmp_path / "evaluate"), **given}
    theirs, ours = evaluate(run), evaluate(resolve(EvaluateRun, here))
    assert theirs.rows == ours.rows and len(ours.rows) > 10
    assert (theirs.out, theirs.adapter, theirs.resumed) == (run.out, adapter, False)
    lose_machine(tmp_path)
    again = evaluate(run)
    assert again.resumed and again.rows == ours.rows and again.out == run.out
    kept = outputs.local(run.out)
    for name in ("scenes.parquet", "scorer.parquet", "grid.png", "rows.json"):
        assert (kept / name).read_bytes() == (tmp_path / "evaluate" / name).read_bytes()
    assert json.loads((kept / "run.json").read_text())["adapter"] == adapter

    page = tmp_path / "page.html"
    code, _, err = command(
        ["report", "--train", f"{address}/train", "--evaluate", run.out, "--out", str(page)], capsys
    )
    assert code == 0, err
    assert page.stat().st_size > 10_000
    code, _, err = command(["report", "--evaluate", run.out, "--out", f"{address}/page"], capsys)
    assert code == 2 and "--out " in err and "give a local path" in err
    given_away = tmp_path / "given-away"
    code, _, err = command(
        ["export", "adapter", "--adapter", adapter, "--evaluate", run.out,
         "--out", str(given_away)], capsys,
    )  # fmt: skip
    assert code == 0, err
    weights = "pytorch_lora_weights.safetensors"
    local = export_adapter(calm / "adapter", tmp_path / "given-away-here")
    assert (given_away / weights).read_bytes() == (local / weights).read_bytes()
    one, other = Generator("pocket", adapter), Generator("pocket", calm / "adapter")
    assert one.adapter == adapter and one.adapter_digest == other.adapter_digest


@pytest.mark.slow
def test_a_night_is_finished_on_another_machine(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the training, then decided elsewhere; the next night finds the adapter in use,
    and compares with its own evaluation."""
    monkeypatch.setitem(wiring.SUITES, "pocket", "toy_learner")
    models = f"s3://{BUCKET}/{uuid.uuid4().hex}/models"
    team = Team(tmp_path)
    team.bring(FIRST)
    team.out = models
    dataset = {"root": str(tmp_path / "dataset")}

    with pytest.raises(Stopped):
        team.night(StoppedAt(before="evaluate"), **dataset)
    lose_machine(tmp_path)
    first = team.night(**dataset)
    assert first.decision == "promoted", first.reason
    assert first.adapter == f"{models}/candidates/{first.candidate}/train/adapter"
    assert [one["settled"] for one in history(outputs.local(models))] == [True]
    lose_machine(tmp_path)
    again = team.night(**dataset)
    assert again.decision == "tried before" and again.adapter == first.adapter
    team.clock.pass_days(1)
    team.bring(SECOND)
    second = team.night(**dataset, train={"steps": 40})
    assert second.comparison is not None and second.comparison.against == first.candidate
    pointer = read_promoted(outputs.local(models, "promoted.json"))
    assert pointer is not None and pointer.candidate == second.promoted
    assert not any("/against/" in key for key in s3.objects(BUCKET)), "painted once"
    assert (outputs.local(str(second.adapter)) / "adapter.json").is_file()


def test_another_run_at_the_address_is_told_of_the_address(root: Path, tmp_path: Path) -> None:
    address = f"memory://{uuid.uuid4().hex}/one"
    training(root, address)
    given = {"root": str(root), "out": address, "train": {**QUICK, "seed": 5}}
    with pytest.raises(UserError) as refused:
        train(resolve(TrainRun, given))
    assert address in str(refused.value) and str(tmp_path) not in str(refused.value)
    assert outputs.local(address).name == "one", "as reports call it"


def test_an_address_that_cannot_be_used_is_told(root: Path) -> None:
    with pytest.raises(UserError, match="'http' is not known to show a file only when all of it"):
        training(root, "http://example.org/run")
    with pytest.raises(UserError, match="an address holds no password"):
        training(root, "s3://key:secret@bucket/run")


def test_an_address_of_this_disk_is_a_folder(root: Path, tmp_path: Path, calm: Path) -> None:
    result = training(root, f"file://{tmp_path}/run")
    assert result.adapter == f"{tmp_path}/run/adapter"
    assert outcome(tmp_path / "run") == outcome(calm)


def test_nothing_there_is_told(address: str) -> None:
    with pytest.raises(UserError, match="nothing is there; give what `train`, `evaluate` or"):
        outputs.local(f"{address}/adapter")


def test_several_machines_need_a_folder_that_all_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with (
        pytest.raises(UserError, match="give a folder on a disk that all of them share"),
        outputs.opened("memory://several", "training", processes=4),
    ):
        pass


def test_old_folders_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "IN_USE", 0.0)
    monkeypatch.setenv("FOCUSDPO_OUTPUTS_GIB", str(2500 / 2**30))
    names = [f"memory://{uuid.uuid4().hex}" for _ in range(4)]
    for name in names:
        with outputs.opened(name, "training") as out:
            (out.folder / "large").write_bytes(b"x" * 1000)
    left = list((tmp_path / "machine/work").iterdir())
    assert len(left) == 3, "the fourth began when three took more than may be"
    with outputs.opened(names[0], "training") as out:
        assert (out.folder / "large").read_bytes() == b"x" * 1000
    monkeypatch.setenv("FOCUSDPO_OUTPUTS_GIB", "-1")
    with pytest.raises(UserError, match="FOCUSDPO_OUTPUTS_GIB: "):
        outputs.local(names[0])
