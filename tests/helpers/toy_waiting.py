"""The toy suite that learns, with a generator that first waits as long as a file says, so that a
test can kill it at work. TOY_WAITS names the file; without one it does not wait."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import toy_learner
import toy_suite

vocabulary = toy_suite.vocabulary
fingerprint = toy_learner.fingerprint


class Waiting:
    """The generator."""

    fingerprint = "toy"

    def __init__(self, part: Any) -> None:
        self.part = part

    def __getattr__(self, name: str) -> Any:
        file = os.environ.get("TOY_WAITS")
        if name == "generate" and file and Path(file).is_file():
            time.sleep(float(Path(file).read_text()))
        return getattr(self.part, name)


def build(role: str, *, adapter: str | None = None) -> Any:
    part = toy_learner.build(role, adapter=adapter)
    return Waiting(part) if role == "generator" else part
