"""What orchestration costs: a build of some partitions whose model only sleeps, run as a flow.

    python tests/helpers/overhead.py --partitions 8 --seconds 60

The model takes no processor time away, so this is the cost on a machine with a core to spare; where
the model computes on every core, Prefect's share of these comes on top.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import toy_suite

from focusdpo.data_schemas.runs import quiet
from focusdpo.flows import wiring
from focusdpo.flows.config import BuildRun
from focusdpo.flows.settings import resolve


class Sleeper:
    """Paints at once, after a sleep."""

    fingerprint = "toy"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def generate(self, *given: Any, **more: Any) -> Any:
        time.sleep(self.seconds)
        return toy_suite.GENERATOR.generate(*given, **more)


def measure(folder: Path, partitions: int, seconds: float) -> dict[str, float]:
    """Seconds of a build with `seconds` of model in each of `partitions`: wall, model, and the
    rest; `share` is the rest's, of the wall clock."""
    hues = {f"s{n:02}": ("disc", 360.0 * n / partitions) for n in range(partitions)}
    toy_suite.write_subjects(folder / "subjects", hues)
    toy_suite.PARTS["generator"] = Sleeper(seconds)
    wiring.SUITES["pocket"] = "toy_suite"
    wiring.resident_parts.cache_clear()
    tree = {
        "root": str(folder / "root"),
        "subjects": str(folder / "subjects"),
        # Scenes of one subject each: a partition is a set of subjects.
        "compose": {"single_rate": 1.0, "pair_rate": 0.0, "triple_rate": 0.0, "variants": 1},
        "generate": {"candidates": 3},
        "pair": {"min_winner_identity": 0.0, "min_drop": 0.02},
    }
    started = time.perf_counter()
    from plain_build import prepare

    from focusdpo.flows.runner import carry_out

    prepared = prepare(resolve(BuildRun, tree))
    made = len(prepared.builder.partitions)
    if made != partitions:
        raise RuntimeError(f"{made} partitions instead of {partitions}")
    result = carry_out(prepared, quiet, prefect=True)
    wall = time.perf_counter() - started
    model = partitions * seconds
    rest = wall - model
    return {
        "wall": round(wall, 2),
        "model": model,
        "rest": round(rest, 2),
        "share": round(rest / wall, 4),
        "start": result.start_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), given.partitions, given.seconds)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
