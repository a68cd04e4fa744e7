"""What disks do: files cut short, with other bytes, empty or gone; and no room left."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from focusdpo.store.versions import open_version

from .jobs import Job, files_below
from .reading import Reader
from .trials import (
    ROUNDS,
    Log,
    Outcome,
    Reference,
    differences,
    doctor,
    finish,
    follow,
    note_twice,
    partly,
)

PLACES = {
    "an artefact": r"stages/.*\.tar",
    "a shard": r"shards/.*\.tar",
    "a version's index": r"versions/[^/]*/index\.parquet",
    "a version's manifest": r"versions/[^/]*/manifest\.json",
    "a version's lineage": r"versions/[^/]*/lineage\.parquet",
    "a version's partitions": r"versions/[^/]*/partitions\.parquet",
    "a version's settings": r"versions/[^/]*/config\.yaml",
    "a version's twin": r"versions/[^/]*/twin\.tar",
    "LATEST": "LATEST",
    "dataset.json": r"dataset\.json",
}
WAYS = ("truncated", "flipped", "emptied", "deleted")
PAGE = 4096
ROOM = "1g"


@dataclass(frozen=True)
class Damage:
    """To one file."""

    place: str
    path: str
    way: str
    at: float
    """Where in the file, as a share of its size."""
    doctor_first: bool
    """Whether the dataset is checked before the command is given again."""

    def do(self, folder: Path) -> None:
        path = folder / self.path
        data = path.read_bytes()
        at = min(int(self.at * len(data)), len(data) - 1)
        if self.way == "deleted":
            path.unlink()
        elif self.way == "emptied":
            path.write_bytes(b"")
        elif self.way == "truncated":
            path.write_bytes(data[:at])
        else:
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])

    def __str__(self) -> str:
        first = "doctor" if self.doctor_first else "the command"
        return f"{self.path} {self.way} at {self.at:.2f}, then {first}"


def draw_damage(
    random_: random.Random, folder: Path, places: Sequence[str] = tuple(PLACES)
) -> Damage:
    """To a random file of one of these kinds."""
    place = random_.choice(places)
    names = sorted(name for name, _ in files_below(folder))
    found = [name for name in names if re.fullmatch(PLACES[place], name)]
    way, at = random_.choice(WAYS), random_.random()
    return Damage(place, random_.choice(found), way, at, random_.random() < 0.5)


def damaged(
    job: Job,
    scenario: str,
    wanted: Reference,
    whole: Path,
    number: int,
    draw: random.Random,
    places: Sequence[str] = tuple(PLACES),
) -> Outcome:
    """A finished dataset (a copy of `whole`) is damaged; then the command and `doctor` are given,
    and what their messages say is done, until both are content."""
    outcome = Outcome(job.name, number, scenario, "damage")
    started = time.monotonic()
    job.lay("new")
    shutil.rmtree(job.out, ignore_errors=True)
    shutil.copytree(whole, job.out)
    content = content_of(job.out)
    damage = draw_damage(draw, job.out, places)
    damage.do(job.out)
    outcome.faults, outcome.kinds = [str(damage)], [f"{damage.way}: {damage.place}"]
    log = Log(job.work / "log")
    if damage.doctor_first:
        well, said = doctor(job)
        if not well and not follow(job, said, outcome):
            outcome.lost.append(f"doctor gives no way on: {said[-600:]}")
    for _ in range(ROUNDS):
        if finish(job, scenario, outcome, log) is None:
            break
        well, said = doctor(job)
        if well:
            break
        if not follow(job, said, outcome):
            outcome.lost.append(f"doctor gives no way on: {said[-600:]}")
            break
    dropped = [key for key in log.computed() if key not in damage.path]
    outcome.twice += [f"not damaged, and computed again: {key}" for key in dropped]
    outcome.lost += differences(job.state(), wanted.state)[:5]
    outcome.lost += other_bytes(job.out, whole)[:5]
    if content_of(job.out) != content:
        outcome.lost.append("the newest version has other pairs")
    outcome.seconds = round(time.monotonic() - started, 2)
    return outcome


WRITTEN = r"shards/.*|versions/[^/]*/[^/]*(?<!build\.json)|LATEST|dataset\.json|stages/.*\.tar"


def other_bytes(root: Path, whole: Path) -> list[str]:
    """Files that do not have the very bytes of before the damage."""
    names = {name for one in (root, whole) for name, _ in files_below(one)}
    return [
        f"{name}: other bytes than before"
        for name in sorted(names)
        if re.fullmatch(WRITTEN, name) and bytes_of(root / name) != bytes_of(whole / name)
    ]


def bytes_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def content_of(root: Path) -> object:
    """What training gets from the newest version; an error's words when nothing."""
    try:
        version = open_version(root)
        version.verify()
        return sorted((row.pair_id, row.split, row.checksum) for row in version.rows)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def full(job: Job, scenario: str, wanted: Reference, number: int, share: float) -> Outcome | None:
    """The command on a disk that has room for a share of what it makes; then there is more, and the
    same command is given again. None where one may not mount a disk."""
    outcome = Outcome(job.name, number, scenario, "disk")
    started = time.monotonic()
    base = job.base(scenario)
    before = pages(base) if base is not None else 0
    size = before + int(share * (wanted.pages - before))
    with small_disk(job.now, size) as mounted:
        if not mounted:
            return None
        job.lay(scenario)
        state = job.state()
        log = Log(job.work / "log")
        with Reader(job.out) as reader:
            running = job.launcher.start(
                job.arguments(scenario), job.work, log.environment(job.out)
            )
            code = running.wait()
            note_twice(outcome, log, 0, frozenset())
            if code == 0:
                outcome.missed += 1
            else:
                outcome.faults.append(f"room for {share:.2f} of it")
                outcome.kinds.append("the disk is full")
                outcome.moments.append(sorted(name for name, _ in files_below(job.out)))
                outcome.half_visible += partly(job, state, wanted.state)
                if code != 2 or "Traceback" in running.said() or "full" not in running.said():
                    outcome.lost.append(f"exit {code} without advice: {running.said()[-800:]}")
            subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(job.now)], check=True)
            finish(job, scenario, outcome, log)
        outcome.looks, outcome.half_visible = reader.looks, outcome.half_visible + reader.wrong[:5]
        outcome.lost += differences(job.state(), wanted.state)[:5]
    outcome.seconds = round(time.monotonic() - started, 2)
    return outcome


def pages(folder: Path) -> int:
    """Pages of memory that its files take on a tmpfs."""
    return sum(-(-path.stat().st_size // PAGE) for _, path in files_below(folder))


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A tmpfs of so many pages at `folder`; False where one may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size * PAGE}", "tmpfs", str(folder)]
    made = shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False)
    if not made or made.returncode != 0:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", str(folder)], check=True)
