"""The toy suite in workers, of a Ray cluster or of one machine: a generator that takes its time
(RAY_SUITE_SECONDS a picture) or a core's (RAY_SUITE_CPU_SECONDS), notes what it paints, and meets
with accidents where files in the folder RAY_SUITE ask for them.

    calls    a line per picture: process, seed
    loads    a line per model that a process loads: process, role
    die      the next process that paints takes this file away, then kills itself
    lose     the next process that paints takes this file away, and has lost its card from then on
    poison   whoever paints the square alone kills itself
    refuse   the square alone cannot be painted, and whoever brought it can mend that
    hold     who has painted a picture waits before the next until this file is gone
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import toy_suite
import toy_world

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows import wiring
from focusdpo.pipeline.parts import Image, ReferenceImage

ALONE = "a square on grey"
vocabulary = toy_suite.vocabulary
fingerprint = toy_suite.fingerprint


class Painter(toy_world.Generator):
    """Paints what the toy's generator paints."""

    begun = False

    def __init__(self, folder: Path) -> None:
        super().__init__(faults=toy_suite.GENERATOR.faults)
        self.folder = folder
        self.lost = False

    def one(self, prompt: str, references: Sequence[ReferenceImage], seed: int) -> Image:
        while self.begun and (self.folder / "hold").exists():
            time.sleep(0.1)
        self.begun = True
        time.sleep(float(os.environ.get("RAY_SUITE_SECONDS", "0")))
        compute(float(os.environ.get("RAY_SUITE_CPU_SECONDS", "0")))
        self._accident(prompt)
        with (self.folder / "calls").open("a") as calls:
            calls.write(f"{os.getpid()} {seed}\n")
        if not toy_world.words_of(prompt):  # a scene of the pocket world
            prompt = " ".join(["disc"] * len(references))
        return super().one(prompt, references, seed)

    def _accident(self, prompt: str) -> None:
        if prompt == ALONE and (self.folder / "refuse").exists():
            raise UserError("the square was brought without its licence")
        if prompt == ALONE and (self.folder / "poison").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if self._takes("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        self.lost = self.lost or self._takes("lose")
        if self.lost:
            raise RuntimeError("CUDA error: unspecified launch failure")

    def _takes(self, name: str) -> bool:
        try:
            (self.folder / name).unlink()
        except FileNotFoundError:
            return False
        return True


def compute(seconds: float) -> None:
    """Keep a core busy for so long."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(10_000))


def build(role: str, *, adapter: str | None = None) -> Any:
    if role in ("generator", "inpainter"):
        folder = Path(os.environ["RAY_SUITE"])
        with (folder / "loads").open("a") as loads:
            loads.write(f"{os.getpid()} {role}\n")
        return Painter(folder)
    return toy_suite.build(role)


wiring.SUITES["pocket"] = __name__
