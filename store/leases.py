"""Leases: who computes what in a root, so that two builders share the work and do none twice.

A lease is a small file below `.leases`, taken and renewed by compare-and-set. Its holder renews it
while it works; a holder that died lets it run out, and another takes over. Whether it has run out
is never a question of two machines' clocks: the medium tells how old the file is, or somebody has
watched it for its whole duration without a change. Leases save work and nothing else: a result is
stored by the first writer whole, with or without them.
"""

from __future__ import annotations

import datetime
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from focusdpo.data_schemas.environment import is_dead, me, told
from focusdpo.store.addresses import LEASES
from focusdpo.store.keys import parsed
from focusdpo.store.local import Files

log = logging.getLogger(__name__)

SLACK = 2.0
"""Seconds beyond its duration: some media stamp files by the second."""
FIRST_LOOK, LONGEST_LOOK = 0.05, 2.0
"""Seconds between two looks at another's lease; doubled from the first to the second."""


LONGEST = 86400.0
"""Seconds of a lease at most; a file that says more is none of ours."""


class LeaseConfig(BaseModel):
    """How long a dead builder's work is left alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float = Field(
        60.0, ge=0.1, le=LONGEST, description="a lease not renewed for so long may be taken over"
    )
    renewals: int = Field(4, ge=2, description="times that a holder renews it in that time")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a lease."""

    owner: str
    """The process (see `environment.me`) and the lease's own number."""
    what: str
    since: str
    """When it began, by its own clock; for people."""
    seconds: float
    beat: int = 0
    """Times renewed."""

    def __str__(self) -> str:
        return f"{told(self.owner)} since {self.since}"


@dataclass(frozen=True, slots=True)
class Grant:
    """What became of asking for a lease."""

    mine: bool
    """The work is this process's to do. Otherwise it is done, or `holder` is doing it."""
    holder: Holder | None = None


class Lease:
    """A lease that this process has; renewed by a thread until it is released."""

    def __init__(self, files: Files, path: str, holder: Holder, tag: str, renewals: int) -> None:
        self._files, self._path, self._holder, self._tag = files, path, holder, tag
        self._over = threading.Event()
        self.lost = False
        """Another took over, because this process was not heard of for too long."""
        self._thread = threading.Thread(
            target=self._renew, args=(holder.seconds / renewals,), name="lease", daemon=True
        )
        self._thread.start()

    def release(self) -> None:
        self._over.set()
        self._thread.join()
        self._files.remove(self._path, self._tag)

    def _renew(self, every: float) -> None:
        while not self._over.wait(every):
            now = Holder(
                self._holder.owner,
                self._holder.what,
                self._holder.since,
                self._holder.seconds,
                self._holder.beat + 1,
            )
            try:
                tag = self._files.swap(self._path, _bytes(now), self._tag, sync=False)
            except Exception as error:
                # Tried again at the next beat; if it never succeeds, another takes over.
                log.warning("lease of %s not renewed: %s", now.what, error)
                continue
            if tag is None:
                self.lost = True
                log.warning(
                    "%s: this process was silent for more than %.0f s and another may have taken "
                    "over; whoever is first stores the result", now.what, now.seconds,
                )  # fmt: skip
                return
            self._holder, self._tag = now, tag


class Leases:
    """The leases of a root, for one asker."""

    def __init__(
        self,
        files: Files,
        config: LeaseConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._config, self._clock = files, config or LeaseConfig(), clock
        self._seen: dict[str, tuple[str, float]] = {}

    def ask(self, name: str, what: str) -> Lease | Holder:
        """The lease `name` ("stage/key"), or who has it. `what`: the work, for people."""
        path = f"{LEASES}/{name}.json"
        tagged = self._files.tagged(path)
        if tagged is not None:
            holder = read_holder(tagged[0])
            if not self._is_over(path, tagged[1], holder):
                return holder
            log.warning("%s: taking over from %s", what, holder)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        mine = Holder(f"{me()}~{uuid.uuid4().hex}", what, now, self._config.seconds)
        tag = self._files.swap(
            path, _bytes(mine), None if tagged is None else tagged[1], sync=False
        )
        if tag is None:  # another asked at the same time
            return self.ask(name, what)
        self._seen.pop(path, None)
        return Lease(self._files, path, mine, tag, self._config.renewals)

    def _is_over(self, path: str, tag: str, holder: Holder) -> bool:
        if is_dead(holder.owner):
            return True
        known, since = self._seen.setdefault(path, (tag, self._clock()))
        if known != tag:
            self._seen[path] = (tag, self._clock())
        elif self._clock() - since > holder.seconds:
            return True
        age = self._files.age(path)
        return age is not None and age > holder.seconds + SLACK


@contextmanager
def lease(
    files: Files,
    name: str,
    what: str,
    done: Callable[[], bool],
    *,
    wait: bool = True,
    config: LeaseConfig | None = None,
) -> Iterator[Grant]:
    """The right to do a piece of work for the length of a block.

    Inside, `mine` says whether to do it. When it is not, the work is `done`, or (without `wait`)
    another living process is at it. With `wait` the block begins when one of both is settled.
    """
    leases, pause, warned = Leases(files, config), FIRST_LOOK, False
    while True:
        answer = leases.ask(name, what)
        if isinstance(answer, Lease):
            break
        if done():
            yield Grant(False)
            return
        if not wait:
            yield Grant(False, answer)
            return
        if not warned:
            log.warning("%s is being computed by %s; waiting for its result", what, answer)
            warned = True
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_LOOK)
    try:
        # Looked at now: another may have finished between the last look and this lease.
        yield Grant(not done())
    finally:
        answer.release()


def clean(files: Files) -> int:
    """Remove the leases of processes of this machine that are gone; how many."""
    removed = 0
    for name in files.listing(LEASES):
        path = f"{LEASES}/{name}"
        tagged = files.tagged(path)
        if tagged is not None and is_dead(read_holder(tagged[0]).owner):
            files.remove(path, tagged[1])
            removed += 1
    return removed


def _bytes(holder: Holder) -> bytes:
    values = {name: getattr(holder, name) for name in Holder.__slots__}
    return json.dumps(values, sort_keys=True).encode()


def read_holder(data: bytes) -> Holder:
    """What a lease says; one that says nothing has run out."""
    try:
        holder = Holder(**parsed(data))
        if isinstance(holder.owner, str) and 0 <= float(holder.seconds) <= LONGEST:
            return holder
    except (ValueError, TypeError):
        pass
    return Holder("unknown", "unknown work", "unknown time", 0.0)


WRITERS = 8
ROUNDS = 4


def race(files: Files, path: str, writers: int = WRITERS, rounds: int = ROUNDS) -> list[int]:
    """How many of `writers` that compare and set one file at the same moment were told that they
    won, in each round: the first makes the file, the others replace what was there.

    All ones where it can be trusted. Ends early when a round has no winner. The file stays.
    """
    won: list[int] = []
    tag: str | None = None
    for number in range(rounds):
        won.append(_round(files, path, tag, number, writers))
        if not won[-1] or (tagged := files.tagged(path)) is None:
            break
        tag = tagged[1]
    return won


def _round(files: Files, path: str, tag: str | None, number: int, writers: int) -> int:
    start = threading.Barrier(writers)

    def write(writer: int) -> bool:
        start.wait()
        return files.swap(path, b"%d of round %d" % (writer, number), tag) is not None

    with ThreadPoolExecutor(writers) as pool:
        return sum(pool.map(write, range(writers)))
