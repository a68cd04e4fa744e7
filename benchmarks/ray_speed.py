"""How much faster a stage is on two workers of a Ray cluster than on one, both in one run:

    python -m benchmarks.ray_speed runs/ray_bench --json

Workers are up and have their models before the clock starts; what is measured is the stage, with
its reads and writes and all that Ray does in between.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import quiet
from focusdpo.flows.build.cluster.connection import Engine
from focusdpo.flows.build.cluster.ray_executor import RayExecutor
from focusdpo.flows.build.run import Build
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.config import BuildRun
from focusdpo.flows.settings import merge, parse_overrides, resolve

WANTED = 1.6
"""Times the speed of one worker that two should have."""
SMALL = {
    "preset": "pocket",
    "world": {"subjects": 24},
    "compose": {"pair_rate": 0.0, "triple_rate": 0.0, "variants": 1},
    "generate": {"candidates": 2},
    "executor": {"kind": "ray", "address": "local"},
}
"""One subject a partition, on all cores of this machine."""


@dataclass(frozen=True, kw_only=True)
class RaySpeed:
    """Seconds of a stage by the number of workers."""

    stage: str
    partitions: int
    """That were computed within these seconds."""
    seconds: dict[int, list[float]]
    """Workers -> a figure per round."""

    @property
    def speedup(self) -> float:
        """Of the most workers over the fewest, each at its best."""
        few, many = min(self.seconds), max(self.seconds)
        return min(self.seconds[few]) / min(self.seconds[many])

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "speedup": self.speedup, "wanted": WANTED}


def measure(
    run: BuildRun,
    stage: str = "generate",
    workers: Sequence[int] = (1, 2),
    rounds: int = 2,
    tell: Callable[[str], None] = lambda line: None,
) -> RaySpeed:
    """Run a stage on each number of workers, by turns, in new roots below `run.root`.

    UserError when the run is not for Ray, there is no such stage, a root was used before, or there
    are too few partitions.
    """
    if run.executor.kind != "ray":
        raise UserError("ray_bench: set executor.kind=ray")
    if stage not in STAGES:
        raise UserError(f"ray_bench: no stage '{stage}'; there are {', '.join(STAGES)}")
    # Held, so that all roots are built on one cluster.
    engine = Engine(run.executor)
    seconds: dict[int, list[float]] = {count: [] for count in workers}
    partitions = 0
    try:
        for turn in range(rounds):
            for count in workers:
                took, partitions = _once(run, stage, count, max(workers), f"{turn}-{count}")
                seconds[count].append(took)
                tell(f"round {turn + 1}, {count} workers: {partitions} partitions in {took:.2f} s")
    finally:
        engine.close()
    return RaySpeed(stage=stage, partitions=partitions, seconds=seconds)


def _once(run: BuildRun, stage: str, count: int, most: int, name: str) -> tuple[float, int]:
    """Seconds of a stage on so many workers, and for how many partitions."""
    here = run.model_copy(
        update={"root": f"{run.root}/{name}", "executor": _with_workers(run, count)}
    )
    builder = Build(here).builder
    executor = RayExecutor(builder)
    try:
        for earlier in list(STAGES)[: list(STAGES).index(stage)]:
            executor.run_chunk(earlier, builder.plan.missing_partitions(earlier), quiet)
        missing = builder.plan.missing_partitions(stage)
        # The first go one to each worker, which loads its models; as many whatever the number of
        # workers, so that all have the same left.
        first, rest = missing[:most], missing[most:]
        if len(rest) < 2 * most:
            raise UserError(
                f"{here.root}: {len(missing)} partitions are missing for {stage}, which is too few "
                "to measure; take a new folder, and more subjects"
            )
        executor.start(stage)
        executor.run_chunk(stage, first, quiet)
        started = time.perf_counter()
        outcomes = executor.run_chunk(stage, rest, quiet)
        took = time.perf_counter() - started
    finally:
        executor.close()
    if bad := [outcome for outcome in outcomes if outcome.status != "made"]:
        raise UserError(f"ray_bench: {bad[0].partition} {bad[0].status}: {bad[0].message}")
    return took, len(rest)


def _with_workers(run: BuildRun, count: int) -> Any:
    """The executor with so many workers for every stage."""
    values = run.executor.model_dump()
    stages = {
        name: resources for name, resources in values["resources"].items() if resources is not None
    }
    values["resources"] = {
        name: resources | {"workers": count} for name, resources in stages.items()
    }
    return type(run.executor).model_validate(values)


def main(
    out: Annotated[Path, typer.Argument(help="Folder for what is built; new or empty.")],
    stage: Annotated[str, typer.Option("--stage", help="The stage that is measured.")] = "generate",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Measurements of each.")] = 2,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="build-dataset's.")
    ] = [],  # noqa: B006 - typer copies it
    as_json: Annotated[bool, typer.Option("--json", help="One machine-readable line.")] = False,
) -> None:
    """Measure two workers beside one."""
    tree = merge(merge(SMALL, parse_overrides(set_)), {"root": str(out)})
    try:
        speed = measure(resolve(BuildRun, tree), stage, rounds=rounds, tell=typer.echo)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    mark = "ok" if speed.speedup >= WANTED else "MISS"
    typer.echo(f"{mark:<5}{speed.speedup:.2f} times the speed of one worker (>= {WANTED})")
    if as_json:
        typer.echo(json.dumps(speed.as_dict(), sort_keys=True))


if __name__ == "__main__":
    typer.run(main)
