"""What happens around a command: disks that are full or may only be read, folders that are taken
away, garbage collection beside a training, clocks that jump, signals, Prefect's database."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.cli import MESSAGE
from focusdpo.pipeline.upkeep.garbage import collect
from focusdpo.pipeline.upkeep.purge import purge
from focusdpo.store.artefacts import Store
from focusdpo.store.versions import open_version

from .jobs import files_below
from .processes import Running
from .trials import differences
from .workspace import COMMANDS, EMPTY, Trial, Workspace, mounted, remount

LOOK_SECONDS = 0.004
LEAVES_IN = 5.0
"""Seconds after which a command has ended that was asked to."""
PAGE = 4096
JOBS = ("build-dataset", "train", "evaluate")
ROOM = ("full", "space", "room")
DENIED = ("Read-only", "read-only", "permission")


def pages(folder: Path) -> int:
    """Of memory, that its files take on a tmpfs."""
    return sum(-(-path.stat().st_size // PAGE) for _, path in files_below(folder))


def full(trial: Trial, draw: random.Random) -> None:
    """No room in the middle: told in a line, nothing half-written, and with room it goes on. `gc`
    runs all the same: that is when it is wanted."""
    place = trial.place
    name = trial.outcome.job = list(COMMANDS)[trial.outcome.number % len(COMMANDS)]
    wanted = place.wanted(name)
    after = place.pages[name]
    with mounted(place.now) as may:
        if not may:
            return
        place.lay(name)
        place.begin(name)
        before = pages(place.out)
        state = place.state()
        share = draw.random() * 0.9
        room = before + int(share * max(1, after - before))
        ballast = place.now / "ballast"
        remount(place.now, f"size={(room + 1) * PAGE}")
        fill(ballast, room - before if name != "gc" else 0)
        running = place.run(name)
        if name == "gc":
            trial.fault("the disk is full", f"{name}: no room at all")
            if running.ended() != 0:
                trial.wrong(f"gc does not run on a full disk: {running.said()[-500:]}")
        elif running.ended() == 0:
            trial.outcome.missed += 1
        else:
            trial.fault("the disk is full", f"{name}: room for {share:.2f} of it")
            trial.refused(running, *ROOM)
            if COMMANDS[name].fills in EMPTY and (more := differences(place.state(), state)):
                trial.outcome.half_visible += more[:3]
        ballast.unlink(missing_ok=True)
        remount(place.now, "size=1g")
        trial.goes_on(name, wanted)


def fill(ballast: Path, left: int) -> None:
    """All but so many pages of a disk."""
    with ballast.open("wb", buffering=0) as sink, suppress(OSError):
        while True:
            sink.write(bytes(PAGE))
    size = ballast.stat().st_size
    os.truncate(ballast, max(0, size - left * PAGE))


def read_only(trial: Trial, draw: random.Random) -> None:
    """A disk that may only be read."""
    place = trial.place
    name = trial.outcome.job = list(COMMANDS)[trial.outcome.number % len(COMMANDS)]
    wanted = place.wanted(name)
    with mounted(place.now) as may:
        if not may:
            return
        place.lay(name)
        place.begin(name)
        state = place.state()
        remount(place.now, "ro")
        trial.fault("the disk may only be read", name)
        trial.refused(place.run(name), *DENIED)
        remount(place.now, "rw")
        trial.same(state)
        trial.goes_on(name, wanted)


def taken_away(trial: Trial, draw: random.Random) -> None:
    """What a command fills is moved away while it runs: one line, and begun again it ends well."""
    place = trial.place
    name = trial.outcome.job = JOBS[trial.outcome.number % len(JOBS)]
    wanted = place.wanted(name)
    usual = place.files[name]
    place.lay(name)
    place.begin(name)
    target = place.out / COMMANDS[name].fills
    share = draw.random()
    running = place.start(name)
    after = int(share * (usual - sum(1 for _ in files_below(place.out))))
    if not _until(running, place, after):
        trial.outcome.missed += 1
    else:
        with suppress(FileNotFoundError):
            target.rename(place.now / "taken")
            trial.fault("its folder is taken away", f"{name} after {share:.2f} of its files")
        if running.wait() != 0:
            trial.refused(
                running,
                "taken away",
                "o such file",
                "o such version",
                "missing",
                "absent",
                "no dataset",
            )
    kept = place.kept / COMMANDS[name].fills
    if name == "build-dataset" and not (target / "registry").exists():
        shutil.copytree(kept / "registry", target / "registry", dirs_exist_ok=True)
        shutil.copytree(kept / "reviews", target / "reviews", dirs_exist_ok=True)
        (target / "dataset.json").exists() or shutil.copy(kept / "dataset.json", target)
    trial.goes_on(name, wanted)


def _until(running: Running, place: Workspace, files: int) -> bool:
    """Wait for so many new files; False when the command ended before."""
    before = sum(1 for _ in files_below(place.out))
    while running.ended(LOOK_SECONDS) is None:
        if sum(1 for _ in files_below(place.out)) >= before + files:
            return True
    return False


def beside_training(trial: Trial, draw: random.Random) -> None:
    """gc leaves a version that a training reads; a purge of its subjects is refused."""
    place, number = trial.place, trial.outcome.number
    place.lay("train")
    store = Store.open(place.out / "root", create=False)
    older = next(n for n in store.files.names("versions") if n != open_version(store).id)
    version = older if number % 2 else "latest"
    place.begin("train")
    words = (*COMMANDS["train"].words, "--version", version)
    running = place.start(words)
    readers = place.out / "root" / ".leases" / "readers"
    while running.ended(LOOK_SECONDS) is None and not list(readers.glob("*.json")):
        pass
    running.ended(draw.random() * 0.3)
    if not list(readers.glob("*.json")):
        trial.outcome.missed += 1
    elif number % 4 < 2:
        trial.fault("gc beside a training", f"of version {version}")
        collect(store, keep_versions=1, min_age=0)
    else:
        trial.fault("purge beside a training", f"of version {version}")
        try:
            purge(store, ["blue"])
            if running.ended() is None:
                trial.wrong("the purge was not refused")
        except UserError as error:
            if "reads version" not in str(error):
                trial.wrong(f"refused for another reason: {error}")
    if running.wait() != 0:
        trial.wrong(f"the training ends with {running.ended()}: {running.said()[-500:]}")
    if version == "latest":
        state = {n: one for n, one in place.state().items() if n.startswith("run/")}
        trained = {n: one for n, one in place.wanted("train").items() if n.startswith("run/")}
        trial.outcome.lost += differences(state, trained)[:5]


JUMPS = (-400 * 86400.0, -3600.0, 90.0, 3600.0, 400 * 86400.0)
"""Seconds."""


def clock(trial: Trial, draw: random.Random) -> None:
    """The clock jumps in the middle, or the files' times are those of another clock."""
    place = trial.place
    name = trial.outcome.job = JOBS[trial.outcome.number % len(JOBS)]
    wanted = place.wanted(name)
    place.lay(name)
    place.begin(name)
    jump, calls = draw.choice(JUMPS), draw.randint(1, 60)
    if trial.outcome.number % 2:
        trial.fault("the clock jumps", f"{name}: by {jump:.0f} s")
        running = place.run(name, CHAOS_JUMP=f"{jump}:{calls}")
    else:
        trial.fault("files have the times of another clock", f"{name}: by {jump:.0f} s")
        running = place.start(name)
        while running.ended(0.02) is None:
            for _, path in files_below(place.out):
                with suppress(FileNotFoundError):
                    os.utime(path, (time.time() + jump, time.time() + jump))
    if running.ended() != 0:
        trial.wrong(f"exit {running.ended()}: {running.said()[-500:]}")
    trial.goes_on(name, wanted)


SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


def signalled(trial: Trial, draw: random.Random) -> None:
    """Asked to end: soon, in a line, and the same command goes on."""
    place, number = trial.place, trial.outcome.number
    name = trial.outcome.job = JOBS[number % len(JOBS)]
    which = list(SIGNALS)[number // len(JOBS) % 2]
    wanted = place.wanted(name)
    usual = place.files[name]
    place.lay(name)
    place.begin(name)
    running = place.start(name)
    share = draw.random()
    files = 1 + int(share * (usual - sum(1 for _ in files_below(place.out))))
    if not _until(running, place, files):
        trial.outcome.missed += 1
    else:
        trial.fault(SIGNALS[which], f"{name} after {share:.2f} of its files")
        asked = time.monotonic()
        with suppress(ProcessLookupError):
            os.killpg(running.pid, which)
        code = running.wait()
        if code != 0:
            if time.monotonic() - asked > LEAVES_IN:
                trial.wrong(f"ended only after {time.monotonic() - asked:.1f} s")
            said = running.said()
            expected = (130,) if which == signal.SIGINT else (-signal.SIGTERM, 143)
            if code not in expected or "Traceback" in said:
                trial.wrong(f"exit {code}: {said[-400:]}")
            elif which == signal.SIGINT and MESSAGE not in said:
                trial.wrong(f"does not say that it was stopped: {said[-400:]}")
    trial.goes_on(name, wanted)


PREFECT_SECONDS = 300.0


def prefect_database(trial: Trial, draw: random.Random) -> None:
    """The database of the command's own server is damaged: told, or made do without."""
    place = trial.place
    wanted = place.wanted("build-dataset")
    place.lay("build-dataset")
    place.begin("build-dataset")
    home = place.now / "prefect"
    home.mkdir()
    database = home / "prefect.db"
    ways = ("no database at all", "cut", "emptied", "of another program", "a folder")
    way = ways[trial.outcome.number % len(ways)]
    if way == "no database at all":
        database.write_bytes(os.urandom(8192))
    elif way == "a folder":
        database.mkdir()
    else:
        with sqlite3.connect(database) as made:
            made.execute("create table flow_run (id text)")
        data = database.read_bytes()
        if way != "of another program":
            database.write_bytes(b"" if way == "emptied" else data[: len(data) // 2])
    trial.fault("Prefect's database is damaged", way)
    words = [word for word in COMMANDS["build-dataset"].words if word != "--no-prefect"]
    asked = time.monotonic()
    running = place.run((*words, "--prefect"), PREFECT_HOME=str(home))
    if running.ended() != 0:
        trial.refused(running, "Prefect", "prefect")
    if time.monotonic() - asked > PREFECT_SECONDS:
        trial.wrong(f"it took {time.monotonic() - asked:.0f} s")
    shutil.rmtree(home)
    trial.goes_on("build-dataset", wanted)
