"""Large roots: `python -m benchmarks --scale 1000`.

One root of so many subjects is really built, with few scenes each, and gets one subject more.
Another has a million candidates' artefacts by name alone: planning lists names and opens none.
Each command that is timed runs in a process of its own, as a user's would.
"""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.measuring import BenchFigure, Finished, run_command
from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.build.run import Build
from focusdpo.flows.config import BuildRun
from focusdpo.flows.console import working
from focusdpo.flows.settings import merge, parse_overrides, resolve
from focusdpo.pipeline.compose import ComposeConfig, num_sets
from focusdpo.pipeline.generate import GenerateConfig
from focusdpo.pipeline.subjects.registry import read_registry
from focusdpo.store.artefacts import Store
from focusdpo.store.manifests import PartitionRow, partitions_of

CANDIDATES = 1_000_000
PLAN_SECONDS, PLAN_BYTES, IDLE_SECONDS = 10.0, 500e6, 5.0


def scale_figures(out: Path, subjects: int, candidates: int = CANDIDATES) -> list[BenchFigure]:
    """Build, build again, add a subject; then plan for many candidates. UserError when `out` has
    something in it or a command fails."""
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: holds something already; give --scale a new --out")
    folder = out / "subjects"
    run_command(["pocket", "subjects", str(folder), "--count", str(subjects + 1), *ONE_PICTURE])
    newcomer = sorted(path for path in folder.iterdir() if path.is_dir())[subjects // 2]
    shutil.move(newcomer, out / newcomer.name)
    return [
        *_one_more(out / "dataset", folder, out / newcomer.name, subjects),
        *_planned(out / "planned", folder, candidates),
    ]


ONE_PICTURE = ("--references", "1")


def _one_more(root: Path, folder: Path, newcomer: Path, subjects: int) -> Iterator[BenchFigure]:
    """A subject more in a root that is built."""
    # About one set of two subjects per subject: what is measured does not grow with scenes.
    rates = {"compose.pair_rate": min(1.0, 2 / subjects), "compose.triple_rate": 0}
    sets = {"compose.variants": 1, "generate.candidates": 2, **rates}
    build = ["build-dataset", "--root", str(root), *_options(sets)]
    run_command(["subjects", "add", "--root", str(root), str(folder)])
    with working(f"building a root of {subjects} subjects"):
        first = run_command(build)
    idle = run_command(build)
    if idle.result["new"] or idle.result["made"]:
        raise RuntimeError(f"the second build was not idle: {idle.result}")
    run_command(["subjects", "add", "--root", str(root), str(newcomer)])
    planned = run_command([*build, "--plan"])
    before = _stamps(root)
    with working("one subject more"):
        more = run_command(build)
    of_newcomer, others = _partitions(root, newcomer.name)
    after = _stamps(root)
    computed = sum(more.result["made"].values())
    if more.result["made"] != {stage: n for stage, n in planned.result["plan"].items() if n}:
        raise RuntimeError(f"planned {planned.result['plan']}, made {more.result['made']}")
    touched = sum(after.get(name) != stamp for name, stamp in before.items())
    yield BenchFigure("subjects of the root", subjects, "")
    yield BenchFigure("partitions of the root", len(others), "")
    yield BenchFigure("first build: whole command", first.wall, "s")
    yield BenchFigure("nothing changed: whole command", idle.wall, "s", IDLE_SECONDS)
    yield BenchFigure("one subject more: its partitions", len(of_newcomer), "")
    yield BenchFigure("one subject more: stages of partitions computed", computed, "")
    yield BenchFigure(
        "one subject more: computed beyond its partitions",
        computed - len(of_newcomer) * len(more.result["made"]),
        "",
        0,
    )
    yield BenchFigure("one subject more: older artefacts and shards changed", touched, "", 0)
    yield BenchFigure("one subject more: plan, whole command", planned.wall, "s")
    yield BenchFigure("one subject more: build, whole command", more.wall, "s")


def _planned(root: Path, folder: Path, candidates: int) -> Iterator[BenchFigure]:
    """Planning, when nothing is there and when everything is."""
    run_command(["subjects", "add", "--root", str(root), str(folder)])
    sets = _sets_for(root, candidates)
    plan = ["build-dataset", "--root", str(root), "--plan", *_options(sets)]
    empty = run_command(plan)
    # Elsewhere: a child's peak begins with what its parent holds.
    elsewhere = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with elsewhere as pool, working(f"laying out {candidates} candidates' artefacts, empty"):
        laid_out = pool.submit(_lay_out, root, sets).result()
    full = run_command(plan)
    if any(full.result["plan"].values()):
        raise RuntimeError(f"names laid out, and still to compute: {full.result['plan']}")
    yield BenchFigure("candidates planned", laid_out, "")
    yield from _costs("plan, nothing there", empty)
    yield from _costs("plan, everything there", full)


def _costs(name: str, finished: Finished) -> Iterator[BenchFigure]:
    yield BenchFigure(f"{name}: whole command", finished.wall, "s", PLAN_SECONDS)
    yield BenchFigure(f"{name}: peak memory", finished.peak_bytes / 1e6, "MB", PLAN_BYTES / 1e6)


def _sets_for(root: Path, candidates: int) -> dict[str, Any]:
    """Settings with so many candidates a set of subjects as the stages' defaults give, and enough
    such sets."""
    state = read_registry(Store.open(root))
    assert state is not None
    classes = [entry.class_name for entry in state.entries.values()]
    variants, each_scene = ComposeConfig().variants, GenerateConfig().candidates
    each = variants * each_scene
    pairs = candidates / each - len(classes)
    there = num_sets(sorted(classes), 2, same_class=False)
    if not 0 <= pairs <= there:
        raise UserError(
            f"--scale: {len(classes)} subjects give {each * len(classes)} to "
            f"{each * (there + len(classes))} candidates, not {candidates}"
        )
    return {
        "compose.variants": variants,
        "generate.candidates": each_scene,
        "compose.pair_rate": pairs / there,
        "compose.triple_rate": 0,
        "compose.max_scenes": candidates,
    }


def _lay_out(root: Path, sets: dict[str, Any]) -> int:
    """An empty file for each artefact of a run; how many candidates the run has."""
    given = merge({"root": str(root)}, parse_overrides(_options(sets)[1::2]))
    builder = Build(resolve(BuildRun, given)).builder
    for unit in builder.plan.missing():
        path = root / builder.store.path(unit.stage, unit.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    scenes = sum(len(partition) for partition in builder.partitions.values())
    return scenes * builder.run.generate.candidates


def _options(sets: dict[str, Any]) -> list[str]:
    return [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]


def _partitions(root: Path, subject: str) -> tuple[list[PartitionRow], list[PartitionRow]]:
    """Partitions of the newest version: with a subject, and without it."""
    store = Store.open(root)
    name = store.files.read("LATEST").decode().strip()
    rows: Sequence[PartitionRow] = partitions_of(store, name)
    with_subject = [row for row in rows if subject in row.subject_ids]
    return with_subject, [row for row in rows if subject not in row.subject_ids]


def _stamps(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every artefact and shard: another of either is another file."""
    stamps = {}
    for folder in ("stages", "shards"):
        for path in (root / folder).rglob("*.tar"):
            stat = path.stat()
            stamps[str(path)] = (stat.st_ino, stat.st_mtime_ns)
    return stamps
