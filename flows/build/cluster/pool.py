"""A pool of Ray actors of one kind: bounded work in flight, lost actors replaced, their work done
again elsewhere. How many nodes there are is the cluster's to say and its autoscaler's to change."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.build.cluster.connection import Engine
from focusdpo.flows.build.config import StageResources
from focusdpo.flows.processes.worker_pool import Result, Work, WorkItem

log = logging.getLogger(__name__)

WAIT = 1.0
"""Seconds between two looks at the cluster while nothing comes back."""
SAY_AFTER = 15.0
"""Seconds without a worker after which people are told why."""

REASON = 600
"""Letters of a worker's obituary; Ray can go on for pages."""


@dataclass(eq=False)
class Member(Generic[Work]):
    """An actor."""

    actor: Any
    hello: Any
    """Answered once it is up."""
    up: bool = False
    flying: dict[Any, WorkItem[Work]] = field(default_factory=dict)
    """Reference of a reply -> its item, in the order in which the actor does them."""


class Pool(Generic[Work]):
    """Actors with a method `compute(work)` and one `hello()`."""

    def __init__(self, engine: Engine, request: StageResources, kind: type, *args: Any) -> None:
        self.request = request
        self._engine, self._kind, self._args = engine, kind, args
        self._members: list[Member[Work]] = []
        self._queue: deque[WorkItem[Work]] = deque()
        self._deaths = 0
        """Since a worker last replied."""
        self._alone_since = time.monotonic()
        self._told = self._looked = 0.0

    @property
    def size(self) -> int:
        """Actors that are up."""
        return sum(member.up for member in self._members)

    def start(self) -> int:
        """Wait until as many actors as there may be are up; how many. UserError as in `results`."""
        wanted = self.request.workers or self._capacity()
        while self.size < wanted:
            self._look(wanted)
            for member, ref in self._landed():
                for _ in self._receive(member, ref):
                    pass  # nothing was asked of it yet
        return wanted

    def results(self, work: Sequence[Work]) -> Iterator[Result[Work]]:
        """Do all the work; results in the order in which they come.

        UserError when the cluster is gone, no worker could be had in time, or they die one after
        another; whatever else an actor raises is raised here.
        """
        self._queue = deque(WorkItem(task) for task in work)
        self._alone_since = time.monotonic()
        while left := len(self._queue) + sum(len(member.flying) for member in self._members):
            self._look(left)
            self._feed()
            for member, ref in self._landed():
                yield from self._receive(member, ref)

    def close(self) -> None:
        """End all actors: their cores, cards and memory are free for others."""
        for member in self._members:
            self._engine.kill(member.actor)
        self._members.clear()

    def _look(self, left: int) -> None:
        """Whether the cluster is there, and as many actors as there is room and work for."""
        now = time.monotonic()
        if now - self._looked >= WAIT:
            self._looked = now
            if self._engine.check():
                self._grow(min(left, self.request.workers or self._capacity()))
        if self.size:
            self._alone_since = now
        elif (alone := now - self._alone_since) > self._engine.config.start_seconds:
            raise UserError(f"no worker for {alone:.0f} s. {self._wanting()}")
        elif alone > SAY_AFTER and now - self._told > 60:
            self._told = now
            log.warning("waiting for a worker. %s", self._wanting())

    def _capacity(self) -> int:
        """At least one: an autoscaler starts the node that it needs."""
        return max(1, self._engine.capacity(self.request))

    def _wanting(self) -> str:
        asked = self.request.model_dump(exclude_defaults=True) or {"num_cpus": 1}
        return f"A worker was asked for with {asked}; {self._engine.told()}"

    def _grow(self, wanted: int) -> None:
        while len(self._members) < wanted:
            actor = self._engine.spawn(self._kind, self.request, *self._args)
            self._members.append(Member(actor, actor.hello.remote()))

    def _feed(self) -> None:
        """Hand out work, to whoever has least; near the end nobody hoards what others could do."""
        up = [member for member in self._members if member.up]
        while self._queue and up:
            member = min(up, key=lambda peer: len(peer.flying))
            most = self._engine.config.in_flight if len(self._queue) >= len(up) else 1
            if len(member.flying) >= most:
                return
            item = self._queue.popleft()
            member.flying[member.actor.compute.remote(item.work)] = item

    def _landed(self) -> list[tuple[Member[Work], Any]]:
        """Replies that are there, after waiting a little for the first."""
        owners = {ref: member for member in self._members for ref in member.flying}
        owners |= {member.hello: member for member in self._members if not member.up}
        if not owners:
            time.sleep(WAIT / 10)
            return []
        refs = list(owners)
        first, rest = self._engine.ray.wait(refs, num_returns=1, timeout=WAIT)
        more, _ = self._engine.ray.wait(rest, num_returns=len(rest), timeout=0) if rest else ([], 0)
        return [(owners[ref], ref) for ref in (*first, *more)]

    def _receive(self, member: Member[Work], ref: Any) -> Iterator[Result[Work]]:
        if member not in self._members:
            return  # lost a moment ago, with all that it was at
        errors = self._engine.ray.exceptions
        try:
            reply = self._engine.ray.get(ref)
        except errors.RayTaskError as error:
            raise (error.cause or error) from error
        except errors.RayError as error:
            yield from self._lose(member, error)
            return
        self._deaths = 0
        if ref is member.hello:
            member.up = True
            log.info("worker %s is up", reply)
        else:
            yield Result(member.flying.pop(ref), reply)

    def _lose(self, member: Member[Work], error: BaseException) -> Iterator[Result[Work]]:
        """An actor is gone: its work goes to the front of the queue, in its smallest parts."""
        self._members.remove(member)
        self._engine.kill(member.actor)  # it may be alive, and only out of reach
        self._deaths += 1
        why = _reason(error)
        log.warning("a worker was lost, %d tasks are done again: %s", len(member.flying), why)
        if self._deaths > 5 + len(self._members):
            raise UserError(
                f"{self._deaths} workers died one after another and none did anything; the last: "
                f"{why}"
            )
        items = list(member.flying.values())
        for item in items[:1]:  # the others were waiting
            item.losses += 1
        for item in reversed(items):
            if item.losses >= self._engine.config.losses:
                yield Result(item, lost=f"{item.losses} workers died over it; the last: {why}")
            else:
                parts = [WorkItem(part, item.losses) for part in item.work.each()]
                self._queue.extendleft(reversed(parts))


def _reason(error: BaseException) -> str:
    """What Ray says of a death, without its advice and its numbers for itself."""
    text = " ".join(str(error).split()).partition(" Some common causes include")[0]
    return text if len(text) <= REASON else f"{text[:REASON]}..."
