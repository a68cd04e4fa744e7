"""The deployments on a real server and worker: set-up, automations that fire, the GPU's slot,
messages to a webhook, pages in a browser, and states that tell the truth after kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import toy_deployments
from browsing import needs_browser, page_of
from playwright.sync_api import Page
from prefect_server import Server, running_server
from toy_root import TOY_CLI

from focusdpo.flows.prefect.gpu_slot import GPU_LIMIT
from focusdpo.flows.prefect.setup import ON_PUBLISH, ON_TRAINED, SILENT
from focusdpo.flows.retrain.promotion import read_promoted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TOKEN = "/hooks/a-secret-token"
PICTURES = (
    "[...document.images].filter(i => i.src.startsWith('data:image') && i.naturalWidth > 100)"
)


class Hook:
    """An HTTP server that keeps what it is sent."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.path, json.loads(body)))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}{TOKEN}"

    def events(self) -> list[str]:
        return [body["event"] for _, body in self.got]


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.server.shutdown()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, hook: Hook) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("production") / "team"
    with toy_deployments.toy_deployments(
        folder,
        *("--on-publish", "train", "--evaluate"),
        FOCUSDPO_WEBHOOK_URL=hook.url,
        FOCUSDPO_REPORTS_URL="https://reports.example/team",
        FOCUSDPO_GPU_LIMIT=GPU_LIMIT,
        FOCUSDPO_LOG_JSON=str(folder / "log.jsonl"),
    ) as made:
        yield made


def ended(server: Server, flow: str, state: str = "COMPLETED") -> list[dict[str, Any]]:
    return [one for one in server.runs(flow) if one["state_type"] == state]


def slots(server: Server) -> int:
    limits = {one["name"]: one for one in server.get("v2/concurrency_limits/filter", {})}
    return int(limits[GPU_LIMIT]["active_slots"])


def test_setup_mends_and_leaves_alone(server: Server) -> None:
    def told(*arguments: str) -> dict[str, str]:
        out = server.focusdpo("prefect-setup", *arguments, "--json").stdout
        done = json.loads(out.splitlines()[-1])["done"]
        return {one["what"]: one["state"] for one in done}

    same = ("--on-publish", "train", "--evaluate")
    assert set(told(*same).values()) == {"there"}
    changed = told(*same, "--gpu-slots", "2", "--silence", "600")
    assert [what for what, state in changed.items() if state == "changed"] == [
        "concurrency limit focusdpo-gpu of 2",
        f"automation '{SILENT}'",
    ]
    assert "changed" in told(*same).values()
    names = [one["name"] for one in server.get("automations/filter", {})]
    assert sorted(names) == sorted([SILENT, ON_PUBLISH, ON_TRAINED])


def test_a_published_version_starts_a_training_and_this_an_evaluation(
    server: Server, hook: Hook
) -> None:
    server.run("build-dataset/build-dataset", **toy_deployments.PARAMETERS["build-dataset"])
    train = server.wait_for("training", lambda: ended(server, "train"))
    assert [one["created_by"]["type"] for one in train] == ["AUTOMATION"]
    version = train[0]["parameters"]["run"]["version"]
    assert (server.folder / f"runs/train-{version}/adapter/adapter.json").is_file()
    evaluate = server.wait_for("evaluation", lambda: ended(server, "evaluate"))
    assert [one["created_by"]["type"] for one in evaluate] == ["AUTOMATION"]
    assert (server.folder / f"runs/train-{version}-evaluate/report.html").is_file()
    # The same build again publishes nothing and starts nothing.
    server.run("build-dataset/build-dataset", **toy_deployments.PARAMETERS["build-dataset"])
    time.sleep(5)
    assert len(server.runs("train")) == len(server.runs("evaluate")) == 1
    assert (server.folder / "runs/dataset/metrics.prom").is_file()
    assert slots(server) == 0, "each run gave the GPU's slot back"


def test_retrain_promotes_and_tells(server: Server, hook: Hook) -> None:
    toy_deployments.bring(server.folder, yellow=("disc", 60.0))
    server.run("retrain/retrain", **toy_deployments.PARAMETERS["retrain"])
    pointer = read_promoted(server.folder / "runs/models")
    assert pointer is not None and pointer.before is None
    # Its own build's version starts no other training.
    assert len(server.runs("retrain")) == 1
    own = [one for one in server.runs("train") if one["parent_task_run_id"] is None]
    assert len(own) == 1
    path, body = hook.got[-1]
    assert path == TOKEN and body["event"] == "focusdpo.adapter.promoted"
    assert body["payload"]["candidate"] == pointer.candidate
    assert "better: identity +" in body["text"]
    keys = {one["key"] for one in server.get("artifacts/filter", {}) if one["key"]}
    assert {"retrain", "retrain-history", "dataset-sheet", "evaluation-sheet", "report"} <= keys
    logs = (server.folder / "log.jsonl").read_text()
    assert TOKEN not in logs + server.log("worker")
    lines = [json.loads(line) for line in logs.splitlines()]
    partitions = {one["partition"] for one in lines if "partition" in one}
    assert len(partitions) >= 6
    ids = {one["id"] for one in server.runs("build-dataset")}
    assert {one["run"] for one in lines if "partition" in one} <= ids


@pytest.fixture
def page() -> Iterator[Page]:
    # Prefect's own page logs an error where a request is cut off by leaving for the next address.
    with page_of("about:blank", width=1400, height=1000, ours=False) as made:
        yield made


def says(*words: str) -> str:
    return " && ".join(f"document.body.innerText.includes({word!r})" for word in words)


@needs_browser
def test_the_run_its_artefacts_and_pictures_are_seen(
    server: Server, page: Page, tmp_path: Path
) -> None:
    """A run, its artefacts, pictures and tables, on the server's own pages."""
    (night,) = server.runs("retrain")
    seen = [
        (f"runs/flow-run/{night['id']}", says(night["name"], "Completed", "retrain")),
        ("artifacts", says("dataset-sheet", "evaluation-rows", "retrain-history", "report")),
    ]
    promoted = f"{says('no adapter', 'promoted')} || {says('better: identity', 'promoted')}"
    for key, until in (
        ("dataset-sheet", f"{PICTURES}.length > 0"),
        ("evaluation-sheet", f"{PICTURES}.length > 0"),
        ("evaluation-rows", says("identity", "adapter - base", "verdict")),
        ("retrain", says("promoted", "better: identity")),
        ("retrain-history", promoted),
        ("report", "document.querySelector('a[href$=\"report.html\"]')"),
    ):
        made = next(one for one in server.get("artifacts/filter", {}) if one["key"] == key)
        seen.append((f"artifacts/artifact/{made['id']}", until))
    for number, (path, until) in enumerate(seen):
        page.goto(f"{server.url.removesuffix('/api')}/{path}")
        try:
            page.wait_for_function(f"Boolean(document.body && ({until}))", timeout=240_000)
        finally:
            page.screenshot(path=tmp_path / f"{number}.png")


def test_doctor_sees_the_server(server: Server) -> None:
    told = json.loads(server.focusdpo("doctor", "--json", check=False).stdout.splitlines()[-1])
    found = {one["name"]: one for one in told["checks"]}
    for name in ("server", "deployments", "pool", "worker", "automation", "gpu limit"):
        assert found[name]["ok"], found[name]
    assert found["worker"]["told"] == "local: 1 online"


def test_a_killed_flow_process_is_crashed_and_the_same_run_goes_on(
    server: Server, hook: Hook
) -> None:
    toy_deployments.bring(server.folder, pink=("disc", 300.0))
    run = toy_deployments.PARAMETERS["build-dataset"]
    (server.folder / "waits").write_text("600")
    server.prefect(
        "deployment", "run", "build-dataset/build-dataset", "--param", f"run={json.dumps(run)}"
    )

    def at_work() -> dict[str, Any] | None:
        newest = server.runs("build-dataset")[0]
        signed = newest["state_type"] == "RUNNING" and "focusdpo.process" in newest["labels"]
        return newest if signed and slots(server) == 1 else None

    running = server.wait_for("running build", at_work)
    os.kill(int(running["labels"]["focusdpo.process"].split("~")[1]), signal.SIGKILL)
    crashed = server.wait_for("crash", lambda: ended(server, "build-dataset", "CRASHED"))
    assert [one["id"] for one in crashed] == [running["id"]]
    assert not [
        one for one in server.runs("build-dataset") if one["state_type"] in ("RUNNING", "PENDING")
    ]
    (server.folder / "waits").unlink()
    # Its lease on the GPU's slot runs out, and the next run has it then.
    server.run("build-dataset/build-dataset", **run)
    assert slots(server) == 0


def test_a_killed_command_leaves_no_server_and_no_run_that_runs(tmp_path: Path) -> None:
    """Without a worker and without a server of one's own: `--prefect` starts one."""
    toy_deployments.bring(tmp_path, **toy_deployments.HUES)
    (tmp_path / "waits").write_text("600")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
        "TOY_SUITE": "toy_waiting",
        "TOY_WAITS": str(tmp_path / "waits"),
    }
    command = [
        *TOY_CLI,
        *("build-dataset", "--root", "root", "--subjects", "subjects"),
        *("--set", "compose.pair_rate=1", "--set", "compose.triple_rate=0"),
        *("--set", "generate.candidates=3", "--set", "pair.min_winner_identity=0"),
        *("--set", "pair.min_drop=0.02", "--prefect"),
    ]
    errors = tmp_path / "errors.log"
    with errors.open("wb") as sink:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=sink)
    home = tmp_path / "root/.prefect"

    def alive(look: Any) -> Any:
        assert process.poll() is None, errors.read_text()
        return look()

    children = wait(lambda: alive(lambda: serving(process.pid)), "server")
    wait(lambda: alive(lambda: signed(home)), "signed run")
    process.kill()
    process.wait()
    wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "end of the server")
    (tmp_path / "waits").unlink()
    again = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert again.returncode == 0, again.stderr
    assert "ended without a word" in again.stderr
    assert states(home) == ["COMPLETED", "CRASHED"]
    assert "Traceback" not in again.stderr
    # The server goes on for a moment, and stores all of the second run before it ends.
    wait(lambda: not servers_below(tmp_path), "end of the second server")
    assert "Traceback" not in (home / "server.log").read_text()
    (completed,) = rows(
        home,
        "select sum(t.state_type = 'COMPLETED') from task_run t "
        "join flow_run f on f.id = t.flow_run_id where f.state_type = 'COMPLETED'",
    )
    assert completed[0] == tasks_of(again.stdout)


def tasks_of(told: str) -> int:
    """A task per partition that was to be computed (there are few), and publish."""
    counts = re.findall(r" (\d+)[,\n]", told.partition("to compute:")[2].partition("\n")[0] + "\n")
    return sum(map(int, counts)) + 1


def wait(look: Any, what: str, seconds: float = 600) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.5)
    raise AssertionError(f"no {what} in {seconds:g} s")


def servers_below(folder: Path) -> list[int]:
    """The processes of servers that commands started in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_server = b"flows.prefect.server" in (process / "cmdline").read_bytes()
            if is_server and (process / "cwd").readlink() == folder:
                found.append(int(process.name))
    return found


def serving(pid: int) -> list[int]:
    """The processes that a process started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def rows(home: Path, sql: str) -> list[Any]:
    import sqlite3

    if not (home / "prefect.db").exists():
        return []
    with sqlite3.connect(f"file:{home / 'prefect.db'}?mode=ro", uri=True, timeout=30) as database:
        try:
            return database.execute(sql).fetchall()
        except sqlite3.OperationalError:
            return []  # not yet made


def signed(home: Path) -> bool:
    found = rows(home, "select labels from flow_run where state_type = 'RUNNING'")
    return any("focusdpo.process" in str(one[0]) for one in found)


def states(home: Path) -> list[str]:
    return sorted(one[0] for one in rows(home, "select state_type from flow_run"))


def test_a_run_without_heartbeats_is_crashed_by_the_server(tmp_path: Path) -> None:
    """As when a machine loses power: nobody is left who could tell."""
    with running_server(tmp_path / "server", PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30") as server:
        server.focusdpo("prefect-setup", "--silence", "60")
        code = (
            "import time\nfrom prefect import flow\n"
            "@flow(name='build-dataset')\ndef build(): time.sleep(600)\nbuild()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=server.environment, cwd=tmp_path
        )
        try:
            heard = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}}
            server.wait_for("heartbeat", lambda: server.post("events/filter", heard)["total"])
        finally:
            process.kill()
            process.wait()
        (crashed,) = server.wait_for("crash", lambda: ended(server, "build-dataset", "CRASHED"))
        assert "no heartbeat for 60 s" in crashed["state"]["message"]


@pytest.mark.alone
def test_orchestration_costs_at_most_5_percent_of_8_partitions_of_a_minute(tmp_path: Path) -> None:
    """Scaled down: what stands beside the model does not depend on how long the model takes. The
    model sleeps, so it takes no processor time from Prefect. Other work on the machine does: so the
    better of two."""
    script = Path(toy_deployments.__file__).with_name("overhead.py")
    shares = []
    for turn in range(2):
        folder = tmp_path / str(turn)
        folder.mkdir()
        ended = subprocess.run(
            [sys.executable, str(script), "--partitions", "8", "--seconds", "2"],
            env={k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
            check=True,
        )
        found = json.loads(ended.stdout.splitlines()[-1])
        assert found["model"] == 16
        shares.append(found["rest"] / (8 * 60 + found["rest"]))
        if shares[-1] <= 0.05:
            return
    pytest.fail(f"shares of the wall clock: {shares}")
