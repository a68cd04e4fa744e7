"""prefect.yaml on a real server and worker over loopback: each deployment runs for real."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator

import pytest
from prefect_server import ROOT, Server, running_server

from focusdpo.flows.prefect.setup import SILENT
from focusdpo.store.versions import open_version

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SMALL = {
    "world": {"subjects": 3, "references": 1},
    "compose": {"pair_rate": 1.0, "triple_rate": 0.0, "variants": 1},
    "generate": {"candidates": 3},
    "pair": {"min_winner_identity": -1.0, "min_drop": 0.0},
}
SMALL_TRAIN = {"steps": 2, "batch_pairs": 2, "save_every": 1}
SMALL_HELD_OUT = {"singles": 1, "pairs": 2, "same_class_pairs": 0, "triples": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Started as the docs say: server, set-up, deploy, worker."""
    folder = tmp_path_factory.mktemp("prefect")
    (folder / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text())
    with running_server(folder, PREFECT_LOGGING_TO_API_ENABLED="false") as made:
        made.focusdpo("prefect-setup")
        made.prefect("--no-prompt", "deploy", "--all")
        made.start("worker", "worker", "start", "--pool", "local")
        yield made


def test_the_deployments_are_there_with_their_limits(server: Server) -> None:
    found = {str(one["name"]): one for one in server.get("deployments/filter", {})}
    assert set(found) == {
        "build-dataset", "train", "evaluate", "measure", "retrain", "rounds", "ablate"
    }  # fmt: skip
    for one in found.values():
        options = one["concurrency_options"]
        assert isinstance(options, dict) and options["collision_strategy"] == "ENQUEUE"
        assert one["enforce_parameter_schema"] is True
    schedules = [s for one in found.values() for s in one["schedules"]]
    assert len(schedules) == len(found) and not any(one["active"] for one in schedules)
    assert found["ablate"]["entrypoint"] == "focusdpo.flows.prefect.deployments:ablate"
    assert [one["name"] for one in server.get("automations/filter", {})] == [SILENT]


def test_the_bare_name_is_refused(server: Server) -> None:
    ended = server.prefect("deployment", "run", "build-dataset", check=False)
    assert ended.returncode != 0
    assert "<FLOW_NAME>/<DEPLOYMENT_NAME>" in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("build-dataset/build-dataset", {"root": "x", "nonsense": 1}),
        ("build-dataset/build-dataset", {"root": "x", "pair": {"min_dropp": 1}}),
        ("build-dataset/build-dataset", {"root": "x", "pair": {"min_drop": "lots"}}),
        ("ablate/ablate", {"out": "x", "ablation": {"seedz": 1}}),
        ("retrain/retrain", {"out": "x", "retrain": {"min_pairs": 1}}),
        ("measure/measure", {"pictures": "x", "out": "y", "layout": "psr-bench"}),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(
    server: Server, name: str, run: dict[str, object]
) -> None:
    """By the server, whoever asks."""
    own = {"deployments": {"name": {"any_": [name.partition("/")[2]]}}}
    (wanted,) = server.get("deployments/filter", own)
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post(f"deployments/{wanted['id']}/create_flow_run", {"parameters": {"run": run}})
    assert refused.value.code == 409 and b"Validation failed" in refused.value.read()


def test_the_flows_run_for_real(server: Server) -> None:
    server.run("build-dataset/build-dataset", root="data", **SMALL)
    # Relative paths are those of the folder that was deployed from.
    version = open_version(str(server.folder / "data"))
    assert version.rows
    for shard in version.shards():
        assert shard.is_file()
    server.run("train/train", root="data", out="runs/one", train=SMALL_TRAIN)
    adapter = server.folder / "runs/one/adapter"
    assert (adapter / "pytorch_lora_weights.safetensors").is_file()
    server.run(
        "evaluate/evaluate",
        adapter="runs/one/adapter",
        out="runs/one-evaluated",
        held_out=SMALL_HELD_OUT,
    )
    rows = json.loads((server.folder / "runs/one-evaluated/rows.json").read_text())
    assert {row["model"] for row in rows} == {"base", "adapter", "adapter - base"}
    assert (server.folder / "runs/one-evaluated/report.html").is_file()
    server.run("measure/measure", pictures="example", out="runs/measured")
    table = json.loads((server.folder / "runs/measured/rows.json").read_text())
    assert {row["mean"] for row in table if row["metric"] == "failed" and row["group"] == "all"}
    keys = {one["key"] for one in server.get("artifacts/filter", {})}
    assert {"dataset", "adapter", "evaluation", "measurement", "report"} <= keys
    # The same build again: nothing is computed, nothing published.
    server.run("build-dataset/build-dataset", root="data", **SMALL)
    assert open_version(str(server.folder / "data")).id == version.id
