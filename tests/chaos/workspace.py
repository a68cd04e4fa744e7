"""A small workspace with everything that commands leave, and the commands that go on from it.

Trials on it are cheap: a copy, one fault, a command or two. `root` has two versions, decisions of
reviewers and a registry; `run` is a training on its newest version, `evaluation` its adapter's;
`drafts` has a subject that is being added.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import toy_suite

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.config import GenerateRun
from focusdpo.flows.doctor import dataset_check, run_check
from focusdpo.pipeline.audit import Audit
from focusdpo.store.artefacts import Store
from focusdpo.store.versions import open_version
from focusdpo.studio.drafts import Drafts

from .jobs import HELD_OUT, REPORT, SMALL, SUBJECTS, Job, State, Train, files_below, is_of_dataset
from .processes import Running
from .trials import Outcome, differences, follow

PLAIN = ("--no-prefect", "--json")
FRESH = {"yellow": ("square", 60.0)}
"""A subject that is not in the root yet."""
DRAFT = "0123456789abcdef"
SECONDS = 240.0
"""After which a command here hangs."""
ROUNDS = 4


@dataclass(frozen=True)
class Command:
    """A command; words that begin with @ are paths in the workspace."""

    words: tuple[str, ...]
    fills: str
    """The folder that it writes."""


_SETTINGS = tuple(word for one in Train.settings for word in ("--set", f"train.{one}"))
COMMANDS = {
    "build-dataset": Command(
        ("build-dataset", "--root", "@root", "--subjects", "@subjects", *SMALL, *PLAIN), "root"
    ),
    "train": Command(("train", "--root", "@root", "--out", "@run", *_SETTINGS, *PLAIN), "run"),
    "evaluate": Command(
        ("evaluate", "--adapter", "@run/adapter", "--out", "@evaluation", *HELD_OUT, *PLAIN),
        "evaluation",
    ),
    "report": Command(
        (
            *("report", "--root", "@root", "--train", "@run", "--evaluate", "@evaluation"),
            *("--out", "@page/report.html", "--json"),
        ),
        "page",
    ),
    "export dataset": Command(
        (
            *("export", "dataset", "--root", "@root", "--out", "@given/pairs"),
            *("--allow-unlicensed", "--json"),
        ),
        "given",
    ),
    "export adapter": Command(
        ("export", "adapter", "--adapter", "@run/adapter", "--out", "@given/adapter", "--json"),
        "given",
    ),
    "review export": Command(
        ("review", "export", "--root", "@root", "--out", "@table/reviews.csv", "--json"), "table"
    ),
    "subjects add": Command(
        ("subjects", "add", "@fresh/yellow", "--root", "@root", "--json"), "root"
    ),
    "gc": Command(
        ("gc", "--root", "@root", "--keep-versions", "1", "--min-age-hours", "0", "--json"), "root"
    ),
    "dataset purge": Command(("dataset", "purge", "red", "--root", "@root", "--json"), "root"),
}
EMPTY = ("page", "table", "given")
"""Folders that commands fill from nothing."""
RUNS = ("run", "evaluation", "drafts")
"""What `doctor --run` looks at."""


class Workspace(Job):
    """All of it, at the same path in every trial."""

    name, suite, result = "workspace", "toy_trainer", "all"

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.kept = work / "kept"
        self._wanted: dict[str, State] = {}
        self.files: dict[str, int] = {}
        self.pages: dict[str, int] = {}
        """Of all there is after a command that nobody disturbed; pages of 4 KiB."""

    def arguments(self, scenario: str) -> list[str]:
        return self.words(COMMANDS[scenario].words)

    def words(self, given: Sequence[str]) -> list[str]:
        return [str(self.out / word[1:]) if word.startswith("@") else word for word in given]

    @property
    def address(self) -> str:
        """Of the dataset."""
        return str(self.out / "root")

    def base(self, scenario: str) -> Path | None:
        return self.kept

    def is_decided(self, path: str) -> bool:
        """Neither locks, parts and logs nor what tells times."""
        first, _, rest = path.partition("/")
        if first == "root":
            return is_of_dataset(rest) or rest.startswith("reviews/")
        hidden = any(part.startswith(".") for part in path.split("/"))
        return not hidden and not path.endswith((".part", "SHA256SUMS", *REPORT))

    def make(self) -> None:
        """All of it, once."""
        shutil.rmtree(self.now, ignore_errors=True)
        few = {name: SUBJECTS[name] for name in ("red", "blue")}
        toy_suite.write_subjects(self.out / "subjects", few)
        toy_suite.write_subjects(self.out / "fresh", FRESH)
        for name in EMPTY:
            (self.out / name).mkdir()
        self._must("build-dataset")
        toy_suite.write_subjects(self.out / "subjects", SUBJECTS)
        for name in ("build-dataset", "train", "evaluate"):
            self._must(name)
        store = Store.open(self.out / "root")
        version = open_version(store)
        for row in version.rows[:2]:
            Audit(store).record(version.read(row).pair, "accept", "ann")
        self._must("subjects add")
        self._draft()
        self.out.rename(self.kept)

    def _must(self, name: str) -> None:
        running = self.run(name)
        assert running.ended() == 0, f"undisturbed {name} failed:\n{running.said()}"

    def _draft(self) -> None:
        drafts, picture = Drafts(self.out / "drafts"), self.out / "fresh" / "yellow" / "0.png"
        drafts.fill_in(DRAFT, {"name": "yellow", "class_name": "square", "licence": "mine"})
        upload = drafts.incoming()
        upload.write_bytes(picture.read_bytes())
        drafts.add(DRAFT, "0.png", upload, GenerateRun(), None)
        drafts.draw(DRAFT, "p0", drafts.mask(DRAFT, "p0"))

    def run(self, command: str | Sequence[str], **environment: str) -> Running:
        """A command, to its end."""
        running = self.start(command, **environment)
        running.wait(SECONDS)
        return running

    def start(self, command: str | Sequence[str], **environment: str) -> Running:
        given = COMMANDS[command].words if isinstance(command, str) else command
        return self.launcher.start(self.words(given), self.work, environment)

    def wanted(self, name: str) -> State:
        """The state after a command that nobody disturbs; run twice when first asked for."""
        if name not in self._wanted:
            states = []
            for _ in range(2):
                self.lay(name)
                self.begin(name)
                self._must(name)
                states.append(self.state())
            assert states[0] == states[1], differences(states[1], states[0])[:5]
            self._wanted[name] = states[0]
            sizes = [path.stat().st_size for _, path in files_below(self.out)]
            self.files[name] = len(sizes)
            self.pages[name] = sum(-(-size // 4096) for size in sizes)
        return self._wanted[name]

    def begin(self, name: str) -> None:
        """Take away what a command makes, so that there is work for it."""
        fills = COMMANDS[name].fills
        if fills in ("run", "evaluation"):
            shutil.rmtree(self.out / fills)
        if name == "build-dataset":
            for part in ("versions", "shards", "stages"):
                shutil.rmtree(self.out / "root" / part)
            (self.out / "root" / "LATEST").unlink()
        if name == "subjects add":
            self._forget("yellow")

    def _forget(self, subject: str) -> None:
        running = self.run(("subjects", "remove", subject, "--root", "@root", "--json"))
        assert running.ended() == 0, running.said()


@dataclass
class Trial:
    """One fault, and what became of it."""

    place: Workspace
    outcome: Outcome

    def fault(self, kind: str, what: str) -> None:
        """It strikes now."""
        self.outcome.faults.append(what)
        self.outcome.kinds.append(kind)

    def refused(self, running: Running, *names: str, codes: Sequence[int] = (2,)) -> None:
        """The command must have ended by one line that names one of `names`."""
        said, code = running.said(), running.ended()
        lines = running.stderr.read_text("utf-8").splitlines()
        if code not in codes or "Traceback" in said:
            self.wrong(f"exit {code}: {said[-700:]}")
        elif not any(name in said for name in names):
            self.wrong(f"none of {names[:4]} is named: {said[-500:]}")
        elif code == 2 and sum(line.startswith("error: ") for line in lines) != 1:
            self.wrong(f"not one line: {lines[-4:]}")

    def wrong(self, what: str) -> None:
        self.outcome.lost.append(what)

    def goes_on(self, name: str, wanted: State) -> None:
        """The same command ends well, what its messages say being done in between, and everything
        is as in the undisturbed run."""
        said = ""
        for _ in range(ROUNDS):
            running = self.place.run(name)
            said = running.said()
            if running.ended() == 0:
                self.same(wanted)
                return
            if "Traceback" in said or not follow(self.place, said, self.outcome):
                break
        self.wrong(f"{name} does not go on: {said[-700:]}")

    def same(self, wanted: State) -> None:
        self.outcome.lost += differences(self.place.state(), wanted)[:5]

    def doctor(self) -> tuple[bool, str]:
        """What `doctor` says of it all, in this process, which is cheaper."""
        runs = [path for name in RUNS if (path := self.place.out / name).is_dir()]
        try:
            checks = [dataset_check(self.place.address), *map(run_check, runs)]
        except UserError as error:
            return False, str(error)
        return all(one.ok for one in checks), "; ".join(one.told for one in checks)


@contextmanager
def mounted(folder: Path, pages: int | None = None) -> Iterator[bool]:
    """A tmpfs at `folder`, of so many pages; False where one may not mount."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if shutil.which("mount") is None:
        yield False
        return
    size = "1g" if pages is None else str(4096 * pages)
    given = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(given, capture_output=True, check=False).returncode != 0:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    """With more room (size=...), to be read only (ro), or to be written again (rw)."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)
