"""What a run tells a monitor: metrics.prom, the alert on a dropped yield, JSON lines, the webhook,
pictures as addresses, and who is taken for dead."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image
from plain_build import execute, prepare
from prometheus_client.parser import text_string_to_metric_families
from toy_root import TOY_CLI, Toy

from focusdpo.data_schemas import environment
from focusdpo.data_schemas.errors import UserError
from focusdpo.flows import console, wiring
from focusdpo.flows.build.config import YieldAlertConfig
from focusdpo.flows.build.outcome import Brought, BuildResult, dropped
from focusdpo.flows.config import BuildRun
from focusdpo.flows.doctor import dataset_check
from focusdpo.flows.jobs import KEPT
from focusdpo.flows.prefect import display, events, gpu_slot, liveness
from focusdpo.flows.settings import resolve
from focusdpo.store.local import LocalFiles

ALERT = YieldAlertConfig(share=0.5, builds=5, least=2)
HUES = {
    "yellow": ("disc", 60.0),
    "cyan": ("square", 180.0),
    "pink": ("disc", 300.0),
    "orange": ("square", 30.0),
}


def build(toy: Toy, alert: YieldAlertConfig = ALERT, **given: Any) -> BuildResult:
    wiring.resident_parts.cache_clear()
    return execute(prepare(resolve(BuildRun, toy.tree(alert=alert.model_dump(), **given))))


def values(toy: Toy) -> dict[str, dict[tuple[str, ...], float]]:
    """Metric -> its labels but the root -> value, read by Prometheus' own parser."""
    text = (toy.root / "metrics.prom").read_text()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.type == "gauge" and family.documentation
        for sample in family.samples:
            assert sample.labels["root"] == str(toy.root)
            labels = tuple(v for k, v in sample.labels.items() if k != "root")
            found.setdefault(family.name, {})[labels] = sample.value
    return found


def test_a_build_writes_its_metrics(toy: Toy) -> None:
    result = build(toy)
    assert result.alerts == () and result.as_dict()["alerts"] == ()
    found = values(toy)
    assert found["focusdpo_pairs"] == {(): result.pairs}
    assert found["focusdpo_rejects"] == {(name,): n for name, n in result.rejects.items()}
    judged = result.pairs + sum(result.rejects.values())
    assert found["focusdpo_yield"][()] == pytest.approx(result.pairs / judged)
    assert found["focusdpo_partitions_made"][("generate",)] == 6
    assert ("pair",) in found["focusdpo_stage_seconds"]
    assert found["focusdpo_yield_dropped"] == {(): 0}
    assert found["focusdpo_build_wall_seconds"][()] > 0
    # Nothing changed: the file is new, and what the version brought stands.
    again = build(toy)
    assert not again.new
    assert values(toy)["focusdpo_yield"] == found["focusdpo_yield"]
    assert "focusdpo_partitions_made" not in values(toy)


def test_the_yield_is_that_of_what_is_new(toy: Toy) -> None:
    first = build(toy)
    toy.add(yellow=HUES["yellow"])
    second = build(toy)
    kept = json.loads((toy.root / "versions" / second.version / "build.json").read_text())
    assert kept["parent"] == first.version
    assert kept["pairs"] == second.pairs - first.pairs
    assert sum(kept["rejects"].values()) == sum(second.rejects.values()) - sum(
        first.rejects.values()
    )
    assert kept["partitions"] == second.partitions - first.partitions


def test_a_drop_is_told_and_the_build_is_whole(toy: Toy, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("yellow", "cyan"):
        assert build(toy).alerts == ()
        toy.add(**{name: HUES[name]})
    assert build(toy).alerts == ()
    # From tonight on hardly a winner is good enough; the old partitions are judged anew.
    result = build(toy, pair={"min_winner_identity": 0.9999})
    assert result.whole and result.new
    (message,) = result.alerts
    assert "yield dropped to" in message and "the median of 3 builds before" in message
    assert "most were rejected because of weak_winner" in message
    assert message in caplog.text
    assert values(toy)["focusdpo_yield_dropped"] == {(): 1}


def test_a_build_that_was_stopped_before_its_metrics_gets_them(toy: Toy) -> None:
    first = build(toy)
    toy.add(yellow=HUES["yellow"])
    stopped = build(toy)
    (toy.root / "versions" / stopped.version / "build.json").unlink()
    again = build(toy)
    assert not again.new and again.version == stopped.version != first.version
    assert (toy.root / "versions" / again.version / "build.json").exists()


def test_a_damaged_past_is_told(toy: Toy) -> None:
    first = build(toy)
    (toy.root / "versions" / first.version / "build.json").write_text("{")
    toy.add(yellow=HUES["yellow"])
    with pytest.raises(UserError, match=r"build.json: damaged"):
        build(toy)


def brought(pairs: int, rejects: int) -> Brought:
    reasons = {"weak_winner": rejects} if rejects else {}
    return Brought(
        version="v", parent=None, pairs=pairs, rejects=reasons, partitions=1, stage_seconds={}
    )


@pytest.mark.parametrize(
    ("now", "past", "alert", "told"),
    [
        (brought(24, 76), [0.5, 0.5, 0.5], ALERT, True),
        (brought(25, 75), [0.5, 0.5, 0.5], ALERT, False),
        (brought(24, 76), [0.5], ALERT, False),
        (brought(0, 10), [0.5, 0.1, 0.9], ALERT, True),
        (brought(0, 0), [0.5, 0.5], ALERT, False),
        (brought(0, 10), [0.5, 0.5], YieldAlertConfig(share=0, least=2), False),
    ],
)
def test_the_rule(now: Brought, past: list[float], alert: YieldAlertConfig, told: bool) -> None:
    assert (dropped(now, past, alert) is not None) is told


def test_log_lines_are_json_with_their_ids(tmp_path: Path) -> None:
    log = logging.getLogger("focusdpo.test")
    own = logging.getLogger("focusdpo")
    level, handlers = own.level, list(own.handlers)
    try:
        console.to_file(tmp_path / "run.jsonl")
        console.to_file(tmp_path / "run.jsonl")
        with console.about(run="r1", flow="build-dataset"), console.about(partition="p1"):
            log.info("made %d", 3)
        log.info("alone")
        try:
            raise ValueError("bad")
        except ValueError:
            log.exception("went wrong")
    finally:
        for handler in set(own.handlers) - set(handlers):
            own.removeHandler(handler)
            handler.close()
        own.setLevel(level)
    first, second, third = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert (first["run"], first["flow"], first["partition"]) == ("r1", "build-dataset", "p1")
    assert first["message"] == "made 3" and first["level"] == "INFO"
    assert first["time"].endswith("+00:00")
    assert "partition" not in second and second["run"] != "r1"
    assert "ValueError: bad" in third["exception"]


@pytest.mark.slow
def test_the_option_writes_what_stderr_does_not_show(toy: Toy, tmp_path: Path) -> None:
    file = tmp_path / "logs" / "build.jsonl"
    command = [*TOY_CLI, "--log-json", str(file), *toy.arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "INFO" not in ended.stderr
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert found and len({one["run"] for one in found}) == 1


class Answers:
    """A loopback HTTP server that answers with one code and keeps what it got."""

    def __init__(self, code: int) -> None:
        self.got: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(code)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/a-secret-token"


@pytest.fixture(params=[204, 302, 500])
def answers(request: pytest.FixtureRequest) -> Iterator[Answers]:
    made = Answers(request.param)
    yield made
    made.server.shutdown()


def test_the_webhook_gets_one_message_and_its_address_is_never_logged(
    answers: Answers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(events.WEBHOOK, answers.url)
    caplog.set_level(logging.DEBUG)
    took = events.notify(KEPT, "kept: worse", {"out": "models"})
    assert answers.got == [{"event": KEPT, "text": "kept: worse", "payload": {"out": "models"}}]
    assert "secret" not in caplog.text
    assert took is (not caplog.records)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/secret", "ftp://x/secret", "secret", ""])
def test_a_webhook_that_is_not_there_only_costs_a_line(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(events.WEBHOOK, url)
    assert events.notify(KEPT, "kept", {}) is False
    assert "secret" not in caplog.text and len(caplog.records) == bool(url)


def test_pictures_become_addresses_that_fit_a_database() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, "PNG")
    head, _, data = display.as_address(sink.getvalue()).partition(",")
    assert head == "data:image/jpeg;base64" and len(data) <= display.LARGEST
    assert Image.open(io.BytesIO(base64.b64decode(data))).width > 300
    small = io.BytesIO()
    Image.fromarray(noise[:64, :64]).save(small, "PNG")
    head, _, data = display.as_address(small.getvalue()).partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == small.getvalue()


def test_links_lead_to_where_reports_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = Path("runs/one/report.html")
    assert display.address_of(page) is None
    words = display.in_words(page, None)
    assert f"`{tmp_path / page}`" in words and display.REPORTS in words and "file:" not in words
    monkeypatch.setenv(display.REPORTS, "https://host/files/")
    assert display.address_of(page) == "https://host/files/runs/one/report.html"
    assert display.address_of(Path("/other/report.html")) is None


def test_who_is_gone() -> None:
    me = {liveness.PROCESS: environment.me(), liveness.MACHINE: liveness.machine()}
    assert not liveness.is_gone(me) and not liveness.is_gone({})
    host, pid, started = environment.me().split("~")
    reused = {**me, liveness.PROCESS: f"{host}~{pid}~1"}
    assert liveness.is_gone(reused), "the pid is somebody else's now"
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    theirs = {**me, liveness.PROCESS: f"{host}~{ended.pid}~{started}"}
    # Ended, but nobody has waited for it yet: as good as gone.
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert liveness.is_gone(theirs)
    ended.wait()
    assert liveness.is_gone(theirs)
    assert not liveness.is_gone({**theirs, liveness.MACHINE: "another"})
    assert not liveness.is_gone({**theirs, liveness.PROCESS: f"another~{ended.pid}~{started}"})


def test_doctor_tells_whether_a_root_takes_new_files(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(toy)
    files = toy.files()
    check = dataset_check(str(toy.root))
    assert check.ok and "whole; it takes new files, " in check.told and "GiB free" in check.told
    assert toy.files() == files, "nothing is left behind"

    def refused(*given: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied")

    def hasty(self: LocalFiles, path: str, data: bytes, tag: str | None) -> str | None:
        """Looks, and writes later: like a store that does not heed conditions."""
        if (found := self.tagged(path)) is not None and found[1] != tag:
            return None
        time.sleep(0.2)
        self.write(path, data)
        return "some tag"

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "swap", hasty)
        check = dataset_check(str(toy.root))
    assert not check.ok and "of 8 writers at once 8 were told that they were first" in check.told
    assert toy.files() == files

    monkeypatch.setattr(LocalFiles, "write", refused)
    check = dataset_check(str(toy.root))
    assert not check.ok and "whole; it cannot be written" in check.told


def test_which_limit_a_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv(gpu_slot.VARIABLE, raising=False)
    assert gpu_slot.limit_name() is None
    monkeypatch.setenv(gpu_slot.VARIABLE, "gpu-of-this-machine")
    assert gpu_slot.limit_name() == "gpu-of-this-machine"
    monkeypatch.setenv(gpu_slot.VARIABLE, "")
    assert gpu_slot.limit_name() is None
