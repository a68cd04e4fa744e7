"""The main job's commands: build-dataset, train, evaluate, demo."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from focusdpo.flows.commands.common import (
    INCOMPLETE,
    JSON,
    PREFECT,
    PRESET,
    ROOT,
    SET,
    STRICT,
    finish,
    say,
    tree,
)
from focusdpo.flows.config import BuildRun, DemoRun, EvaluateRun, TrainRun
from focusdpo.flows.models_config import Family
from focusdpo.flows.prefect.server import prepare
from focusdpo.flows.progress import Bars
from focusdpo.flows.provenance import notices
from focusdpo.flows.runner import carry_out
from focusdpo.flows.settings import resolve

SUBJECTS = Annotated[
    str | None,
    typer.Option(
        "--subjects",
        metavar="DIR",
        help="A folder that holds one folder of pictures per subject (png, jpg, webp; alpha is the "
        "mask), each with an optional subject.yaml (class_name, licence). Without it: the subjects "
        "that the root has registered (`focusdpo subjects`), or individuals of the pocket world.",
    ),
]
SUFFIX = {True: "", False: " (nothing had changed)"}
HARD = ("same class",)
"""Groups in which subjects are most easily confused."""


def build_dataset(
    root: ROOT,
    subjects: SUBJECTS = None,
    strict: STRICT = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Tell what would be computed, why and how much, and stop."),
    ] = False,
    prefect: PREFECT = None,
    preset: PRESET = "pocket",
    set_: SET = [],  # noqa: B006 - typer copies it
    json: JSON = False,
) -> None:
    """Make preference pairs from subjects: compose, generate, segment, describe, disrupt, score,
    pair, shard.

    Only what is missing is computed; run it again after a stop, a new subject or a changed setting.
    """
    given = tree(preset, set_, root=root, subjects=subjects, strict=strict or None)
    run = resolve(BuildRun, given)
    say_licences(run.family)
    result = build(run, plan=plan, prefect=prefect)
    finish(result, json)
    if not plan and (result["failed"] or result["problems"]):
        raise typer.Exit(INCOMPLETE)


def say_licences(family: Family) -> None:
    """Who may not use for what what the checkpoints make."""
    for line in notices(family):
        say(line)


def build(run: BuildRun, *, plan: bool = False, prefect: bool | None = None) -> dict[str, Any]:
    """build-dataset with progress."""
    from focusdpo.flows.build.run import Build

    job = Build(run)
    show_plan(job.counts, len(job.builder.subjects))
    if plan:
        return told_plan(job)
    if job.finished():
        say("nothing is missing: no model is loaded and no engine started")
    with Bars() as watch:
        result = carry_out(job, watch, prefect=prefect)
    for line in [*result.problems, *result.failed]:
        say(f"left out: {line}")
    for line in result.alerts:
        say(line)
    say(
        f"dataset {result.version}{SUFFIX[result.new]}: {result.pairs} pairs in {result.root}; "
        f"{result.model_seconds:.1f} s of model computation, {result.wall_seconds:.1f} s in all"
    )
    if result.new_shards:
        say(f"new shards: {', '.join(result.new_shards)}")
    return dict(result.as_dict())


def show_plan(counts: dict[str, tuple[int, int]], subjects: int) -> None:
    """What there is and what is missing."""
    partitions = max((total for total, _ in counts.values()), default=0)
    todo = ", ".join(f"{stage} {absent}" for stage, (_, absent) in counts.items() if absent)
    say(f"{subjects} subjects, {partitions} partitions; to compute: {todo or 'nothing'}")


def told_plan(job: Any) -> dict[str, Any]:
    """Why it will be computed, how much it is, and what leaves the index."""
    from focusdpo.flows.build.explain import Explanation, explain

    told = Explanation(job.counts, [], 0.0, []) if job.settled is not None else explain(job.builder)
    for cause in told.causes:
        work = ", ".join(f"{stage} {count}" for stage, count in cause.partitions.items())
        say(f"  {cause.text}: {work}; {_told_seconds(cause.seconds)}")
    for line in [*told.leaving, *(f"left out: {one}" for one in job.problems)]:
        say(f"  {line}")
    if told.causes:
        say(f"in all {_told_seconds(told.seconds)}")
    return {"command": "build-dataset", "root": job.run.root, **told.as_dict()}


def _told_seconds(seconds: float | None) -> str:
    if seconds is None:
        return "its time is not known, nothing of the kind was made before"
    return f"about {seconds:.1f} s of model computation"


def train(
    root: ROOT,
    out: Annotated[str, typer.Option("--out", help="Folder or address of the run.")],
    version: Annotated[str, typer.Option("--version", help="Dataset version.")] = "latest",
    prefect: PREFECT = None,
    preset: PRESET = "pocket",
    set_: SET = [],  # noqa: B006
    json: JSON = False,
) -> None:
    """Train an adapter on a dataset version: FocusDPO, or with `--set train.objective.name=` dpo,
    dpo_prior, sft.

    The same command again goes on from the newest checkpoint.
    """
    run = resolve(TrainRun, tree(preset, set_, root=root, out=out, version=version))
    say_licences(run.family)
    finish(train_run(run, prefect=prefect), json)


def train_run(run: TrainRun, *, prefect: bool | None = None) -> dict[str, Any]:
    """train with progress."""
    from focusdpo.flows.train.run import Train

    with Bars() as watch:
        outcome = carry_out(Train(run), watch, prefect=prefect)
    say(
        f"adapter {outcome.adapter}: {outcome.objective}, {outcome.steps} steps on "
        f"{outcome.pairs} pairs in {outcome.seconds:.0f} s"
    )
    return dict(outcome.as_dict())


def evaluate(
    adapter: Annotated[
        str, typer.Option("--adapter", help="Folder or address that `train` wrote.")
    ],
    out: Annotated[str, typer.Option("--out", help="Folder or address of the evaluation.")],
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="pocket (rendered individuals), or on photographs: dreambench-single/kosmosg, "
            "dreambench-single/all-refs, dreambench-multi/uno, subjects (docs/dreambench.md).",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="The DreamBooth dataset's folder for dreambench-*, your subjects' for subjects.",
        ),
    ] = None,
    prefect: PREFECT = None,
    preset: PRESET = "pocket",
    set_: SET = [],  # noqa: B006
    json: JSON = False,
) -> None:
    """Compare the base model with an adapter on individuals that neither has seen, through a judge
    that the dataset never used."""
    given = tree(preset, set_, adapter=adapter, out=out, protocol=protocol, data=data)
    run = resolve(EvaluateRun, given)
    say_licences(run.family)
    finish(evaluate_run(run, prefect=prefect), json)


def evaluate_run(run: EvaluateRun, *, prefect: bool | None = None) -> dict[str, Any]:
    """evaluate with progress and its table."""
    from focusdpo.flows.evaluate.run import Evaluate

    with Bars() as watch:
        result = carry_out(Evaluate(run), watch, prefect=prefect)
    show_rows(result)
    return dict(result.as_dict())


def show_rows(result: Any) -> None:
    """The table over all scenes, a line per metric; of a public protocol also its hard group, and
    what must stand beside its numbers."""
    say(f"{result.scenes} scenes, {result.out}" + (" (finished before)" if result.resumed else ""))
    for note in result.notes:
        say(f"  {note}")
    groups = dict.fromkeys(row.group for row in result.rows)
    for group in [name for name in groups if name == "all" or (result.notes and name in HARD)]:
        by_metric: dict[str, dict[str, Any]] = {}
        for row in result.rows:
            if row.group == group:
                by_metric.setdefault(row.metric, {})[row.model] = row
        head = "metric" if group == "all" else f"metric, {group}"
        say(f"{head:<20}{'base':>9}{'adapter':>9}{'adapter - base':>30}")
        for metric, rows in by_metric.items():
            base, other, gap = (rows.get(name) for name in ("base", "adapter", "adapter - base"))
            told = f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]" if gap else "-"
            say(
                f"{metric:<20}{base.mean if base else float('nan'):>9.4f}"
                f"{other.mean if other else float('nan'):>9.4f}{told:>30}"
            )


def demo(
    out: Annotated[str, typer.Option("--out", help="Folder of everything that is made.")] = "demo",
    subjects: SUBJECTS = None,
    strict: STRICT = False,
    prefect: PREFECT = None,
    preset: PRESET = "pocket",
    set_: SET = [],  # noqa: B006
    json: JSON = False,
) -> None:
    """The whole job on the pocket suite: dataset, training, evaluation, report."""
    from focusdpo.flows.demo import run_demo

    given = tree(preset, set_, out=out, subjects=subjects, strict=strict or None)
    run = resolve(DemoRun, given)
    if prefect:  # one server for all three flows: its database lies in the demo's folder
        prepare(run.out)
    result = run_demo(
        run,
        partial(build, prefect=prefect),
        partial(train_run, prefect=prefect),
        partial(evaluate_run, prefect=prefect),
        say,
    )
    finish(result, json)
    if result["build"]["failed"] or result["build"]["problems"]:
        raise typer.Exit(INCOMPLETE)
