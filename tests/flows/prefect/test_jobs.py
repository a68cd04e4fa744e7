"""The Prefect flows on a real server of the test's own: tasks, retries, artefacts, events,
parameters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_suite
import toy_trainer
from plain_build import prepare
from toy_root import Toy

from focusdpo.evaluation import validation
from focusdpo.flows import wiring
from focusdpo.flows.ablation import run as ablation
from focusdpo.flows.build.outcome import BuildResult
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.config import AblateRun, BuildRun
from focusdpo.flows.jobs import PUBLISHED, YIELD_DROPPED
from focusdpo.flows.prefect import events
from focusdpo.flows.settings import merge, resolve

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """A Prefect server with a database of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield


def run_flow(toy: Toy, **given: object) -> BuildResult:
    from focusdpo.flows.prefect.flows import run_as_flow

    run = resolve(BuildRun, merge(toy.tree(partitions_per_task=3), given))
    return run_as_flow(prepare(run))


def client() -> Any:
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def newest_flow_run() -> Any:
    from prefect.client.schemas.sorting import FlowRunSort

    with client() as api:
        return api.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)[0]


def task_runs(flow_run: Any, wanted: int, named: str = "") -> list[Any]:
    """The server stores task runs some time after the flow ends, in no order: wait for so many,
    one of them with a name that begins with `named`."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    deadline = time.monotonic() + 120
    while True:
        with client() as api:
            runs: list[Any] = api.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
            )
        found = any(one.name.startswith(named) for one in runs)
        settled = all(one.state is not None and one.state.is_final() for one in runs)
        if (len(runs) >= wanted and found and settled) or time.monotonic() > deadline:
            return runs
        time.sleep(0.5)


def told_events(name: str) -> list[dict[str, Any]]:
    """Events of a name, newest first, as the server tells them."""
    with client() as api:
        answer = api.request("POST", "/events/filter", json={"filter": {"event": {"name": [name]}}})
    return list(answer.json()["events"])


def published_events() -> int:
    """How often a dataset was published."""
    return len(told_events(PUBLISHED))


def wait_for_events(wanted: int, name: str = PUBLISHED) -> int:
    deadline = time.monotonic() + 60
    while len(told_events(name)) < wanted and time.monotonic() < deadline:
        time.sleep(0.5)
    return len(told_events(name))


def test_a_build_is_a_flow_with_a_task_per_stage_and_chunk(server: None, toy: Toy) -> None:
    before = published_events()
    result = run_flow(toy)
    assert result.whole and result.new
    run = newest_flow_run()
    assert run.state_name == "Completed"
    names = sorted(one.name for one in task_runs(run, 2 * len(STAGES) + 1))
    wanted = [f"{stage} {number} of 2" for stage in STAGES for number in (1, 2)]
    assert [name for name in names if not name.startswith("publish")] == sorted(wanted)
    with client() as api:
        found = api.read_artifacts()
        mine = [one for one in found if one.flow_run_id == run.id]
    keys = {one.key: one for one in mine}
    assert {"dataset", "dataset-yield", "dataset-sheet"} <= set(keys)
    assert result.version in str(keys["dataset"].data)
    assert "](data:image/png;base64," in str(keys["dataset-sheet"].data)
    assert wait_for_events(before + 1) == before + 1
    assert run.name == f"{toy.root}: version {result.version}, 3 subjects, {result.pairs} pairs"
    # A flow in which nothing changed publishes nothing: no event, so no training is triggered.
    again = run_flow(toy)
    assert not again.new and again.made == {}
    with client() as api:
        assert newest_flow_run().id not in {one.flow_run_id for one in api.read_artifacts()}
    assert wait_for_events(before + 1) == before + 1


def test_a_passing_failure_is_retried_with_its_reason(
    server: None, toy: Toy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    class Flaky:
        fingerprint = "toy"

        def generate(self, *args: Any, **more: Any) -> Any:
            calls.append(args)
            if len(calls) == 2:
                raise OSError("the network share blinked")
            return toy_suite.GENERATOR.generate(*args, **more)

    monkeypatch.setitem(toy_suite.PARTS, "generator", Flaky())
    result = run_flow(toy)
    assert result.whole, result.failed
    assert len(calls) == 6 + 1
    assert "the network share blinked" in caplog.text
    generate = [one for one in task_runs(newest_flow_run(), 15) if one.name.startswith("generate")]
    assert sorted(one.run_count for one in generate) == [1, 2]
    assert wait_for_events(1, events.RETRIED) == 1
    (retried,) = told_events(events.RETRIED)
    tried_again = next(one for one in generate if one.run_count == 2)
    assert retried["resource"]["prefect.resource.id"] == f"prefect.task-run.{tried_again.id}"
    assert "the network share blinked" in retried["payload"]["reason"]


def test_a_dropped_yield_is_an_event_and_the_run_is_completed(server: None, toy: Toy) -> None:
    run_flow(toy, alert={"least": 1})
    result = run_flow(toy, alert={"least": 1}, pair={"min_winner_identity": 0.999})
    assert result.whole and "yield dropped to" in result.as_dict()["alerts"][0]
    assert newest_flow_run().state_name == "Completed"
    assert wait_for_events(1, YIELD_DROPPED) == 1
    (dropped,) = told_events(YIELD_DROPPED)
    assert dropped["payload"]["version"] == result.version
    assert dropped["payload"]["message"] == result.as_dict()["alerts"][0]


def test_what_is_left_out_shows_in_the_state(server: None, toy: Toy) -> None:
    (toy.subjects / "nobody").mkdir()
    result = run_flow(toy)
    assert not result.whole and result.pairs
    run = newest_flow_run()
    assert (
        run.state_name == "Completed" and "1 left out, subjects and partitions" in run.state.message
    )


def test_bad_input_fails_the_flow_without_a_retry(server: None, toy: Toy) -> None:
    from focusdpo.data_schemas.errors import UserError
    from focusdpo.flows.prefect.deployments import build_dataset

    none = {"min_winner_identity": 1.0}
    run = resolve(BuildRun, toy.tree(pair=none))
    with pytest.raises(UserError, match="no pair was accepted"):
        build_dataset(run)
    found = newest_flow_run()
    assert found.state_name == "Failed"
    publish = [one for one in task_runs(found, 15, "publish") if "publish" in one.name]
    assert [one.run_count for one in publish] == [1]


@pytest.mark.slow
def test_an_ablation_is_a_flow_with_a_task_per_cell_that_is_missing(
    server: None, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from focusdpo.flows.prefect.flows import run_as_flow

    monkeypatch.setitem(wiring.SUITES, "pocket", "toy_trainer")
    monkeypatch.setattr(validation, "_BASES", {})
    monkeypatch.setattr(ablation, "start_worker", toy_trainer.start_worker)
    out = tmp_path / "ablation"
    tree = toy.tree(
        root=None,
        out=str(out),
        train={"batch_pairs": 2, "mixed_precision": "no", "lora": {"rank": 2}},
        held_out={"singles": 1, "pairs": 2, "same_class_pairs": 1, "triples": 1},
        ablation={
            **{"objectives": ["sft", "focus_dpo"], "sources": ["both"], "choices": []},
            **{"seeds": 1, "steps": 1, "search_beta": [10.0], "search_lr_alone": [1e-4]},
            **{"validation_scenes": 6, "workers": 1, "resamples": 100},
        },
    )
    run = resolve(AblateRun, tree)
    told: list[str] = []
    outcome = run_as_flow(ablation.Ablate(run), lambda what, *_: told.append(what))
    assert outcome.made == outcome.cells == 5
    assert {"search", "train and measure", "compare"} <= set(told)
    flow_run = newest_ablation()
    assert flow_run.state_name == "Completed"
    cells = sorted(path.parent.name for path in out.rglob("cell.json"))
    mine = [one for one in task_runs(flow_run, 6) if one.name in cells]
    assert sorted(one.name for one in mine) == cells
    with client() as api:
        made = {one.key: one for one in api.read_artifacts() if one.flow_run_id == flow_run.id}
    assert set(made) == {"ablation", "ablation-report"}
    assert made["ablation"].data == (out / "ablation.md").read_text("utf-8")
    assert f"`{out / 'ablation.html'}`" in str(made["ablation-report"].data)
    assert run_as_flow(ablation.Ablate(run)).made == 0
    again = newest_ablation()
    assert again.id != flow_run.id and again.state_name == "Completed"
    assert [one.name for one in task_runs(again, 1) if one.name in cells] == []


def newest_ablation() -> Any:
    """Not the build-dataset flow below it."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    with client() as api:
        return api.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=["ablate"])),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=1,
        )[0]


def test_parameters_are_checked_by_the_same_model(server: None, toy: Toy) -> None:
    from prefect.exceptions import ParameterTypeError

    from focusdpo.flows.prefect.deployments import build_dataset

    good = build_dataset.validate_parameters({"run": toy.tree()})
    assert good["run"] == resolve(BuildRun, toy.tree())
    for wrong in (
        {"run": {**toy.tree(), "nonsense": 1}},
        {"run": {**toy.tree(), "pair": {"min_dropp": 1}}},
        {"run": {**toy.tree(), "pair": {"min_drop": "lots"}}},
        {"run": {}},
    ):
        with pytest.raises(ParameterTypeError):
            build_dataset.validate_parameters(wrong)


def test_each_flow_has_one_parameter_so_that_no_unknown_one_gets_in() -> None:
    import inspect

    from focusdpo.flows.prefect import deployments as there

    for flow in (
        there.build_dataset, there.train, there.evaluate, there.measure, there.retrain, there.ablate
    ):  # fmt: skip
        assert list(inspect.signature(flow.fn).parameters) == ["run"]
        schema = flow.parameters.definitions[
            flow.parameters.properties["run"]["$ref"].split("/")[-1]
        ]
        assert schema["additionalProperties"] is False
