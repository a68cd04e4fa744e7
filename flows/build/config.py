"""Settings of build-dataset alone: where its stages run, when a yield is worth a message. No Ray.

Nothing here decides what comes out: no content key depends on it.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

CLOSED = ConfigDict(extra="forbid", frozen=True)
SECRET = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|(ACCESS|API|PRIVATE)_?KEY", re.IGNORECASE)


class StageResources(BaseModel):
    """What one worker of a stage occupies, and how many there may be."""

    model_config = CLOSED

    num_cpus: float = Field(1.0, ge=0, description="CPU cores; also the threads that torch uses")
    num_gpus: float = Field(
        0.0, ge=0, description="GPUs; below 1, several workers share one: 0.25 is four on a card"
    )
    memory_gib: float = Field(0.0, ge=0, description="GiB of memory; 0: not counted")
    accelerator_type: str | None = Field(
        None, description="only nodes with this card, by Ray's name for it, as in A100"
    )
    custom: dict[str, float] = Field(
        default_factory=dict, description="Ray's custom resources, as nodes were started with"
    )
    workers: int = Field(
        0,
        ge=0,
        description="workers at most, and what an autoscaler is asked for; 0: as many as the nodes "
        "that are there have room for",
    )

    @model_validator(mode="after")
    def _counts_something(self) -> StageResources:
        if not (self.num_cpus or self.num_gpus or self.memory_gib or self.custom or self.workers):
            raise ValueError("a worker that occupies nothing has no number; set `workers` too")
        return self


class Resources(BaseModel):
    """A request per stage; stages without one take the default."""

    model_config = CLOSED

    default: StageResources = Field(
        default_factory=StageResources, description="stages without a request of their own"
    )
    compose: StageResources | None = Field(None, description="subjects -> scenes: no model")
    generate: StageResources | None = Field(None, description="the generator")
    segment: StageResources | None = Field(None, description="segmenter and identity encoder")
    describe: StageResources | None = Field(None, description="the captioner")
    disrupt: StageResources | None = Field(None, description="the inpainter")
    score: StageResources | None = Field(None, description="identity encoder and CLIP")
    pair: StageResources | None = Field(None, description="scores -> pairs: no model")

    def of(self, stage: str) -> StageResources:
        """The request of a stage."""
        request: StageResources | None = getattr(self, stage)
        return request or self.default


class LocalConfig(BaseModel):
    """Stages run in this process."""

    model_config = CLOSED

    kind: Literal["local"] = Field("local", description="stages run in this process")


class RayConfig(BaseModel):
    """Stages run in workers of a Ray cluster (docs/cluster.md)."""

    model_config = CLOSED

    kind: Literal["ray"] = Field("ray", description="stages run in workers of a Ray cluster")
    address: str = Field(
        "auto",
        description="auto: the cluster that this machine is a node of; HOST:PORT of its head; "
        "ray://HOST:PORT from outside; local: a cluster of this machine alone, for this run",
    )
    resources: Resources = Field(default_factory=Resources, description="what a worker occupies")
    in_flight: int = Field(
        2, ge=1, le=100, description="tasks handed to a worker at once: the next one waits there"
    )
    task_partitions: int = Field(1, ge=1, description="partitions of one task")
    losses: int = Field(
        3, ge=1, description="a partition over which so many workers died counts as failed"
    )
    start_seconds: float = Field(
        900.0, gt=0, description="how long no worker may be there: nodes may have to be started"
    )
    silent_seconds: float = Field(
        30.0,
        ge=2,
        le=50,
        description="a head that takes no connection for so long is gone. Ray ends this process "
        "after 60 s without a word",
    )
    env: dict[str, str] = Field(
        default_factory=dict,
        description="environment of the workers; recorded with each version, so no secrets",
    )
    imports: tuple[str, ...] = Field(
        (), description="modules that each worker imports first, as one that knows a suite"
    )

    @field_validator("env")
    @classmethod
    def _has_no_secrets(cls, env: dict[str, str]) -> dict[str, str]:
        if secrets := sorted(name for name in env if SECRET.search(name)):
            raise ValueError(
                f"{', '.join(secrets)}: this section is recorded with every dataset version; give "
                "secrets to the nodes, in the environment that `ray start` runs in"
            )
        return env


ExecutorConfig = Annotated[LocalConfig | RayConfig, Field(discriminator="kind")]


class YieldAlertConfig(BaseModel):
    """When a build's yield is worth a message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="tell when a build's yield is below this share of the median of past builds; "
        "0: never",
    )
    builds: int = Field(20, ge=1, description="how many past builds the median is over, at most")
    least: int = Field(3, ge=1, description="how many past builds there must be")
