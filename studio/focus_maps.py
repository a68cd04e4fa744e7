"""Focus maps of a pair, computed by the models in a thread of their own, one pair at a time, and
kept for the slider. Shapes: S noise levels, R subjects, N tokens on a grid of h x w."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import ShardSample
from focusdpo.studio import pictures
from focusdpo.studio.pictures import Encoded

MOST_KEPT = 24
MOST_WAITING = 8
PHASES = {"base": "start", "adapter": "end"}
BRANCHES = {"winner": "win", "loser": "lose"}
LARGEST_FRAME = 256
OFF = 200
SEVERAL = (85, 85, 85)
MAPS = {
    "noisy": ("x_t", "what the model is shown, decoded"),
    "matched": ("M'", "tokens that match each reference best, in its colour; dark where two do"),
    "structure": ("M_s", "M_prior without M': still to be learned"),
    "detail": ("M_d", "local detail; on once alignment is high enough"),
    "weight": ("W", "weight of the loss"),
}
"""Name of a map: its symbol, and what it shows."""


@dataclass(frozen=True)
class Maps:
    """The maps of a pair as pictures and numbers."""

    sigmas: tuple[float, ...]
    strips: Mapping[tuple[str, str, str], Encoded]
    """(phase, branch, map) -> the S frames side by side."""
    numbers: Mapping[tuple[str, str], Mapping[str, list[float]]]
    """(phase, branch) -> alignment, gate, share of M_s in M_prior, each of S."""
    top: float
    """The greatest weight, drawn brightest."""

    def as_json(self) -> dict[str, Any]:
        phases: dict[str, dict[str, Any]] = {}
        for (phase, branch), numbers in self.numbers.items():
            phases.setdefault(phase, {})[branch] = numbers
        return {"state": "done", "sigmas": list(self.sigmas), "top": self.top, "phases": phases}


class FocusWorker:
    """Computes maps one after another. Safe for threads."""

    def __init__(self, preset: str) -> None:
        self._preset = preset
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="focus")
        self._futures: OrderedDict[tuple[str, ...], Future[Maps]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, key: tuple[str, ...], sample: ShardSample, adapter: Path | None) -> None:
        """Have a pair's maps computed unless they are, or are being. UserError when too many
        wait."""
        with self._lock:
            known = self._futures.get(key)
            if known is not None and not (known.done() and known.exception() is not None):
                self._futures.move_to_end(key)
                return
            if sum(not future.done() for future in self._futures.values()) >= MOST_WAITING:
                raise UserError(f"{MOST_WAITING} pairs are waiting for their maps; try again soon")
            self._futures[key] = self._pool.submit(compute, self._preset, sample, adapter)
            for old in [key for key, future in self._futures.items() if future.done()]:
                if len(self._futures) > MOST_KEPT:
                    del self._futures[old]

    def maps(self, key: tuple[str, ...]) -> Maps | None:
        """The maps; None while they are being computed. KeyError when nobody asked for them; what
        went wrong is raised."""
        with self._lock:
            future = self._futures[key]
        return future.result() if future.done() else None


def compute(preset: str, sample: ShardSample, adapter: Path | None) -> Maps:
    """The maps of a pair with the base, and with an adapter."""
    from focusdpo.flows.config import FocusMapsRun
    from focusdpo.flows.focus.run import maps_of
    from focusdpo.flows.settings import resolve

    given = {"preset": preset, "root": "", "out": "", "adapter": adapter and str(adapter)}
    run = resolve(FocusMapsRun, {k: v for k, v in given.items() if v is not None})
    arrays, _ = maps_of(run, sample)
    return drawn(arrays)


def drawn(arrays: Mapping[str, NDArray[Any]]) -> Maps:
    """Arrays as `flows.focus.run.maps_of` names them, as pictures and numbers."""
    there = {phase: name for phase, name in PHASES.items() if f"{name}.win.matched" in arrays}
    both = [(phase, branch) for phase in there for branch in BRANCHES]
    top = max(float(arrays[f"{PHASES[p]}.{BRANCHES[b]}.weight"].max()) for p, b in both)
    strips, numbers = {}, {}
    for phase, branch in both:
        for name, frames in _frames(arrays, PHASES[phase], BRANCHES[branch], top).items():
            strips[phase, branch, name] = _strip(frames)
        numbers[phase, branch] = _numbers(arrays, f"{PHASES[phase]}.{BRANCHES[branch]}")
    return Maps(tuple(float(sigma) for sigma in arrays["sigmas"]), strips, numbers, top)


def _frames(
    arrays: Mapping[str, NDArray[Any]], phase: str, branch: str, top: float
) -> dict[str, NDArray[np.uint8]]:
    """Map -> (S, h, w, 3)."""
    maps = {name: arrays[f"{phase}.{branch}.{name}"] for name in ("structure", "weight", "gate")}
    grid = tuple(int(n) for n in arrays["grid"])
    num = len(arrays["sigmas"])
    detail = pictures.heat(arrays["detail"].reshape(grid), 0.0, 1.0)
    off = np.full_like(detail, OFF)
    return {
        "noisy": arrays[f"{branch}_noisy"].astype(np.uint8),
        "matched": _claims(arrays[f"{phase}.{branch}.matches"], grid),
        "structure": pictures.heat(maps["structure"].reshape(num, *grid), 0.0, 1.0),
        "detail": np.stack([detail if gate > 0 else off for gate in maps["gate"]]),
        "weight": pictures.heat(maps["weight"].reshape(num, *grid), 0.0, top),
    }


def _claims(matches_SRN: NDArray[Any], grid: tuple[int, ...]) -> NDArray[np.uint8]:
    """M'_r in each subject's colour, (S, h, w, 3)."""
    claimed = matches_SRN.reshape(*matches_SRN.shape[:2], *grid) > 0.5
    out = np.full((len(claimed), *grid, 3), 255, np.uint8)
    for at in range(claimed.shape[1]):
        out[claimed[:, at]] = pictures.COLOURS[at % len(pictures.COLOURS)]
    out[claimed.sum(1) > 1] = SEVERAL
    return out


def _strip(frames: NDArray[np.uint8]) -> Encoded:
    small = [_at_most(frame) for frame in frames]
    return pictures.encode_exact(np.concatenate(small, axis=1))


def _at_most(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if max(frame.shape[:2]) <= LARGEST_FRAME:
        return frame
    picture = Image.fromarray(frame)
    picture.thumbnail((LARGEST_FRAME, LARGEST_FRAME))
    return np.asarray(picture)


def _numbers(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, list[float]]:
    prior = float(arrays["prior"].sum()) or 1.0
    share = arrays[f"{prefix}.structure"].sum(axis=-1) / prior
    return {
        "alignment": [round(float(value), 4) for value in arrays[f"{prefix}.alignment"]],
        "gate": [round(float(value), 4) for value in arrays[f"{prefix}.gate"]],
        "structure": [round(float(value), 4) for value in share],
    }
