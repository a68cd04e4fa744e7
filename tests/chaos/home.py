"""A small house of everything that commands leave, and the commands that go on from it.

Trials on it are cheap: a copy, one fault, a command or two. `root` has two versions, decisions of
reviewers and a registry; `run` is a training of its newest version, `evaluation` its adapter's,
`models` what `retrain` left, `drafts` a subject that is being added.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import toy_suite

from focusdpo.flows.config import GenerateRun
from focusdpo.pipeline.audit import Audit
from focusdpo.store.artefacts import Store
from focusdpo.store.versions import open_version
from focusdpo.studio.drafts import Drafts

from .jobs import (
    HELD_OUT,
    REPORT,
    SMALL,
    SUBJECTS,
    Job,
    State,
    Train,
    is_of_dataset,
)
from .processes import Running
from .trials import Outcome, differences

PLAIN = ("--no-prefect", "--json")
FRESH = {"yellow": ("square", 60.0)}
"""A subject that is not in the root yet."""
SECONDS = 120.0
"""After which a command of the house hangs."""


@dataclass(frozen=True)
class Command:
    """A command of the house."""

    words: tuple[str, ...]
    """Paths relative to the house."""
    fills: str
    """What it writes, relative to the house."""
    writes_root: bool = False


def settings(*given: str) -> tuple[str, ...]:
    return tuple(word for one in given for word in ("--set", f"train.{one}"))


TRAIN = ("train", "--root", "root", "--out", "run", *settings(*Train.settings), *PLAIN)
EVALUATE = ("evaluate", "--adapter", "run/adapter", "--out", "evaluation", *HELD_OUT, *PLAIN)
BUILD = ("build-dataset", "--root", "root", "--subjects", "subjects", *SMALL, *PLAIN)
REPORT_OF = ("report", "--root", "root", "--train", "run", "--evaluate", "evaluation", "--json")
COMMANDS = {
    "build-dataset": Command(BUILD, "root", writes_root=True),
    "train": Command(TRAIN, "run"),
    "evaluate": Command(EVALUATE, "evaluation"),
    "report": Command((*REPORT_OF, "--out", "page/report.html"), "page"),
    "export dataset": Command(
        ("export", "dataset", "--root", "root", "--out", "given/pairs", "--allow-unlicensed"),
        "given",
    ),
    "export adapter": Command(
        ("export", "adapter", "--adapter", "run/adapter", "--out", "given/adapter"), "given"
    ),
    "review export": Command(
        ("review", "export", "--root", "root", "--out", "table/reviews.csv", "--json"), "table"
    ),
    "subjects add": Command(
        ("subjects", "add", "fresh/yellow", "--root", "root", "--json"), "root", writes_root=True
    ),
    "gc": Command(
        ("gc", "--root", "root", "--keep-versions", "1", "--min-age-days", "0", "--json"),
        "root",
        writes_root=True,
    ),
    "dataset purge": Command(
        ("dataset", "purge", "red", "--root", "root", "--json"), "root", writes_root=True
    ),
}
EMPTY = ("page", "table", "given")
"""Folders that commands fill from nothing."""


class House(Job):
    """All of it, at the same path in every trial."""

    name, suite, result = "house", "toy_trainer", "house"

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.kept = work / "kept"
        self._wanted: dict[str, State] = {}

    def arguments(self, scenario: str) -> list[str]:
        return list(COMMANDS[scenario].words)

    def base(self, scenario: str) -> Path | None:
        return self.kept

    def is_decided(self, path: str) -> bool:
        """Neither locks, parts and logs nor pages that tell times."""
        first, _, rest = path.partition("/")
        if first == "root":
            registry = rest.startswith("registry/")  # tells when
            return is_of_dataset(rest) or (not registry and rest.startswith(("reviews/",)))
        hidden = any(part.startswith(".") for part in path.split("/"))
        return not hidden and not path.endswith((".part", "SHA256SUMS", *REPORT))

    def build(self) -> None:
        """Make the house, once."""
        self.lay_bare()
        for name in ("build-dataset", "train", "evaluate"):
            if name == "train":
                self._more_versions()
            running = self.run(name)
            assert running.ended() == 0, running.said()
        self._decide()
        self._draft()
        shutil.rmtree(self.kept, ignore_errors=True)
        self.out.rename(self.kept)

    def lay_bare(self) -> None:
        shutil.rmtree(self.now, ignore_errors=True)
        few = {name: SUBJECTS[name] for name in ("red", "blue")}
        toy_suite.write_subjects(self.out / "subjects", few)
        toy_suite.write_subjects(self.out / "fresh", FRESH)
        for name in EMPTY:
            (self.out / name).mkdir()

    def _more_versions(self) -> None:
        toy_suite.write_subjects(self.out / "subjects", SUBJECTS)
        running = self.run("build-dataset")
        assert running.ended() == 0, running.said()

    def _decide(self) -> None:
        store = Store.open(self.out / "root")
        version = open_version(store)
        for row, decision in zip(version.rows[:2], ("accept", "accept"), strict=True):
            Audit(store).record(version.read(row).pair, decision, "ann")

    def _draft(self) -> None:
        drafts, picture = Drafts(self.out / "drafts"), self.out / "fresh" / "yellow" / "0.png"
        id = "0123456789abcdef"
        drafts.fill_in(id, "yellow", "square", "mine")
        upload = drafts.incoming()
        upload.write_bytes(picture.read_bytes())
        drafts.add(id, "0.png", upload, GenerateRun(), None)
        drafts.draw(id, "p0", drafts.mask(id, "p0"))

    def run(
        self, name: str | Sequence[str], seconds: float = SECONDS, **environment: str
    ) -> Running:
        """A command, to its end."""
        running = self.start(name, **environment)
        running.wait(seconds)
        return running

    def start(self, name: str | Sequence[str], **environment: str) -> Running:
        words = COMMANDS[name].words if isinstance(name, str) else name
        return self.launcher.start(words, self.out, environment)

    def wanted(self, name: str) -> State:
        """The state after a command that nobody disturbed; run when first asked for."""
        if name not in self._wanted:
            self.lay(name)
            self.begin(name)
            running = self.run(name)
            assert running.ended() == 0, f"undisturbed {name} failed:\n{running.said()}"
            self._wanted[name] = self.state()
        return self._wanted[name]

    def begin(self, name: str) -> None:
        """Take away what a command makes, so that there is work for it."""
        fills = COMMANDS[name].fills
        if fills in ("run", "evaluation"):
            shutil.rmtree(self.out / fills)
        if name == "build-dataset":
            for part in ("versions", "LATEST", "stages/score", "stages/pair", "shards"):
                path = self.out / "root" / part
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@dataclass
class Trial:
    """One fault to the house, and what became of it."""

    house: House
    outcome: Outcome
    told: list[str] = field(default_factory=list)
    """What commands said of it."""

    def refuse(self, running: Running, *names: str, codes: Sequence[int] = (2,)) -> None:
        """The command must have ended by one line that names one of `names`, with such a code."""
        said, code = running.said(), running.ended()
        lines = [line for line in running.stderr.read_text("utf-8").splitlines() if line]
        if code not in codes or "Traceback" in said:
            self.outcome.lost.append(f"exit {code}: {said[-700:]}")
        elif not any(name in said for name in names):
            self.outcome.lost.append(f"{names[:3]} is not named: {said[-500:]}")
        elif code == 2 and sum(line.startswith("error: ") for line in lines) != 1:
            self.outcome.lost.append(f"not one line: {lines[-4:]}")

    def goes_on(self, name: str, wanted: State | None = None) -> None:
        """The same command ends well, and everything is as in the undisturbed run."""
        running = self.house.run(name)
        if running.ended() != 0:
            self.outcome.lost.append(f"{name} does not go on: {running.said()[-700:]}")
        else:
            self.same(self.house.wanted_now(name) if wanted is None else wanted)

    def same(self, wanted: State) -> None:
        self.outcome.lost += differences(self.house.state(), wanted)[:5]
