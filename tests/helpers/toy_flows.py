"""The product's flows on the toy suite that learns, for workers of a Prefect server."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
import toy_learner
import toy_suite

from focusdpo.flows import wiring
from focusdpo.flows.build_dataset import build_dataset
from focusdpo.flows.evaluate import evaluate
from focusdpo.flows.retrain import retrain
from focusdpo.flows.train import train

__all__ = ["build_dataset", "evaluate", "retrain", "train"]

torch.set_num_threads(1)
wiring.SUITES["pocket"] = "toy_flows"

vocabulary = toy_suite.vocabulary
fingerprint = toy_learner.fingerprint


class Waiting:
    """A generator that first waits as long as a file says, so that a test can kill it at work."""

    fingerprint = "toy"

    def __init__(self, part: Any) -> None:
        self.part = part

    def __getattr__(self, name: str) -> Any:
        file = Path(os.environ.get("TOY_WAITS", "/nonexistent"))
        if name == "generate" and file.exists():
            time.sleep(float(file.read_text()))
        return getattr(self.part, name)


def build(role: str, *, adapter: str | None = None) -> Any:
    part = toy_learner.build(role, adapter=adapter)
    return Waiting(part) if role == "generator" else part
