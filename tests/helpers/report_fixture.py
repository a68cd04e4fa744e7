"""A whole report, every section filled, read from folders as builds, trainings and evaluations
leave them, with hostile words in all that people write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from evaluated import HOSTILE, evaluation_folder
from small_root import grey, small_version
from studio_runs import make_run

from focusdpo.reports.report import ReportLimits, collect
from focusdpo.reports.view import ReportData

SIGMAS = (0.95, 0.8, 0.65, 0.5, 0.35, 0.2, 0.05)


def make_report(folder: Path) -> ReportData:
    """12 pairs, a run with looks and focus maps, base and adapter on 12 scenes."""
    small_version(folder / "root", scenes=12, prompt=HOSTILE)
    run = make_run(folder / "run", steps=150)
    about = json.loads((run / "run.json").read_text())
    rows = ((100, 0.02, 0.01), (200, 0.03, 0.02), (300, 0.01, float("nan")))
    looks = [{"step": at, "score": score, "identity": own} for at, score, own in rows]
    (run / "run.json").write_text(json.dumps({**about, "validation": looks, "adapter_step": 200}))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "name": HOSTILE}))
    _focus_maps(run / "focus.safetensors")
    return collect(
        root=folder / "root",
        version="latest",
        train_dir=run,
        evaluate_dir=evaluation_folder(folder / "evaluation"),
        commands=("focusdpo demo --out demo",),
        limits=ReportLimits(pairs=12, rejects=6),
    )


def _focus_maps(path: Path) -> None:
    """As training leaves them: one pair's maps at its end, 8 x 8 tokens."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    prior = np.zeros((8, 8), np.float32)
    prior[2:6, 1:4] = prior[2:6, 5:7] = 1
    prior_N, sigmas = prior.flatten(), np.array(SIGMAS, np.float32)
    matched_SN = (prior_N * (random.random((len(sigmas), 64)) > sigmas[:, None])).astype(np.float32)
    arrays = {
        "sigmas": sigmas,
        "grid": np.array([8, 8], np.int32),
        "prior": prior_N,
        "detail": prior_N * random.random(64).astype(np.float32),
        "end.win.matched": matched_SN,
        "end.win.structure": prior_N * (1 - matched_SN),
        "end.win.weight": 0.5 + prior_N * (2 - matched_SN),
        **{name: grey(shade) for name, shade in (("win", 90), ("lose", 120), ("ref0", 200))},
    }
    info = {"pair": "1", "prompt": HOSTILE, "class_names": ["cat"]}
    save_file(arrays, path, {"info": json.dumps(info)})
