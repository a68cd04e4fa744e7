"""The jobs' commands: demo, build-dataset, train, evaluate, ablate, retrain; and prefect-setup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel, ConfigDict, Field

from focusdpo.data_schemas.errors import counted
from focusdpo.evaluation.comparison import paired_texts
from focusdpo.flows.commands import cost
from focusdpo.flows.commands.options import PREFECT, Incomplete, say
from focusdpo.flows.config import (
    AblateRun,
    BuildRun,
    DemoRun,
    EncodeRun,
    EvaluateRun,
    RetrainRun,
    RoundsRun,
    TrainRun,
)
from focusdpo.flows.console import Bars, working
from focusdpo.flows.models_config import Family
from focusdpo.flows.prefect.reachable import require_home
from focusdpo.flows.prefect.server import hush, prepare
from focusdpo.flows.runner import carry_out
from focusdpo.flows.settings import Option
from focusdpo.model.objective_registry import objectives_in_words
from focusdpo.store.provenance import notices

SUFFIX = {True: "", False: " (nothing had changed)"}
HARD = ("same class",)
"""Groups in which subjects are most easily confused."""


def build_dataset(
    run: BuildRun,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Tell what would be computed, why and how much; nothing is written."
        ),
    ] = False,
    first: Annotated[
        int | None,
        typer.Option(
            "--first",
            min=1,
            metavar="N",
            help="Build about N scenes, show what each threshold keeps of them, propose, and stop.",
        ),
    ] = None,
    prefect: PREFECT = None,
) -> dict[str, Any]:
    """Make preference pairs from subjects: compose, generate, segment, describe, disrupt, score,
    pair, shard.

    Only what is missing is computed; run it again after a stop, a new subject or a changed setting.
    """
    if first is not None:
        return _look_first(run, first)
    summary = _build(run, plan, prefect)
    if not plan:
        show_next(run.root, summary["version"])
    return summary


def _look_first(run: BuildRun, scenes: int) -> dict[str, Any]:
    from focusdpo.flows.build.thresholds import look_first
    from focusdpo.flows.runner import PlainSteps

    say_licences(run.family)
    with Bars() as watch:
        decisions = look_first(run, scenes, PlainSteps(), watch)
    for decision in decisions:
        for line in decision.lines():
            say(line)
    say("nothing was changed: give what you take with --set, or write it into a preset")
    summaries = [decision.as_dict() for decision in decisions]
    return {"command": "build-dataset", "first": scenes, "decisions": summaries}


def show_next(root: str, version: str) -> None:
    """What a dataset lacks, and what to do with it."""
    from focusdpo.flows.build.worth import next_steps, worth_of
    from focusdpo.store.versions import open_version

    for line in next_steps(worth_of(open_version(root, version)), root):
        say(line)


def _build(run: BuildRun, plan: bool = False, prefect: bool | None = None) -> dict[str, Any]:
    from focusdpo.flows.build.run import Build
    from focusdpo.flows.build.worth import worth_lines, worth_of
    from focusdpo.store.versions import open_version

    say_licences(run.family)
    job = Build(run, write=not plan)
    show_plan(job.counts, len(job.builder.subjects))
    if plan:
        return told_plan(job)
    if job.finished():
        say("nothing is missing: no model is loaded and no engine started")
    with Bars() as watch:
        result = carry_out(job, watch, prefect=prefect)
    for line in [*result.problems, *result.failed]:
        say(f"left out: {line}")
    for line in result.notes:
        say(f"note: {line}")
    say(
        f"dataset {result.version}{SUFFIX[result.new]}: {counted(result.pairs, 'pair')} in "
        f"{result.root}; {result.model_seconds:.1f} s of model computation, "
        f"{result.wall_seconds:.1f} s in all"
    )
    for line in worth_lines(worth_of(open_version(result.root, result.version))):
        say(line)
    if result.new_shards:
        say(f"new shards: {', '.join(result.new_shards)}")
    return _whole(result.as_dict(), result.as_dict())


def _whole(result: Mapping[str, Any], build: Mapping[str, Any]) -> dict[str, Any]:
    """What a command says; its exit code tells whether its build left something out."""
    left_out = build["failed"] or build["problems"]
    return Incomplete(result) if left_out else dict(result)


def say_licences(family: Family) -> None:
    """Who may not use for what what the checkpoints make."""
    for line in notices(family):
        say(line)


def show_plan(counts: dict[str, tuple[int, int]], subjects: int) -> None:
    """What there is and what is missing."""
    partitions = max((total for total, _ in counts.values()), default=0)
    todo = ", ".join(f"{stage} {absent}" for stage, (_, absent) in counts.items() if absent)
    say(
        f"{counted(subjects, 'subject')}, {counted(partitions, 'partition')}; to compute: "
        f"{todo or 'nothing'}"
    )


def told_plan(job: Any) -> dict[str, Any]:
    """Why it will be computed, how much it is, and what leaves the index."""
    from focusdpo.flows.build.explain import Explanation, explain

    explanation = (
        Explanation(job.counts, [], 0.0, []) if job.settled is not None else explain(job.builder)
    )
    for cause in explanation.causes:
        work = ", ".join(f"{stage} {count}" for stage, count in cause.partitions.items())
        say(f"  {cause.text}: {work}{_told_seconds('; ', cause.seconds)}")
    for line in [*explanation.leaving, *(f"left out: {problem}" for problem in job.problems)]:
        say(f"  {line}")
    if explanation.causes:
        say(
            f"in all{_told_seconds(' ', explanation.seconds)}"
            if explanation.seconds is not None
            else UNTIMED
        )
        for line in cost.build_lines(job, known=explanation.seconds is not None):
            say(f"  {line}")
    plan = {"command": "build-dataset", "root": job.run.root, **explanation.as_dict()}
    return Incomplete(plan) if job.problems else plan


UNTIMED = "how long it takes is not known: nothing of the kind was made before"


def _told_seconds(before: str, seconds: float | None) -> str:
    return "" if seconds is None else f"{before}about {seconds:.1f} s of model computation"


def encode(run: EncodeRun) -> dict[str, Any]:
    """Encode the pictures and prompts of a dataset version before a training: it then loads neither
    text encoders nor autoencoder, and needs their memory for nothing.

    What is encoded already is left as it is; `train` does the same by itself with what is missing.
    """
    from focusdpo.flows.train.encode import encode_dataset

    say_licences(run.family)
    with Bars() as watch:
        outcome = encode_dataset(run, watch)
    say(
        f"{counted(outcome.pairs, 'pair')} of version {outcome.version} in {outcome.folder}: "
        f"{counted(outcome.made, 'picture')}, references and prompts encoded now in "
        f"{outcome.seconds:.0f} s"
    )
    if outcome.missing:
        say(
            f"{counted(outcome.missing, 'pair')} found no room and will be encoded while training: "
            "raise train.encoded.gib or free some space"
        )
    summary = outcome.as_dict()
    return Incomplete(summary) if outcome.missing else summary


COST = Annotated[
    bool,
    typer.Option("--plan", help="Tell passes, operations, memory and hours, and stop."),
]


def _told_cost(command: str, planned: cost.Cost) -> dict[str, Any]:
    for line in planned.lines():
        say(line)
    return {"command": command, "plan": asdict(planned)}


def train(run: TrainRun, plan: COST = False, prefect: PREFECT = None) -> dict[str, Any]:
    from focusdpo.flows.train.run import Train

    if plan:
        return _told_cost("train", cost.train_cost(run))
    say_licences(run.family)
    with Bars() as watch:
        outcome = carry_out(Train(run), watch, prefect=prefect)
    say(
        f"adapter {outcome.adapter}: {outcome.objective}, {counted(outcome.steps, 'step')} on "
        f"{counted(outcome.pairs, 'pair')} in {outcome.seconds:.0f} s"
    )
    curves = Path(run.out) / "tensorboard"
    if curves.is_dir():
        say(f"curves: tensorboard --logdir {curves}")
    return dict(outcome.as_dict())


train.__doc__ = f"""Train an adapter on a dataset version.

    `--set train.objective.name=NAME` says what is minimised. {objectives_in_words()}; module:name:
    one of your own (docs/add_an_objective.md).

    The same command again goes on from the newest checkpoint.
    """


def evaluate(run: EvaluateRun, plan: COST = False, prefect: PREFECT = None) -> dict[str, Any]:
    """Compare the base model with an adapter on individuals that neither has seen, through a judge
    that the dataset never used."""
    from focusdpo.flows.evaluate.run import Evaluate

    if plan:
        return _told_cost("evaluate", cost.evaluate_cost(run))
    say_licences(run.family)
    job = Evaluate(run)
    if not job.finished():
        say(job.plan.amount)
    with Bars() as watch:
        result = carry_out(job, watch, prefect=prefect)
    show_rows(result)
    return Incomplete(result.as_dict()) if result.left_out else dict(result.as_dict())


def show_rows(result: Any) -> None:
    """The table over all scenes, a line per metric; of a public protocol also its hard group, and
    what must stand beside its numbers."""
    say(
        f"{counted(result.scenes, 'scene')}, {result.out}"
        + (" (finished before)" if result.resumed else "")
    )
    for note in result.notes:
        say(f"  {note}")
    groups = dict.fromkeys(row.group for row in result.rows)
    for group in [name for name in groups if name == "all" or (result.notes and name in HARD)]:
        head = "metric" if group == "all" else f"metric, {group}"
        say(f"{head:<20}{'base':>9}{'adapter':>9}{'adapter - base':>30}{'scenes':>8}")
        for row in paired_texts(result.rows, group):
            say(f"{row.metric:<20}{row.base:>9}{row.adapter:>9}{row.difference:>30}{row.scenes:>8}")


def demo(run: DemoRun, prefect: PREFECT = None) -> dict[str, Any]:
    """The whole job on the pocket suite: dataset, training, evaluation, report."""
    from focusdpo.flows.build.sources import require_folder
    from focusdpo.flows.demo import run_demo

    if run.subjects is not None:
        require_folder(run.subjects)
    if prefect:  # one server for all three flows: its database lies in the demo's folder
        prepare(run.out)
    result = run_demo(
        run,
        partial(_build, prefect=prefect),
        partial(train, prefect=prefect),
        partial(evaluate, prefect=prefect),
        say,
    )
    return _whole(result, result["build"])


def ablate(
    run: AblateRun,
    docs: Annotated[
        Path | None,
        typer.Option("--docs", help="Also copy tables, curves and pictures to this folder."),
    ] = None,
    prefect: PREFECT = None,
) -> dict[str, Any]:
    """Compare SFT, DPO, masked DPO, PatchDPO and FocusDPO, each with the settings that a small
    search on validation individuals gives it, on several kinds of pairs, with several seeds.

    Takes hours on two cores with the pocket preset. What is finished is kept:
    the same command goes on.
    """
    from focusdpo.flows.ablation.run import Ablate

    with Bars() as watch:
        outcome = carry_out(Ablate(run), watch, prefect=prefect)
    for line in outcome.verdict:
        say(line)
    say(
        f"{counted(outcome.cells, 'cell')}, {outcome.made} of them made now in "
        f"{outcome.wall_seconds:.0f} s; report: {outcome.report}"
    )
    if docs is not None:
        from focusdpo.reports.ablation_page import publish

        for file in publish(Path(run.out), docs):
            say(f"copied: {file}")
    return dict(outcome.as_dict())


def retrain(run: RetrainRun, prefect: PREFECT = None) -> dict[str, Any]:
    """Build from what is new; train when enough is (`retrain.min_new_pairs`) or the adapter in use
    is old; compare the two adapters by a protocol; point promoted.json at the new one if it is
    better, else keep the old one and say why.

    The same command again goes on after a stop; docs/operations.md has the schedule.
    """
    from focusdpo.flows.retrain.run import Retrain

    say_licences(run.family)
    with Bars() as watch:
        outcome = carry_out(Retrain(run), watch, prefect=prefect)
    for line in [*outcome.build["problems"], *outcome.build["failed"]]:
        say(f"left out: {line}")
    say(
        f"dataset {outcome.version}: {counted(outcome.build['pairs'], 'pair')}, "
        f"{outcome.new_pairs} new"
    )
    say(f"{outcome.candidate or 'no candidate'}, {outcome.decision}: {outcome.reason}")
    say(f"in use: {outcome.adapter or 'the base alone'}")
    return _whole(outcome.as_dict(), outcome.build)


def rounds(run: RoundsRun, prefect: PREFECT = None) -> dict[str, Any]:
    """Build, train and evaluate by turns: each round's candidates are painted with the adapter of
    the round before, and each adapter is trained from the base. The settings of all three belong to
    every round.

    The same command again goes on after a stop; a higher `rounds.count` adds rounds.
    """
    from focusdpo.flows.rounds.run import Rounds, table

    say_licences(run.family)
    with Bars() as watch:
        outcome = carry_out(Rounds(run), watch, prefect=prefect)
    say(f"{'round':<7}{'pairs':>6}  {'metric':<16}{'base':>9}{'adapter':>9}{'adapter - base':>30}")
    for row in table(outcome.rounds):
        change = f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        say(
            f"{row['round']:<7}{row['pairs']:>6}  {row['metric']:<16}{row['base']:>9.4f}"
            f"{row['adapter']:>9.4f}{change:>30}"
        )
    say(f"{outcome.made} rounds made now; adapter of the last: {outcome.rounds[-1].adapter}")
    return dict(outcome.as_dict())


class PrefectSetup(BaseModel):
    """What `prefect-setup` makes on a server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pool: Annotated[str, Option("--pool")] = Field("local", description="name of the work pool")
    gpu_slots: Annotated[int, Option("--gpu-slots")] = Field(
        1, ge=1, description="how many runs may use the GPU at once"
    )
    on_publish: Annotated[Literal["train", "retrain"] | None, Option("--on-publish")] = Field(
        None,
        description="which deployment a published dataset version starts; without it none is added",
    )
    evaluate: Annotated[bool, Option("--evaluate")] = Field(
        False, description="a trained adapter starts the deployment evaluate"
    )
    silence: Annotated[float, Option("--silence")] = Field(
        540, ge=60, description="seconds without a heartbeat after which a run counts as crashed"
    )


def prefect_setup(run: PrefectSetup) -> dict[str, Any]:
    """Make on the Prefect server at PREFECT_API_URL what our flows need: work pool, the GPU's
    concurrency limit, automations. What is there already as it should be stays."""
    hush()
    require_home()
    from focusdpo.flows.prefect.setup import setup

    with working("looking at the Prefect server"):
        done = setup(**dict(run))
    for made in done:
        say(f"{made.state:<8}{made.what}")
    return {"command": "prefect-setup", "done": [asdict(made) for made in done]}
