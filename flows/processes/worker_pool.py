"""A pool of processes on this machine, one in each slot, that are handed work. One that dies costs
what it was at: that is handed to another, and a new process takes its slot.

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
from focusdpo.flows.processes.slots import Slot

log = logging.getLogger(__name__)

LOSSES = 3
"""Work over which so many processes died is given up."""
DEATHS = 4
"""A slot in which so many processes died, and none of them did anything, is given up."""


class Divisible(Protocol):
    """Work for a process."""

    def each(self) -> Sequence[Any]:
        """The same work in its smallest parts."""
        ...


Work = TypeVar("Work", bound=Divisible)


@dataclass(eq=False)
class WorkItem(Generic[Work]):
    """Work, and over how many processes it was lost."""

    work: Work
    losses: int = 0


@dataclass(frozen=True)
class Result(Generic[Work]):
    """What came back: the worker's reply, or why there is none."""

    item: WorkItem[Work]
    reply: Any = None
    lost: str = ""


@dataclass(eq=False)
class _Worker(Generic[Work]):
    """A process in its slot."""

    slot: Slot
    pool: ProcessPoolExecutor
    parent: Connection
    """Our end."""
    reply: Future[Any]
    """Of the work, or at first that it is up."""
    item: WorkItem[Work] | None = None
    up: bool = False

    def end(self) -> None:
        self.parent.close()
        self.pool.shutdown(wait=True, cancel_futures=True)


@dataclass(eq=False)
class WorkerPool(Generic[Work]):
    """`make(*given)`, called in each process when it has its first work, gives what computes it."""

    slots: list[Slot]
    make: Callable[..., Callable[[Work], Any]]
    given: tuple[Any, ...] = ()
    _workers: list[_Worker[Work]] = field(default_factory=list)
    _deaths: dict[str, int] = field(default_factory=dict)
    """Of each slot, since a process there last did something."""

    @property
    def size(self) -> int:
        """Processes that are up."""
        return sum(worker.up for worker in self._workers)

    def results(self, work: Sequence[Work]) -> Iterator[Result[Work]]:
        """Do all the work; results in the order in which they come. Whatever a process raises is
        raised here, and UserError when no slot is left."""
        queue = deque(WorkItem(task) for task in work)
        while queue or any(worker.item for worker in self._workers):
            self._fill(len(queue))
            for worker in self._workers:
                if queue and worker.up and worker.item is None:
                    worker.item = queue.popleft()
                    worker.reply = worker.pool.submit(_compute, worker.item.work)
            busy = [worker for worker in self._workers if worker.item or not worker.up]
            wait([worker.reply for worker in busy], return_when=FIRST_COMPLETED)
            for worker in busy:
                if worker.reply.done():
                    yield from self._receive(worker, queue)

    def close(self) -> None:
        """End all processes at once; memory and cards are free for others."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.parent.close()
        for worker in workers:
            worker.end()

    def _fill(self, wanted: int) -> None:
        """A process in each slot, as far as there is work for it."""
        taken = {worker.slot.name for worker in self._workers}
        idle = sum(worker.item is None for worker in self._workers)
        for slot in self.slots:
            if slot.name not in taken and idle < wanted:
                self._workers.append(self._start(slot))
                idle += 1

    def _start(self, slot: Slot) -> _Worker[Work]:
        context = multiprocessing.get_context("spawn")
        theirs, ours = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(1, context, _begin, (theirs, slot, self.make, self.given))
        # A Ctrl-C reaches the whole group; this one is to hear it, and to end the others.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return _Worker(slot, pool, ours, pool.submit(_hello, slot.card))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def _receive(
        self, worker: _Worker[Work], queue: deque[WorkItem[Work]]
    ) -> Iterator[Result[Work]]:
        error = worker.reply.exception()
        if isinstance(error, BrokenProcessPool) or card_is_lost(error):
            yield from self._lose(worker, queue, error)
        elif error is not None:
            raise error
        elif worker.item is None:
            worker.up = True
            log.info("%s is up: process %d", worker.slot.name, worker.reply.result())
        else:
            self._deaths.pop(worker.slot.name, None)
            item, worker.item = worker.item, None
            yield Result(item, worker.reply.result())

    def _lose(
        self, worker: _Worker[Work], queue: deque[WorkItem[Work]], error: BaseException | None
    ) -> Iterator[Result[Work]]:
        """A process is gone: its work goes to the end of the queue, in its smallest parts."""
        self._workers.remove(worker)
        worker.end()
        slot, item = worker.slot, worker.item
        died = isinstance(error, BrokenProcessPool)
        why = "its process was killed (out of main memory?)" if died else f"{error}"
        self._deaths[slot.name] = self._deaths.get(slot.name, 0) + 1
        log.warning(
            "%s was lost: %s; %s",
            slot.name,
            " ".join(why.split()),
            "what it was at is done again" if item else "it was at nothing",
        )
        if item is not None and item.losses + 1 >= LOSSES:
            yield Result(item, lost=f"{LOSSES} processes died over it; the last: {why}")
        elif item is not None:
            queue.extend(WorkItem(part, item.losses + 1) for part in item.work.each())
        if self._deaths[slot.name] >= DEATHS:
            self.slots = [other for other in self.slots if other != slot]
            log.warning("%s is given up: it was lost %d times on end", slot.name, DEATHS)
        if not self.slots:
            raise UserError(
                f"num_processes: no process is left, each was lost {DEATHS} times on end; the "
                f"last: {why}. What was finished is kept, and the same command goes on from there"
            )


@dataclass
class _State:
    """What a process of a pool knows."""

    make: Callable[..., Callable[[Any], Any]]
    given: tuple[Any, ...]

    @functools.cached_property
    def compute(self) -> Callable[[Any], Any]:
        return self.make(*self.given)


_state: _State
"""Of this process, where it is one of a pool."""


def _begin(
    parent: Connection, slot: Slot, make: Callable[..., Any], given: tuple[Any, ...]
) -> None:
    """The first that a process does; torch is not imported yet."""
    global _state
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()
    for name, value in slot.variables.items():
        os.environ.setdefault(name, value)
    if slot.card is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.card
    logging.getLogger("focusdpo").setLevel(logging.ERROR)  # the first process tells
    _state = _State(make, given)


def _end_with(parent: Connection) -> None:
    """Nothing is ever sent: reading ends when the other end is closed."""
    try:
        parent.recv_bytes()
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
    return _state.compute(work)
