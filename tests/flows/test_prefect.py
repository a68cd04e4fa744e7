"""The Prefect flows on a real server of the test's own: tasks, retries, artefacts, events,
parameters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import toy_suite
from toy_root import Toy

from focusdpo.flows.building import BuildResult, prepare
from focusdpo.flows.config import BuildRun
from focusdpo.flows.progress import quiet
from focusdpo.flows.settings import merge, resolve
from focusdpo.flows.stages import STAGES

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """A Prefect server with a database of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield


def run_flow(toy: Toy, **given: object) -> BuildResult:
    from focusdpo.flows.build_dataset import run_here

    run = resolve(BuildRun, merge(toy.tree(partitions_per_task=3), given))
    return run_here(prepare(run), quiet)


def client() -> Any:
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def newest_flow_run() -> Any:
    from prefect.client.schemas.sorting import FlowRunSort

    with client() as api:
        return api.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)[0]


def task_runs(flow_run: Any, wanted: int) -> list[Any]:
    """The server stores task runs some time after the flow ends: wait for them."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    deadline = time.monotonic() + 120
    while True:
        with client() as api:
            runs: list[Any] = api.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
            )
        if len(runs) >= wanted or time.monotonic() > deadline:
            return runs
        time.sleep(0.5)


def published_events() -> int:
    """How often a dataset was published, as the server tells it."""
    from focusdpo.flows.build_dataset import PUBLISHED

    with client() as api:
        answer = api.request(
            "POST", "/events/filter", json={"filter": {"event": {"name": [PUBLISHED]}}}
        )
    return int(answer.json()["total"])


def wait_for_events(wanted: int) -> int:
    deadline = time.monotonic() + 60
    while published_events() < wanted and time.monotonic() < deadline:
        time.sleep(0.5)
    return published_events()


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
    assert [one.key for one in mine] == ["dataset"] and result.version in str(mine[0].data)
    assert wait_for_events(before + 1) == before + 1
    # A flow in which nothing changed publishes nothing: no event, so no training is triggered.
    again = run_flow(toy)
    assert not again.new and again.made == {}
    assert wait_for_events(before + 1) == before + 1


def test_a_passing_failure_is_retried_with_its_reason(
    server: None, toy: Toy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    class Flaky:
        fingerprint = "toy"

        def generate(self, *args: Any) -> Any:
            calls.append(args)
            if len(calls) == 2:
                raise OSError("the network share blinked")
            return toy_suite.GENERATOR.generate(*args)

    monkeypatch.setitem(toy_suite.PARTS, "generator", Flaky())
    result = run_flow(toy)
    assert result.whole, result.failed
    assert len(calls) == 6 + 1
    assert "the network share blinked" in caplog.text
    generate = [one for one in task_runs(newest_flow_run(), 15) if one.name.startswith("generate")]
    assert sorted(one.run_count for one in generate) == [1, 2]


def test_what_is_left_out_shows_in_the_state(server: None, toy: Toy) -> None:
    (toy.subjects / "nobody").mkdir()
    result = run_flow(toy)
    assert not result.whole and result.pairs
    run = newest_flow_run()
    assert run.state_name == "Completed" and "1 subjects or partitions" in run.state.message


def test_bad_input_fails_the_flow_without_a_retry(server: None, toy: Toy) -> None:
    from focusdpo.data_schemas.errors import UserError
    from focusdpo.flows.build_dataset import build_dataset

    run = resolve(BuildRun, toy.tree(pair={"min_winner_identity": 1.0}))
    with pytest.raises(UserError, match="no pair was accepted"):
        build_dataset(run)
    found = newest_flow_run()
    assert found.state_name == "Failed"
    publish = [one for one in task_runs(found, 15) if one.name.startswith("publish")]
    assert [one.run_count for one in publish] == [1]


def test_parameters_are_checked_by_the_same_model(server: None, toy: Toy) -> None:
    from prefect.exceptions import ParameterTypeError

    from focusdpo.flows.build_dataset import build_dataset

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

    from focusdpo.flows import build_dataset, evaluate, train

    for flow in (build_dataset.build_dataset, train.train, evaluate.evaluate):
        assert list(inspect.signature(flow.fn).parameters) == ["run"]
        schema = flow.parameters.definitions[
            flow.parameters.properties["run"]["$ref"].split("/")[-1]
        ]
        assert schema["additionalProperties"] is False
