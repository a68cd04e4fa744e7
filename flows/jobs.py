"""A job: what build-dataset, train, evaluate, retrain and ablate have in common.

A job is made from its run (a typed config). It knows whether it is finished, what it is called,
which folder it works on and whether it needs the GPU; `perform` is its recipe, which hands each
step to `Steps`: plain calls (flows/runner.py), or tasks and flows of Prefect
(flows/prefect/flows.py); a recipe cannot tell the difference. `exhibits` and `events` are what it
has to show and to tell afterwards. Importing this module imports no Prefect.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel

from focusdpo.data_schemas.runs import Watch, quiet

RunT = TypeVar("RunT", bound=BaseModel)
ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)


class Pending(Protocol[ResultT_co]):
    """A step that was started."""

    def result(self) -> ResultT_co:
        """Waits for it; raises what the step raised."""
        ...


class Steps(ABC):
    """How the steps of a job are run. `kind` is the step's name, the same in every run of the job;
    `title` tells this one from the others."""

    @abstractmethod
    def step(self, kind: str, title: str, work: Callable[[], ResultT]) -> ResultT:
        """Run a step; what it raises is raised here."""

    @abstractmethod
    def start(self, kind: str, title: str, work: Callable[[], ResultT]) -> Pending[ResultT]:
        """Start a step beside others. It waits in a thread of this process."""

    @abstractmethod
    def job(self, job: Job[Any, ResultT], watch: Watch) -> ResultT:
        """Run a whole job as a step of another."""


@dataclass(frozen=True, slots=True)
class Text:
    """Markdown to be shown; `key` ties the versions of one thing together, in all exhibits."""

    key: str
    title: str
    markdown: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with the same columns."""

    key: str
    title: str
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG."""

    key: str
    title: str
    png: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """A file that a browser opens."""

    key: str
    path: Path
    png: bytes | None = None
    """What stands for it where it cannot be reached from."""


Exhibit = Text | Table | Picture | Page


@dataclass(frozen=True, slots=True)
class Event:
    """Something that others may act on."""

    name: str
    resource: str
    """Id of what it is about."""
    title: str
    """The same for people."""
    payload: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    """For people who are to be told at once (the webhook); empty: nobody is."""


PUBLISHED = "focusdpo.dataset.published"
"""A build made a new dataset version; never for a build in which nothing changed."""
YIELD_DROPPED = "focusdpo.dataset.yield-dropped"
"""A build brought far fewer pairs for its candidates than builds before it."""
TRAINED = "focusdpo.adapter.trained"
PROMOTED = "focusdpo.adapter.promoted"
KEPT = "focusdpo.adapter.kept"
"""A candidate was trained and is not better: the adapter in use stays."""


class Job(ABC, Generic[RunT, ResultT]):
    """One job with its settings."""

    name: ClassVar[str]
    """Of the command, the flow and the deployment."""
    config: ClassVar[type[BaseModel]]
    """The type of its run."""

    def __init__(self, run: RunT) -> None:
        self.run = run

    @property
    @abstractmethod
    def folder(self) -> str:
        """What it works on: a folder or an address."""

    @property
    def needs_gpu(self) -> bool:
        """Whether it computes on the GPU itself, if there is one."""
        return not self.finished()

    @abstractmethod
    def finished(self) -> bool:
        """Whether nothing is left to compute: then no model and no server is started."""

    @abstractmethod
    def title(self, result: ResultT | None = None) -> str:
        """What tells this run from others: what it works on, and then what came of it."""

    def load_ahead(self) -> None:
        """Begin to load models in a thread, while this one waits for something else."""

    def require_inputs(self) -> None:  # noqa: B027 - most jobs look while they are made
        """UserError for a root, version or folder that is named and not there. Makes nothing."""

    @abstractmethod
    def perform(self, steps: Steps, watch: Watch = quiet) -> ResultT:
        """The recipe. Again after a stop it goes on from what was finished."""

    def changed(self, result: ResultT) -> bool:
        """Whether this run made anything; if not, it has nothing to show."""
        return True

    @abstractmethod
    def exhibits(self, result: ResultT) -> Iterator[Exhibit]:
        """What people should see of it."""

    def events(self, result: ResultT) -> Iterator[Event]:
        """What others may act on."""
        return iter(())

    def left_out(self, result: ResultT) -> str:
        """A line on what is missing in the result; empty when it is whole."""
        return ""
