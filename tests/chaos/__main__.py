"""Disturb the commands and tell what was lost: `python -m tests.chaos --kills 200`.

The same call again goes on behind the trials that --json has. A trial's faults depend on --seed and
its number alone: --only repeats one. What cannot be repeated is the moment as such; the JSON tells
which files were there by then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import circumstances, strangers, wounds
from .bucket import a_bucket, disturbed, draw_fault
from .damage import PLACES, damaged, full
from .faults import draw_strikes
from .jobs import Build, Evaluate, Job, Retrain, Train
from .server import Server, draw_trouble, troubled
from .summary import read, table, write
from .trials import Outcome, Reference, killed, reference
from .workspace import Trial, Workspace


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of build-dataset")
    parser.add_argument("--train-kills", type=int, default=0)
    parser.add_argument("--evaluate-kills", type=int, default=0)
    parser.add_argument("--retrain-kills", type=int, default=0)
    parser.add_argument("--damages", type=int, default=0, help="files of a finished dataset")
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    parser.add_argument("--full-disks", type=int, default=0, help="mounts a tmpfs: needs the right")
    parser.add_argument("--prefect", type=int, default=0, help="builds as flows, in trouble")
    parser.add_argument("--bucket", type=int, default=0, help="builds on s3://, in trouble")
    for name, kind in SMALL_KINDS.items():
        parser.add_argument(f"--{name}", type=int, default=0, help=kind.about)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one trial, by its number")
    parser.add_argument("--fresh", type=int, default=20, help="every so many trials, interpreters")
    parser.add_argument("--work", type=Path, help="an empty folder; default: a temporary one")
    parser.add_argument("--json", type=Path, default=Path("chaos.json"), help="all that was found")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no trial after so many")
    return parser.parse_args(given)


@dataclass(frozen=True)
class SmallKind:
    """Faults to a small workspace."""

    about: str
    act: Callable[[Trial, random.Random], None]


LARGE = (
    *("kills", "train_kills", "evaluate_kills", "retrain_kills"),
    *("damages", "full_disks", "prefect", "bucket"),
)
"""Options for trials of a whole job."""
SMALL_KINDS = {
    "hostile": SmallKind("workspaces of strangers that lead outside", strangers.hostile),
    "foreign": SmallKind("files that are none of ours", strangers.foreign),
    "not-finite": SmallKind("models that hand over no picture, no number", strangers.not_finite),
    "wounds": SmallKind("files of any kind damaged", wounds.wounded),
    "full": SmallKind("no room in the middle of any command", circumstances.full),
    "read-only": SmallKind("disks that may only be read", circumstances.read_only),
    "taken-away": SmallKind("folders taken away in the middle", circumstances.taken_away),
    "beside": SmallKind("gc and purge beside a training", circumstances.beside_training),
    "clocks": SmallKind("clocks that jump", circumstances.clock),
    "signals": SmallKind("Ctrl-C and SIGTERM", circumstances.signalled),
    "databases": SmallKind("Prefect's database damaged", circumstances.prefect_database),
}


class Session:
    """All trials of a call."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.outcomes: list[Outcome] = []
        self.references: dict[tuple[str, str], Reference] = {}
        if options.json.exists() and options.only is None:
            self.outcomes = read(options.json)
        self.end = time.monotonic() + 60 * options.minutes

    def about(self) -> dict[str, object]:
        words = {name: str(value) for name, value in vars(self.options).items()}
        return {"options": words, "cpus": os.cpu_count()}

    def keep(self, outcome: Outcome) -> None:
        """Tell of a trial and write all so far."""
        self.outcomes.append(outcome)
        faults = ", then ".join(outcome.faults) or "missed"
        state = "ok" if outcome.whole else "WRONG"
        say(f"{outcome.job} {outcome.number} {outcome.scenario}: {faults}: {state}")
        for line in [*outcome.lost, *outcome.twice, *outcome.half_visible]:
            say(f"    {line}")
        write(self.options.json, self.outcomes, self.about())

    def kill(self, job: Job, wanted: int) -> None:
        """Trials until so many kills have struck."""
        if not wanted:
            return
        before = [one for one in self.outcomes if one.job == job.name and one.kind == "kill"]
        number = self.options.only or len(before)
        struck = sum(len(one.kinds) for one in before)
        while struck < wanted and time.monotonic() < self.end:
            draw = random.Random(f"{self.options.seed}/{job.name}/{number}")
            scenario = draw.choice(job.scenarios)
            found = self.undisturbed(job, scenario)
            strikes = draw_strikes(draw, job.name, found.calls, found.files)
            fresh = bool(self.options.fresh) and number % self.options.fresh == 1
            outcome = killed(job, scenario, found, strikes, number, fresh=fresh)
            self.keep(outcome)
            struck += len(outcome.kinds)
            number += 1
            if self.options.only is not None:
                break

    def undisturbed(self, job: Job, scenario: str) -> Reference:
        """What the command does when it is left alone; run when first asked for."""
        name = (job.name, scenario)
        if name not in self.references:
            found = self.references[name] = reference(job, scenario)
            say(
                f"{job.name} {scenario}: undisturbed {found.seconds:.1f} s, {len(found.calls)} "
                f"calls that change files, {len(found.state)} files compared"
            )
        return self.references[name]

    def numbers(self, kind: str, wanted: int) -> Iterator[int]:
        """Trials' numbers, or the only one, for as long as there is time."""
        only, done = self.options.only, sum(one.kind == kind for one in self.outcomes)
        for number in range(done, wanted) if only is None else (only,):
            if time.monotonic() < self.end:
                yield number

    def damage(self, build: Build, wanted: int) -> None:
        """Trials on copies of the last reference's dataset."""
        if not wanted:
            return
        scenario = build.scenarios[-1]
        found = self.undisturbed(build, scenario)
        whole = self.work / "whole"
        undisturbed(build, whole)
        for number in self.numbers("damage", wanted):
            draw = random.Random(f"{self.options.seed}/damage/{number}")
            places = self.options.places
            self.keep(damaged(build, scenario, found, whole, number, draw, places))

    def fill(self, build: Build, wanted: int) -> None:
        """Trials on small disks."""
        if not wanted:
            return
        for number in self.numbers("disk", wanted):
            draw = random.Random(f"{self.options.seed}/disk/{number}")
            scenario = draw.choice(build.scenarios)
            found = self.undisturbed(build, scenario)
            outcome = full(build, scenario, found, number, draw.random())
            if outcome is None:
                say("no right to mount a tmpfs: no disk was filled")
                return
            self.keep(outcome)

    def trouble(self, build: Build, wanted: int) -> None:
        """Trials as flows of a real Prefect server."""
        if not wanted:
            return
        server = Server(self.work / "prefect")
        server.start()
        try:
            for number in self.numbers("prefect", wanted):
                draw = random.Random(f"{self.options.seed}/prefect/{number}")
                scenario = draw.choice(build.scenarios)
                found = self.undisturbed(build, scenario)
                trouble = draw_trouble(draw, number, found.files // 2)
                self.keep(troubled(build, scenario, found, server, number, trouble))
        finally:
            server.kill()

    def store(self, wanted: int) -> None:
        """Trials on a bucket of a real S3 server."""
        if not wanted:
            return
        with a_bucket(below(self.work, "bucket")) as job:
            job.grow()
            for number in self.numbers("bucket", wanted):
                draw = random.Random(f"{self.options.seed}/bucket/{number}")
                scenario = draw.choice(job.scenarios)
                found = self.undisturbed(job, scenario)
                job.lay(scenario)
                new = len(found.state) - len(job.state())
                self.keep(disturbed(job, scenario, found, number, draw_fault(draw, number, new)))

    def small(self) -> None:
        """Trials on copies of a small workspace: one fault, a command or two."""
        counts = {name: getattr(self.options, name.replace("-", "_")) for name in SMALL_KINDS}
        if not any(counts.values()):
            return
        place = Workspace(self.work / "workspace")  # made once where --work names one
        with closing(place):
            if not place.kept.exists():
                place.make()
            for name, wanted in counts.items():
                kind = SMALL_KINDS[name]
                for number in self.numbers(name, wanted) if wanted else ():
                    outcome = Outcome("any", number, "", name)
                    started = time.monotonic()
                    draw = random.Random(f"{self.options.seed}/{name}/{number}")
                    kind.act(Trial(place, outcome), draw)
                    outcome.seconds = round(time.monotonic() - started, 2)
                    self.keep(outcome)

    def run(self) -> None:
        """Build, and what goes on from it."""
        options = self.options
        self.small()
        build = Build(below(self.work, "build"))
        dataset = self.work / "dataset"
        with closing(build):
            if not any(getattr(options, name) for name in LARGE):
                return
            build.grow()
            self.kill(build, options.kills)
            self.damage(build, options.damages)
            self.fill(build, options.full_disks)
            self.trouble(build, options.prefect)
            self.store(options.bucket)
            if options.retrain_kills:
                retrain = Retrain(below(self.work, "retrain"), build.subjects("new"))
                with closing(retrain):
                    self.kill(retrain, options.retrain_kills)
            if not (options.train_kills or options.evaluate_kills):
                return
            undisturbed(build, dataset)
        train = Train(below(self.work, "train"), dataset)
        trained = self.work / "trained"
        with closing(train):
            self.kill(train, options.train_kills)
            undisturbed(train, trained)
        if options.evaluate_kills:
            evaluate = Evaluate(below(self.work, "evaluate"), trained / "adapter")
            with closing(evaluate):
                self.kill(evaluate, options.evaluate_kills)


def undisturbed(job: Job, target: Path) -> None:
    """The job once more, for the next one to go on from."""
    last = job.scenarios[-1]
    job.lay(last)
    running = job.launcher.start(job.arguments(last), job.work, {})
    assert running.wait() == 0, running.said()
    shutil.move(job.out, target)


def below(work: Path, name: str) -> Path:
    """A new folder."""
    (work / name).mkdir()
    return work / name


@contextlib.contextmanager
def closing(job: Job) -> Iterator[None]:
    try:
        yield
    finally:
        job.launcher.close()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(given: list[str] | None = None) -> int:
    """All that was asked for; 0 when nothing was lost."""
    options = arguments(given)
    with contextlib.ExitStack() as stack:
        work = options.work
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        work = work.resolve()
        work.mkdir(parents=True, exist_ok=True)
        session = Session(options, work)
        session.run()
    say("\n" + table(session.outcomes))
    return 0 if all(one.whole for one in session.outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
