"""What travels to a worker of a cluster and comes back, and how a run says what a worker needs;
no cluster is started here."""

from __future__ import annotations

import pickle
import socket
from pathlib import Path

import pytest
import toy_suite
from plain_build import execute, prepare
from toy_root import Toy

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import quiet
from focusdpo.flows import wiring
from focusdpo.flows.build.cluster.connection import Engine, _fit
from focusdpo.flows.build.cluster.ray_executor import RayExecutor
from focusdpo.flows.build.cluster.worker import StageWorker
from focusdpo.flows.build.cluster.workers import absolute
from focusdpo.flows.build.config import RayConfig, Resources, StageResources
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.config import BuildRun
from focusdpo.flows.settings import merge, parse_overrides, resolve


def planned(toy: Toy, **executor: object) -> RayExecutor:
    build = prepare(resolve(BuildRun, toy.tree(executor={"kind": "ray", **executor})))
    assert isinstance(build.executor, RayExecutor)
    return build.executor


@pytest.mark.slow
def test_a_worker_makes_the_bytes_of_a_local_build_from_what_travels(
    toy: Toy, tmp_path: Path
) -> None:
    executor = planned(toy, task_partitions=4)
    worker = StageWorker(executor.builder.run, str(toy.root))
    for stage in STAGES:
        tasks = executor.tasks(stage, executor.builder.plan.missing_partitions(stage))
        assert [len(task.scenes) for task in tasks] == [4, 2]
        whole, parted = tasks[0], tasks[1].each()
        for task in (whole, *parted):
            # Keys and records travel; a reference's picture alone has 48 * 48 * 3 bytes.
            sent = pickle.dumps(task)
            assert len(sent) < 6000 and b"PNG" not in sent
            reply = worker.compute(pickle.loads(sent))
            assert not reply.unfit and not reply.again
            assert [one.status for one in reply.outcomes] == ["made"] * len(task.scenes)
    local = Toy(toy.subjects, tmp_path / "local")
    execute(prepare(resolve(BuildRun, local.tree())))
    assert toy.files("stages") == local.files("stages")


def test_bad_input_comes_back_and_another_try_is_asked_for_what_may_pass(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = planned(toy)
    worker = StageWorker(executor.builder.run, str(toy.root))
    executor.builder.plan.missing_partitions("compose")
    for task in executor.tasks("compose", executor.builder.plan.names):
        worker.compute(task)
    task = executor.tasks("generate", executor.builder.plan.names)[0]
    for error, again in ((UserError("no licence"), False), (OSError("a blink"), True)):

        class Broken:
            fingerprint = "toy"

            def generate(self, *args: object, error: Exception = error, **more: object) -> None:
                raise error

        monkeypatch.setitem(toy_suite.PARTS, "generator", Broken())
        wiring.resident_parts.cache_clear()
        reply = worker.compute(task)
        (outcome,) = reply.outcomes
        assert outcome.status == "failed" and reply.again is again
        assert outcome.message == f"{type(error).__name__}: {error}"


def test_a_worker_that_could_only_do_harm_says_why(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = planned(toy)
    (task, *_) = executor.tasks("generate", executor.builder.plan.names)
    elsewhere = StageWorker(executor.builder.run, str(tmp_path / "elsewhere"))
    assert "no dataset here" in elsewhere.compute(task).unfit
    ignorant = StageWorker(executor.builder.run, str(toy.root), ["no_such_suite"])
    assert "no_such_suite" in ignorant.compute(task).unfit
    # The same checkpoint's name, other weights: its pictures would lie under keys of ours.
    monkeypatch.setitem(toy_suite.FINGERPRINTS, "generator", "other")
    monkeypatch.setattr(toy_suite.GENERATOR, "fingerprint", "other")
    wiring.resident_parts.cache_clear()
    reply = StageWorker(executor.builder.run, str(toy.root)).compute(task)
    assert "other here and" in reply.unfit and "same weights on all nodes" in reply.unfit
    assert not reply.outcomes and not toy.files("stages/generate")


def test_models_stay_out_of_the_process_that_plans(toy: Toy) -> None:
    executor = planned(toy)
    assert executor.missing_roles() == []
    assert [len(names) for names in executor.chunks("generate")] == [6]
    assert executor.builder.parts.meter.load_seconds == 0
    chunked = prepare(
        resolve(BuildRun, {**executor.builder.run.model_dump(), "partitions_per_task": 4})
    )
    assert [len(names) for names in chunked.executor.chunks("generate")] == [4, 2]


def test_a_root_means_the_same_to_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("data") == str(tmp_path / "data")
    assert absolute(f"file://{tmp_path}/data") == str(tmp_path / "data")
    assert absolute("s3://bucket/data") == "s3://bucket/data"
    with pytest.raises(UserError, match="only this process sees it"):
        absolute("memory://data")


def test_every_stage_can_ask_for_resources() -> None:
    assert set(Resources.model_fields) == {"default", *STAGES}
    own = StageResources(num_gpus=1)
    assert Resources(generate=own).of("generate") == own
    assert Resources(generate=own).of("score") == StageResources()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("executor.resources.generat={num_gpus: 1}", "did you mean 'generate'"),
        ("executor.resources.pair.num_gpus=-1", "executor.resources.pair.num_gpus: got -1"),
        ("executor.resources.pair={num_cpus: 0}", "set `workers` too"),
        ("executor.env.AWS_SECRET_ACCESS_KEY=x", "recorded with every dataset version"),
        ("executor.adress=x", "executor.adress: no such field; did you mean 'address'"),
    ],
)
def test_wrong_settings_are_told(given: str, told: str) -> None:
    tree = merge({"root": "r"}, parse_overrides(["executor.kind=ray", given]))
    with pytest.raises(UserError) as caught:
        resolve(BuildRun, tree)
    assert told in str(caught.value)


def test_how_many_workers_a_node_has_room_for() -> None:
    node = {"CPU": 8.0, "GPU": 2.0, "memory": 64.0 * 2**30, "accelerator_type:A100": 1.0, "tpu": 3}
    for request, count in [
        (StageResources(), 8),
        (StageResources(num_cpus=3), 2),
        (StageResources(num_gpus=0.25), 8),
        (StageResources(num_gpus=0.4, num_cpus=0.1), 4),  # two on each card, and not five on two
        (StageResources(num_gpus=1, memory_gib=40), 1),
        (StageResources(custom={"tpu": 1}), 3),
        (StageResources(custom={"fpga": 1}), 0),
        (StageResources(num_gpus=1, accelerator_type="A100"), 2),
        (StageResources(num_gpus=1, accelerator_type="H100"), 0),
    ]:
        assert _fit(node, request) == count, request


def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with pytest.raises(UserError, match="nothing answers there"):
                Engine(RayConfig(address=address))
    with pytest.raises(UserError, match="expected auto, local, HOST:PORT"):
        Engine(RayConfig(address="cluster"))


def test_a_build_with_nothing_to_do_connects_to_nothing(toy: Toy) -> None:
    execute(prepare(resolve(BuildRun, toy.tree())))
    executor = planned(toy, address="127.0.0.1:1")
    assert executor.builder.plan.missing() == []
    again = execute(prepare(executor.builder.run), watch=quiet)
    assert again.made == {} and not again.new
