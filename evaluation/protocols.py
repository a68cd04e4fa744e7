"""What an evaluation consists of, whatever its protocol: scenes, a generator's pictures, a judge.

A protocol is one row of `PROTOCOLS`: its function makes a `Plan` of a `Request` and loads no model.
The plan's key says whether the very evaluation is there already; `Plan.load` gives the `Panel` that
measures. `evaluation.run` does the rest, alike for all. Importing this module imports no model.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Protocol, TypeVar, cast

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.data_schemas.evaluations import EvalScene, ScorerView, WholeScores
from focusdpo.data_schemas.runs import EvalRow, Watch
from focusdpo.data_schemas.scenes import Scene
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.pipeline.parts import Image, ReferenceImage

if TYPE_CHECKING:
    from focusdpo.evaluation.dreambench_protocol import DreamBenchConfig, OwnScenesConfig
    from focusdpo.evaluation.held_out import HeldOutConfig
    from focusdpo.pipeline.subjects.ingest import IngestConfig

BASE, ADAPTER, DIFFERENCE = "base", "adapter", "adapter - base"
MODELS = (BASE, ADAPTER)


class EvaluateConfig(StrictModel):
    """How pictures are painted, judged and counted."""

    images_per_scene: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Pictures per scene and model; a scene counts their mean.",
    )
    min_confidence: float = Field(
        default=0.5, ge=0, le=1, description="Least confidence of an instance that counts."
    )
    min_area: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Least area of an instance, as a share of the picture.",
    )
    class_weight: float = Field(
        default=2.0,
        ge=0,
        description="Weight of the class probability beside identity when subjects are matched "
        "to instances. At 2 a sure class outweighs any looks; 0 matches by looks alone, which "
        "forgives two subjects that traded them.",
    )
    claim: float = Field(
        default=0.3,
        ge=-1,
        le=1,
        description="Least similarity with which an instance claims a subject.",
    )
    least_identity: float = Field(
        default=0.5,
        ge=-1,
        le=1,
        description="Matched identity below which a subject counts as failed.",
    )
    resamples: int = Field(default=2000, ge=100, description="Bootstrap resamples.")
    level: float = Field(default=0.95, gt=0, lt=1, description="Coverage of the intervals.")
    seed: int = Field(default=0, ge=0, description="Seed of the bootstrap.")
    batch: int = Field(default=32, ge=1, description="Most pictures in one call of a model.")


class Models(Protocol):
    """The models of a suite by role."""

    def fingerprint(self, role: str) -> str:
        """Hash of a part's weights and settings; loads nothing."""
        ...

    def build(self, role: str, *, adapter: str | None = None) -> Any:
        """Load a part; `adapter` (a folder) is for the generator."""
        ...

    def vocabulary(self) -> tuple[tuple[str, ...], frozenset[str] | None]:
        """Backgrounds that prompts name, and the class words that were taught; None: any word."""
        ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """An evaluation as it was asked for."""

    protocol: str
    adapter: str
    """Folder or address."""
    out: str
    """Folder or address."""
    base_from: str | None = None
    """Folder or address of another evaluation, whose pictures of the base are taken over."""
    data: str | None
    suite: str
    models: Models
    named: Mapping[str, Any]
    """Role -> the settings that name its checkpoint; {} for embedded models."""
    evaluate: EvaluateConfig
    held_out: HeldOutConfig
    dreambench: DreamBenchConfig
    own_scenes: OwnScenesConfig
    ingest: IngestConfig
    settings: str
    """The resolved configuration (YAML), which lies beside the results."""


@dataclass(frozen=True, kw_only=True)
class Individual:
    """A subject of the scenes."""

    shown: ReferenceImage
    """What the generator sees of it."""
    pictures: Sequence[Image]
    """(H, W, 3) each: what its looks are compared with."""
    about: Mapping[str, Any]
    """What subjects.json says of it."""


Beside = TypeVar("Beside", ScorerView, WholeScores)
"""The records beside the judge's: of the preference scorer, or of whole pictures."""


@dataclass(frozen=True, kw_only=True)
class Measured(Generic[Beside]):
    """One model's pictures: a record of each kind per picture."""

    judged: Sequence[EvalScene]
    beside: Sequence[Beside]


class Panel(ABC, Generic[Beside]):
    """The loaded models that measure, and what they know of the subjects."""

    scenes: Sequence[Scene]
    individuals: Mapping[str, Individual]
    table: tuple[str, type[Beside]]
    """File and type of the records beside the judge's."""

    @abstractmethod
    def measure(
        self, model: str, out: Path, names: Sequence[str], watch: Watch
    ) -> Measured[Beside]:
        """Records of the pictures `names` below `out`, scene by scene. UserError for a damaged
        one."""

    @abstractmethod
    def rows(self, measured: Mapping[str, Measured[Beside]]) -> list[EvalRow]:
        """The table: every metric and group for the models and their paired difference."""

    @abstractmethod
    def about(self, measured: Mapping[str, Measured[Beside]]) -> dict[str, Any]:
        """What run.json says beside what all evaluations say: fingerprints, notes."""


class Plan(ABC):
    """An evaluation, looked at before any model is loaded."""

    request: Request
    id: str
    """As every table prints it."""
    cast: str
    """Who stands in the scenes: "3 subjects in 6 sets of subjects"."""
    num_scenes: int
    per_scene: int
    """Pictures of each scene and model."""
    seed: int
    left_out: tuple[str, ...] = ()
    """What of the data cannot be used, and why."""

    @property
    def painters(self) -> tuple[str, ...]:
        """The models that paint; the base does not where its pictures are taken over."""
        return MODELS if self.request.base_from is None else (ADAPTER,)

    @property
    def num_pictures(self) -> int:
        """Of all that paint together."""
        return len(self.painters) * self.num_scenes * self.per_scene

    @property
    def amount(self) -> str:
        """What is painted, in one line."""
        each = counted(self.per_scene, "picture")
        return (
            f"{self.cast}, {counted(self.num_scenes, 'scene')}, {each} of each, seed {self.seed}: "
            f"{counted(self.num_pictures, 'picture')} by {' and '.join(self.painters)} ({self.id})"
        )

    @property
    @abstractmethod
    def key(self) -> str:
        """Digest of all that decides the numbers."""

    @abstractmethod
    def painting_key(self, model: str) -> str:
        """Digest of all that decides one model's pictures: measuring anew paints nothing anew."""

    @abstractmethod
    def load(self, watch: Watch) -> Panel[Any]:
        """Load what measures. UserError for a model that cannot."""


@dataclass(frozen=True, kw_only=True)
class ProtocolEntry:
    """A protocol as settings, help and docs know it."""

    paints: str
    """What is painted, in a few words."""
    plan: str
    """module:function, from a `Request` to a `Plan`. UserError for bad data or no adapter."""
    data: str = ""
    """What --data is; nothing where it takes none."""


_DREAMBENCH = ProtocolEntry(
    paints="photographs of the public DreamBooth dataset",
    plan="focusdpo.evaluation.dreambench_plan:public",
    data="the DreamBooth dataset's folder",
)
PROTOCOLS: dict[str, ProtocolEntry] = {
    "pocket": ProtocolEntry(
        paints="rendered individuals", plan="focusdpo.evaluation.pocket_protocol:plan"
    ),
    "dreambench-single/kosmosg": _DREAMBENCH,
    "dreambench-single/all-refs": _DREAMBENCH,
    "dreambench-multi/uno": _DREAMBENCH,
    "subjects": ProtocolEntry(
        paints="photographs of your own subjects",
        plan="focusdpo.evaluation.dreambench_plan:own",
        data="your subjects' folder",
    ),
}
"""Id -> protocol. One from outside goes by its plan, `module:function`."""


def plan_of(request: Request) -> Plan:
    """What the request's protocol makes of it. UserError for bad data or an absent adapter."""
    known = PROTOCOLS.get(request.protocol)
    module, _, name = (known.plan if known else request.protocol).partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UserError(
            f"protocol {request.protocol}: {error}; expected module:function"
        ) from error
    return cast(Callable[[Request], Plan], make)(request)


def protocol_help() -> str:
    """The ids and what each paints, for the command line."""
    groups: dict[str, list[str]] = {}
    for id, entry in PROTOCOLS.items():
        groups.setdefault(entry.paints, []).append(id)
    rows = [f"{', '.join(ids)}: {paints}" for paints, ids in groups.items()]
    return f"{'; '.join(rows)} (docs/dreambench.md)."


def data_help() -> str:
    """What --data is for which protocol."""
    folders = {entry.data: id.partition("-")[0] for id, entry in PROTOCOLS.items() if entry.data}
    return "; ".join(f"{id}: {data}" for data, id in folders.items()) + "."


def _known(id: str) -> str:
    if id not in PROTOCOLS and not all(id.partition(":")):
        raise PydanticCustomError(
            "protocol", "there are {ids}, or module:function", {"ids": ", ".join(PROTOCOLS)}
        )
    return id


ProtocolId = Annotated[
    str, AfterValidator(_known), Field(json_schema_extra={"examples": list(PROTOCOLS)})
]
