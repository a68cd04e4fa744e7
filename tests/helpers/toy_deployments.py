"""The project's deployments of the toy suite on a server, with a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import toy_suite
import yaml
from prefect_server import ROOT, Server, running_server

HUES = {"red": ("disc", 0.0), "blue": ("disc", 240.0), "green": ("square", 120.0)}
COMPOSE = {"pair_rate": 1.0, "triple_rate": 0.0, "variants": 1, "same_class": True}
BUILD: dict[str, Any] = {
    "subjects": "subjects",
    "compose": COMPOSE,
    "generate": {"candidates": 3},
    "pair": {"min_winner_identity": 0.0, "min_drop": 0.02},
}
TRAIN: dict[str, Any] = {
    **{"steps": 5, "batch_pairs": 4, "lr": 0.01, "warmup": 2, "save_every": 5},
    **{"mixed_precision": "no", "tensorboard": False},
    **{"lora": {"rank": 4}, "objective": {"name": "sft"}},
}
EVALUATE: dict[str, Any] = {
    "held_out": {"singles": 4, "pairs": 8, "same_class_pairs": 0, "triples": 0},
    "evaluate": {"resamples": 200},
}
PARAMETERS: dict[str, dict[str, Any]] = {
    "build-dataset": {"root": "runs/dataset", **BUILD},
    "train": {"root": "runs/dataset", "out": "runs/train", "train": TRAIN},
    "evaluate": {"adapter": "runs/train/adapter", "out": "runs/evaluate", **EVALUATE},
    "retrain": {
        **{"root": "runs/dataset", "out": "runs/models", "train": TRAIN, **BUILD, **EVALUATE},
        "retrain": {"min_new_pairs": 5, "metric": "identity"},
    },
}


def bring(folder: Path, **hues: tuple[str, float]) -> None:
    """New subjects."""
    toy_suite.write_subjects(folder / "subjects", hues)


def deployment_file() -> str:
    """prefect.yaml with the toy suite's flows and small runs."""
    told = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    kept = [one for one in told["deployments"] if one["name"] in PARAMETERS]
    for one in kept:
        one["entrypoint"] = "toy_flows:" + one["entrypoint"].rpartition(":")[2]
        one["parameters"] = {"run": PARAMETERS[one["name"]]}
    return yaml.safe_dump({**told, "deployments": kept, "definitions": None})


@contextmanager
def toy_deployments(folder: Path, *setup: str, **more: str) -> Iterator[Server]:
    """Server, set-up, deployments, set-up with `setup`, worker; `more`: environment."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prefect.yaml").write_text(deployment_file())
    bring(folder, **HUES)
    helpers = str(Path(__file__).parent)
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [helpers, os.environ.get("PYTHONPATH")])),
        "TOY_WAITS": str(folder / "waits"),
        "OMP_NUM_THREADS": "1",
        **more,
    }
    with running_server(folder, **environment) as made:
        made.focusdpo("prefect-setup")
        made.prefect("--no-prompt", "deploy", "--all")
        if setup:
            made.focusdpo("prefect-setup", *setup)
        made.start("worker", "worker", "start", "--pool", "local")
        yield made
