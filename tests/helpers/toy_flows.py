"""The product's flows on the toy suite that learns, for workers of a Prefect server."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch

from focusdpo.flows import wiring
from focusdpo.flows.prefect.deployments import build_dataset, evaluate, retrain, train

__all__ = ["build_dataset", "evaluate", "retrain", "train"]

torch.set_num_threads(1)
wiring.SUITES["pocket"] = "toy_waiting"
