"""prefect.yaml on a real server and worker over loopback: each deployment runs for real."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from focusdpo.pipeline.versions import open_version

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
PREFECT = str(Path(sys.executable).with_name("prefect"))
SMALL = {
    "world": {"subjects": 3, "references": 1},
    "compose": {"pair_rate": 1.0, "triple_rate": 0.0, "variants": 1},
    "generate": {"candidates": 3},
    "pair": {"min_winner_identity": -1.0, "min_drop": 0.0},
}
SMALL_TRAIN = {"steps": 2, "batch_pairs": 2, "save_every": 1}
SMALL_HELD_OUT = {"singles": 1, "pairs": 2, "same_class_pairs": 0, "triples": 0}


@dataclass
class Server:
    """A Prefect server with a worker, and the environment that finds them."""

    environment: dict[str, str]
    folder: Path

    def prefect(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PREFECT, *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=1200,
            check=check,
        )

    def run(self, name: str, **run: object) -> str:
        """Run a deployment to its end; what was printed."""
        ended = self.prefect(
            "deployment", "run", name, "--param", f"run={json.dumps(run)}", "--watch", check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr + self.log("worker")
        return ended.stdout

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-6000:]

    def get(self, path: str, body: dict[str, object]) -> list[dict[str, object]]:
        request = urllib.request.Request(
            f"{self.environment['PREFECT_API_URL']}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert isinstance(found, list)
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Started as the README says: server, pool, deploy, worker."""
    folder = tmp_path_factory.mktemp("prefect")
    (folder / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "home").mkdir()
    environment = {
        **os.environ,
        "PWD": str(folder),  # as a shell that went there would have it
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    }
    made = Server(environment, folder)
    processes = [start(made, "server", "server", "start", "--port", str(port))]
    try:
        wait_until_healthy(made, processes[0])
        made.prefect("work-pool", "create", "local", "--type", "process")
        made.prefect("--no-prompt", "deploy", "--all")
        processes.append(start(made, "worker", "worker", "start", "--pool", "local"))
        yield made
    finally:
        for process in reversed(processes):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start(server: Server, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    log = (server.folder / f"{name}.log").open("wb")
    return subprocess.Popen(
        [PREFECT, *arguments],
        env=server.environment,
        cwd=server.folder,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def wait_until_healthy(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, server.log("server")
        try:
            urllib.request.urlopen(f"{server.environment['PREFECT_API_URL']}/health", timeout=5)
        except (urllib.error.URLError, OSError):
            time.sleep(1)
        else:
            return
    raise AssertionError("the server did not answer\n" + server.log("server"))


def test_the_four_deployments_are_there_with_their_limits(server: Server) -> None:
    found = {str(one["name"]): one for one in server.get("deployments/filter", {})}
    assert set(found) == {"build-dataset", "train", "evaluate", "ablate"}
    for one in found.values():
        options = one["concurrency_options"]
        assert isinstance(options, dict) and options["collision_strategy"] == "ENQUEUE"
        assert one["enforce_parameter_schema"] is True
    schedules = [s for one in found.values() for s in one["schedules"]]  # type: ignore[attr-defined]
    assert len(schedules) == 3 and not any(one["active"] for one in schedules)
    assert found["ablate"]["entrypoint"] == "focusdpo.flows.ablate:ablate"
    triggered = {str(one["name"]) for one in server.get("automations/filter", {})}
    assert triggered == {"train-on-new-dataset", "evaluate-new-adapter"}


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
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(
    server: Server, name: str, run: dict[str, object]
) -> None:
    ended = server.prefect(
        "deployment",
        "run",
        name,
        "--param",
        f"run={json.dumps(run)}",
        check=False,
    )
    assert ended.returncode != 0 and "Validation failed" in ended.stdout + ended.stderr


def test_all_three_flows_run_for_real(server: Server) -> None:
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
    keys = {one["key"] for one in server.get("artifacts/filter", {})}
    assert {"dataset", "adapter", "evaluation", "report"} <= keys
    # The same build again: nothing is computed, nothing published.
    server.run("build-dataset/build-dataset", root="data", **SMALL)
    assert open_version(str(server.folder / "data")).id == version.id
