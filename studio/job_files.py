"""Jobs that the studio started: the same commands as on the command line, as processes of their
own, their state on disk.

<folder>/<job id>/job.json      what was asked for
                  runner.json   which process looks after it
                  log.txt       what it says (stderr)
                  result.txt    what it printed; its last line is the command's --json
                  ended.json    its exit code

One job at a time per dataset root: all commands share the machine, and a build must not change the
version that a training run is about to read. What the builds' own leases promise holds beside this.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from focusdpo.data_schemas.environment import is_dead
from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.config import STUDIO_TOKEN
from focusdpo.store.keys import sealed, unsealed
from focusdpo.store.local import write_whole
from focusdpo.studio.job_runner import ENDED, JOB, LOG, RESULT, RUNNER

log = logging.getLogger(__name__)

State = Literal[
    "starting", "running", "stopping", "done", "incomplete", "failed", "stopped", "lost"
]
ACTIVE: tuple[State, ...] = ("starting", "running", "stopping")
ID = re.compile(r"\d{8}-\d{12}-[a-z]+-[0-9a-f]{6}")
PROGRESS = re.compile(r"^([A-Za-z][\w -]{0,40}): (\d+)/(\d+)(?:  (.*))?$")
LEFT = re.compile(r"(?:^|  )about (\d[\d.]* (?:s|min|h)) left$")
ERROR = "error: "
WARNING = re.compile(r"WARNING [\w.]+: (.+)")
MOST_WARNINGS = 5
PHASES = {
    "compose": "Composing scenes",
    "generate": "Painting candidates",
    "segment": "Looking for the subjects in the candidates",
    "describe": "Describing the subjects",
    "disrupt": "Repainting subjects without their reference",
    "score": "Scoring likeness, leakage and meaning",
    "pair": "Choosing winners and losers",
    "shard": "Writing the dataset",
    "encode pairs": "Reading the pairs",
    "train": "Training",
    "validate": "Painting validation scenes",
    "paint base": "Painting with the base",
    "paint adapter": "Painting with the adapter",
    "measure base": "Judging what the base painted",
    "measure adapter": "Judging what the adapter painted",
    "look at photographs": "Looking at the subjects' pictures",
    "look at references": "Looking at the subjects' pictures",
    "check the judge": "Looking for the faults that were planted",
    "judge": "Judging the pictures",
}
"""What a phase does, in words."""
STOPPING = "stopping"
STARTING_SECONDS = 60.0
TAIL_BYTES = 64 * 1024
SHOWN_LINES = 200
INTERRUPTED = 130


@dataclass(frozen=True)
class Progress:
    """How far a phase has come."""

    phase: str
    done: int
    total: int
    figures: str
    left: str = ""
    """How long it takes yet, in words; "" while nobody can tell."""

    @property
    def words(self) -> str:
        """What it does."""
        return PHASES.get(self.phase, self.phase)

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 0.0


@dataclass(frozen=True)
class Job:
    """A job and what is known of it now."""

    id: str
    kind: str
    title: str
    root: str
    command: list[str]
    """As it may be typed, without the interpreter."""
    started: str
    outputs: Mapping[str, str]
    """What it makes, by name: folders and files."""
    form: Mapping[str, str]
    """What was filled in, for the next of its kind."""
    state: State
    code: int | None
    log: str
    """The end of what it said."""
    progress: list[Progress]
    printed: list[str]
    """What it printed, a line each, its result not among them."""
    result: Mapping[str, Any]
    """The command's last line; empty before it ended well."""

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    @property
    def words(self) -> str:
        """What it is doing, or why it ended badly, in a sentence; "" where its result says it."""
        if self.state == "stopping":
            return "Stopping; what is finished is kept."
        if self.active:
            going = [progress for progress in self.progress if progress.done < progress.total]
            if not self.progress:
                return "Starting: libraries and models are loaded, which takes a while."
            if not going:
                return f"{self.progress[-1].words}: done; what comes next has begun."
            now = going[-1]
            left = f"; about {now.left} left" if now.left else ""
            return f"{now.words}: {now.done} of {now.total}{left}."
        if self.state == "lost":
            return "Its process is gone without a word; the same job again goes on."
        if self.state == "failed":
            errors = [line for line in self.log.splitlines() if line.startswith(ERROR)]
            return (
                errors[-1].removeprefix(ERROR) if errors else "It ended with an error; see below."
            )
        return ""

    @property
    def warnings(self) -> list[str]:
        """What it says should be known, the last of it, each once."""
        matches = (WARNING.fullmatch(line.strip()) for line in self.log.splitlines())
        return list(dict.fromkeys(match[1] for match in matches if match))[-MOST_WARNINGS:]


class Jobs:
    """All jobs of a studio."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        """Those of this studio, so that they are asked for when they end."""

    def start(
        self,
        kind: str,
        title: str,
        root: str,
        arguments: Sequence[str],
        outputs: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-m", "focusdpo.flows.cli"),
    ) -> Job:
        """Start a command. UserError while another job of this root runs."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / ".lock"):
            for other in self.list(logs=False):
                if other.active and other.root == root:
                    raise UserError(
                        f"a job is at work on {root}: {other.title} (started {other.started}); "
                        "wait until it is done, or stop it"
                    )
            now = datetime.datetime.now(datetime.UTC)
            name = f"{now:%Y%m%d-%H%M%S%f}-{kind}-{secrets.token_hex(3)}"
            place = self._folder / name
            place.mkdir()
            values: dict[str, object] = {
                "kind": kind,
                "title": title,
                "root": root,
                "shown": ["focusdpo", *arguments],
                "command": [*program, *arguments],
                "started": now.isoformat(timespec="seconds"),
                "outputs": dict(outputs or {}),
                "form": dict(form or {}),
            }
            write_whole(place / JOB, sealed(values))
            with (place / LOG).open("ab") as log:
                self._children[name] = subprocess.Popen(
                    [sys.executable, "-m", "focusdpo.studio.job_runner", str(place)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env={name: text for name, text in os.environ.items() if name != STUDIO_TOKEN},
                )
        return self.get(name)

    def get(self, id: str, *, logs: bool = True) -> Job:
        """A job; UserError when there is none of that name."""
        if id in self._children and self._children[id].poll() is not None:
            self._children.pop(id, None)
        place = self._place(id)
        try:
            values = unsealed((place / JOB).read_bytes())
        except ValueError as error:
            raise UserError(f"{place / JOB}: damaged ({error}); remove {place}") from error
        code = _read(place / ENDED).get("code")
        log = _tail(place / LOG) if logs else ""
        printed, result = _printed(place / RESULT) if logs else ([], {})
        return Job(
            id=id,
            **{name: values[name] for name in ("kind", "title", "root", "started")},
            **{name: values[name] for name in ("outputs", "form")},
            command=values["shown"],
            state=self._state(place, code),
            code=code,
            log="\n".join(log.splitlines()[-SHOWN_LINES:]),
            progress=progress_of(log),
            printed=printed,
            result=result if code in (0, 3) else {},
        )

    def list(self, *, logs: bool = True) -> list[Job]:
        """All jobs, newest first."""
        if not self._folder.is_dir():
            return []
        names = sorted((place.name for place in self._folder.iterdir()), reverse=True)
        jobs = []
        for name in names:
            if ID.fullmatch(name) and (self._folder / name / JOB).is_file():
                try:
                    jobs.append(self.get(name, logs=logs))
                except UserError as error:  # it costs its own row, not the page
                    log.warning("%s", error)
        return jobs

    def stop(self, id: str) -> Job:
        """Ask a job to end, as Ctrl-C does; asked again, end it at once. What it has finished is
        kept."""
        place = self._place(id)
        job = self.get(id, logs=False)
        if not job.active:
            return job
        process = str(_read(place / RUNNER).get("process", ""))
        if not process or is_dead(process) is not False:
            raise UserError(f"{job.title}: has only just started; try again in a moment")
        pid = int(process.split("~")[1])
        again = (place / STOPPING).exists()
        (place / STOPPING).touch()
        # The runner leads its own group, so its id is the group's.
        os.killpg(pid, signal.SIGTERM if again else signal.SIGINT)
        return self.get(id)

    def _place(self, id: str) -> Path:
        place = self._folder / id
        if not ID.fullmatch(id) or not (place / JOB).is_file():
            raise UserError("no such job; the page of jobs lists those that there are")
        return place

    def _state(self, place: Path, code: int | None) -> State:
        asked = (place / STOPPING).exists()
        if code is not None:
            if code == 0:
                return "done"
            if code == 3:
                return "incomplete"
            return "stopped" if asked or code == INTERRUPTED else "failed"
        process = str(_read(place / RUNNER).get("process", ""))
        if not process:
            age = datetime.datetime.now().timestamp() - (place / JOB).stat().st_mtime
            return "starting" if age < STARTING_SECONDS else "lost"
        if is_dead(process) and not (place / ENDED).exists():
            return "lost"
        return "stopping" if asked else "running"


def progress_of(log: str) -> list[Progress]:
    """Each phase's last count, in the order in which they began."""
    phases: dict[str, Progress] = {}
    for line in log.splitlines():
        match = PROGRESS.fullmatch(line.strip())
        if match:
            phase, done, total, figures = match.groups()
            left = LEFT.search(figures or "")
            phases[phase] = Progress(
                phase,
                int(done),
                int(total),
                LEFT.sub("", figures or ""),
                left[1] if left else "",
            )
    return list(phases.values())


def _read(path: Path) -> dict[str, Any]:
    try:
        return unsealed(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); remove {path.parent}") from error


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _printed(path: Path) -> tuple[list[str], dict[str, Any]]:
    """The lines that a command printed, and its result, {} where it has none yet."""
    lines = _tail(path).splitlines()
    try:
        values = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        return lines, {}
    return (lines[:-1], values) if isinstance(values, dict) else (lines, {})
