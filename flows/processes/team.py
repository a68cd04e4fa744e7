"""A team of processes on this machine, one in each place, that are handed work. One that dies costs
what it was at: that is handed to another, and a new process takes its place.

Each process is an executor of its own (`concurrent.futures`), which carries work, answers and
errors, and hears of a death. A process listens to a pipe whose other end this process holds: when
that is closed, or this process ends in whatever manner, it ends at once, in the middle of its work.
Processes are started anew, not forked: OpenMP and CUDA do not survive a fork.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Generic, Protocol, TypeVar

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.fit.lost_card import CardGone, card_is_lost
from focusdpo.flows.processes.places import Place

log = logging.getLogger(__name__)

LOSSES = 3
"""Work over which so many processes died is given up."""
DEATHS = 4
"""A place in which so many processes died, and none of them did anything, is given up."""


class Divisible(Protocol):
    """Work for a process."""

    def each(self) -> Sequence[Any]:
        """The same work in its smallest parts."""
        ...


Work = TypeVar("Work", bound=Divisible)


@dataclass(eq=False)
class Job(Generic[Work]):
    """Work, and over how many processes it was lost."""

    work: Work
    losses: int = 0


@dataclass(frozen=True)
class Result(Generic[Work]):
    """What came back: the worker's reply, or why there is none."""

    job: Job[Work]
    reply: Any = None
    lost: str = ""


@dataclass(eq=False)
class _Member(Generic[Work]):
    """A process in its place."""

    place: Place
    pool: ProcessPoolExecutor
    lifeline: Connection
    """Our end."""
    reply: Future[Any]
    """Of the work, or at first that it is up."""
    job: Job[Work] | None = None
    up: bool = False

    def end(self) -> None:
        self.lifeline.close()
        self.pool.shutdown(wait=True, cancel_futures=True)


@dataclass(eq=False)
class Team(Generic[Work]):
    """`make(*given)`, called in each process when it has its first work, gives what computes it."""

    places: list[Place]
    make: Callable[..., Callable[[Work], Any]]
    given: tuple[Any, ...] = ()
    _members: list[_Member[Work]] = field(default_factory=list)
    _deaths: dict[str, int] = field(default_factory=dict)
    """Of each place, since a process there last did something."""

    @property
    def size(self) -> int:
        """Processes that are up."""
        return sum(member.up for member in self._members)

    def results(self, work: Sequence[Work]) -> Iterator[Result[Work]]:
        """Do all the work; results in the order in which they come. Whatever a process raises is
        raised here, and UserError when no place is left."""
        queue = deque(Job(one) for one in work)
        while queue or any(member.job for member in self._members):
            self._fill(len(queue))
            for member in self._members:
                if queue and member.up and member.job is None:
                    member.job = queue.popleft()
                    member.reply = member.pool.submit(_compute, member.job.work)
            busy = [one for one in self._members if one.job or not one.up]
            wait([member.reply for member in busy], return_when=FIRST_COMPLETED)
            for member in busy:
                if member.reply.done():
                    yield from self._receive(member, queue)

    def close(self) -> None:
        """End all processes at once; memory and cards are free for others."""
        members, self._members = self._members, []
        for member in members:
            member.lifeline.close()
        for member in members:
            member.end()

    def _fill(self, wanted: int) -> None:
        """A process in each place, as far as there is work for it."""
        taken = {member.place.name for member in self._members}
        idle = sum(member.job is None for member in self._members)
        for place in self.places:
            if place.name not in taken and idle < wanted:
                self._members.append(self._start(place))
                idle += 1

    def _start(self, place: Place) -> _Member[Work]:
        context = multiprocessing.get_context("spawn")
        theirs, ours = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(1, context, _begin, (theirs, place, self.make, self.given))
        # A Ctrl-C reaches the whole group; this one is to hear it, and to end the others.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return _Member(place, pool, ours, pool.submit(_hello, place.card))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def _receive(self, member: _Member[Work], queue: deque[Job[Work]]) -> Iterator[Result[Work]]:
        error = member.reply.exception()
        if isinstance(error, BrokenProcessPool) or card_is_lost(error):
            yield from self._lose(member, queue, error)
        elif error is not None:
            raise error
        elif member.job is None:
            member.up = True
            log.info("%s is up: process %d", member.place.name, member.reply.result())
        else:
            self._deaths.pop(member.place.name, None)
            job, member.job = member.job, None
            yield Result(job, member.reply.result())

    def _lose(
        self, member: _Member[Work], queue: deque[Job[Work]], error: BaseException | None
    ) -> Iterator[Result[Work]]:
        """A process is gone: its work goes to the end of the queue, in its smallest parts."""
        self._members.remove(member)
        member.end()
        place, job = member.place, member.job
        died = isinstance(error, BrokenProcessPool)
        why = "its process was killed (out of main memory?)" if died else f"{error}"
        self._deaths[place.name] = self._deaths.get(place.name, 0) + 1
        log.warning(
            "%s was lost: %s; %s",
            place.name,
            " ".join(why.split()),
            "what it was at is done again" if job else "it was at nothing",
        )
        if job is not None and job.losses + 1 >= LOSSES:
            yield Result(job, lost=f"{LOSSES} processes died over it; the last: {why}")
        elif job is not None:
            queue.extend(Job(part, job.losses + 1) for part in job.work.each())
        if self._deaths[place.name] >= DEATHS:
            self.places = [one for one in self.places if one != place]
            log.warning("%s is given up: it was lost %d times on end", place.name, DEATHS)
        if not self.places:
            raise UserError(
                f"num_processes: no process is left, each was lost {DEATHS} times on end; the "
                f"last: {why}. What was finished is kept, and the same command goes on from there"
            )


@dataclass
class _Own:
    """What a process of a team knows."""

    make: Callable[..., Callable[[Any], Any]]
    given: tuple[Any, ...]

    @functools.cached_property
    def compute(self) -> Callable[[Any], Any]:
        return self.make(*self.given)


_own: _Own
"""Of this process, where it is one of a team."""


def _begin(
    lifeline: Connection, place: Place, make: Callable[..., Any], given: tuple[Any, ...]
) -> None:
    """The first that a process does; torch is not imported yet."""
    global _own
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), name="lifeline", daemon=True).start()
    for name, value in place.variables.items():
        os.environ.setdefault(name, value)
    if place.card is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.card
    logging.getLogger("focusdpo").setLevel(logging.ERROR)  # the first process tells
    _own = _Own(make, given)


def _end_with(lifeline: Connection) -> None:
    """Nothing is ever sent: reading ends when the other end is closed."""
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def _hello(card: str | None) -> int:
    """Who this is. CardGone where its card is not there: on cores it would work for ever, and paint
    other pixels."""
    if card is not None:
        import torch

        if not torch.cuda.is_available():
            raise CardGone(f"torch sees no card {card}")
    return os.getpid()


def _compute(work: Any) -> Any:
    return _own.compute(work)
