"""The demo: dataset, training, evaluation and report in one folder, in one process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from focusdpo.flows.config import BuildRun, DemoRun, EvaluateRun, TrainRun
from focusdpo.flows.settings import save_config
from focusdpo.store.local import write_whole
from focusdpo.store.provenance import machine, peak_memory_bytes


def run_demo(
    run: DemoRun,
    build: Callable[[BuildRun], dict[str, Any]],
    train: Callable[[TrainRun], dict[str, Any]],
    evaluate: Callable[[EvaluateRun], dict[str, Any]],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """All four steps; each is skipped or resumed when it was done before. `build`, `train` and
    `evaluate` are the commands, `say` tells people what goes on.

    Leaves subjects/, dataset/, train/, evaluate/, report.html and demo.json (times, memory) in
    `run.out`. Raises what the steps raise.
    """
    from focusdpo.pocket.world.world_subjects import export
    from focusdpo.reports.report import ReportLimits, write_report

    started = time.perf_counter()
    out = Path(run.out)
    save_config(run, out / "config.yaml")
    if run.subjects is None:
        export(out / "subjects", run.world)
    seconds: dict[str, float] = {}
    say(f"1 of 4  dataset -> {out / 'dataset'} (first pictures: {out / 'dataset/first.png'})")
    built = _timed(seconds, "dataset", lambda: build(run.build_run()))
    say(f"2 of 4  training -> {out / 'train'}")
    trained = _timed(seconds, "train", lambda: train(run.train_run()))
    say(f"3 of 4  evaluation -> {out / 'evaluate'}")
    evaluated = _timed(seconds, "evaluate", lambda: evaluate(run.evaluate_run()))
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
        "build": built,
        "train": trained,
        "evaluate": evaluated,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "wall_seconds": round(time.perf_counter() - started, 1),
        "peak_gib": round(peak / 2**30, 2),
        "machine": machine(),
    }
    write_whole(out / "demo.json", (json.dumps(result, indent=1, default=str) + "\n").encode())
    say(f"report: {page}  ({result['wall_seconds']:.0f} s, {result['peak_gib']} GiB at most)")
    return result


def _timed(seconds: dict[str, float], name: str, step: Any) -> Any:
    start = time.perf_counter()
    value = step()
    seconds[name] = time.perf_counter() - start
    return value
