"""The demo: dataset, training, evaluation and report in one folder, in one process."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from focusdpo.flows.commands import run as commands
from focusdpo.flows.commands.common import say
from focusdpo.flows.config import DemoRun
from focusdpo.flows.provenance import machine, peak_memory_bytes
from focusdpo.flows.settings import save_config

log = logging.getLogger(__name__)


def run_demo(run: DemoRun, *, prefect: bool | None = None) -> dict[str, Any]:
    """All four steps; each is skipped or resumed when it was done before.

    Leaves subjects/, dataset/, train/, evaluate/, report.html and demo.json (times, memory) in
    `run.out`. Raises what the steps raise.
    """
    from focusdpo.flows.world_subjects import export
    from focusdpo.reports.report import ReportLimits, write_report

    started = time.perf_counter()
    out = Path(run.out)
    save_config(run, out / "config.yaml")
    if run.subjects is None:
        export(out / "subjects", run.world)
    seconds: dict[str, float] = {}
    if prefect:  # one server for all three flows: its database lies in the demo's folder
        from focusdpo.flows.prefect.server import prepare

        prepare(run.out)
    say(f"1 of 4  dataset -> {out / 'dataset'} (first pictures: {out / 'dataset/first.png'})")
    build = _timed(seconds, "dataset", lambda: commands.build(run.build_run(), prefect=prefect))
    say(f"2 of 4  training -> {out / 'train'}")
    train = _timed(seconds, "train", lambda: commands.train_run(run.train_run(), prefect=prefect))
    say(f"3 of 4  evaluation -> {out / 'evaluate'}")
    evaluate = _timed(
        seconds, "evaluate", lambda: commands.evaluate_run(run.evaluate_run(), prefect=prefect)
    )
    say("4 of 4  report")
    page = _timed(
        seconds,
        "report",
        lambda: write_report(
            out / "report.html",
            root=out / "dataset",
            train_dir=out / "train",
            evaluate_dir=out / "evaluate",
            commands=[f"focusdpo demo --out {run.out}"],
            limits=ReportLimits(pairs=run.report.pairs, rejects=run.report.rejects),
        ),
    )
    peak = peak_memory_bytes()
    result = {
        "command": "demo",
        "out": run.out,
        "report": str(page),
        "build": build,
        "train": train,
        "evaluate": evaluate,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "wall_seconds": round(time.perf_counter() - started, 1),
        "peak_gib": round(peak / 2**30, 2),
        "machine": machine(),
    }
    (out / "demo.json").write_text(json.dumps(result, indent=1, default=str) + "\n", "utf-8")
    say(f"report: {page}  ({result['wall_seconds']:.0f} s, {result['peak_gib']} GiB at most)")
    return result


def _timed(seconds: dict[str, float], name: str, step: Any) -> Any:
    start = time.perf_counter()
    value = step()
    seconds[name] = time.perf_counter() - start
    return value
