"""What all typed runs share: the preset below, the models, a section per stage.

Importing this module imports no torch and no Prefect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.executor_config import ExecutorConfig, LocalConfig
from focusdpo.flows.models_config import Family, ModelsConfig
from focusdpo.flows.settings import load_preset, merge
from focusdpo.flows.world_subjects import WorldConfig
from focusdpo.pipeline.complexity import ComplexityConfig
from focusdpo.pipeline.compose import ComposeConfig
from focusdpo.pipeline.describe import DescribeConfig
from focusdpo.pipeline.disrupt import DisruptConfig
from focusdpo.pipeline.generate import GenerateConfig
from focusdpo.pipeline.ingest import IngestConfig
from focusdpo.pipeline.pair import PairConfig
from focusdpo.pipeline.score import ScoreConfig
from focusdpo.pipeline.segment import SegmentConfig
from focusdpo.pipeline.shard import ShardConfig

CLOSED = ConfigDict(extra="forbid", frozen=True)


class Run(BaseModel):
    """What all runs share. A preset is laid under the given fields before they are checked."""

    model_config = CLOSED
    sends: ClassVar[bool] = False
    """Whether `out` may be an address."""

    preset: str = Field("pocket", description="a shipped preset, or the path of a YAML file")
    suite: Literal["pocket", "checkpoints"] = Field(
        "pocket", description="which models do the work: the embedded ones, or those of `models`"
    )
    models: ModelsConfig | None = Field(
        None, description="checkpoints of each role, for suite `checkpoints`"
    )

    @model_validator(mode="before")
    @classmethod
    def _over_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        tree = load_preset(str(given.get("preset", "pocket")))
        unknown = sorted(set(tree) - set(SECTIONS))
        if unknown:
            raise UserError(
                f"preset '{given.get('preset')}': no such section: {', '.join(unknown)}; "
                f"sections: {', '.join(SECTIONS)}"
            )
        return merge({name: tree[name] for name in tree if name in cls.model_fields}, given)

    @model_validator(mode="after")
    def _models_are_said(self) -> Run:
        if self.suite == "checkpoints" and self.models is None:
            raise ValueError(
                "suite checkpoints needs a `models` section; take a preset that has one, as in "
                "--preset flux-uno"
            )
        return self

    @model_validator(mode="after")
    def _out_is_here(self) -> Run:
        out = getattr(self, "out", None)
        if out is not None and "://" in out and not self.sends:
            raise ValueError(
                f"out={out}: this command writes to a local folder; only train, evaluate and "
                "retrain take an address as `out`"
            )
        return self

    @property
    def family(self) -> Family:
        """What `wiring` builds parts of."""
        return self.suite if self.models is None or self.suite == "pocket" else self.models


class Stages(BaseModel):
    """One section per stage of build-dataset."""

    model_config = CLOSED

    world: WorldConfig = Field(WorldConfig(), description="subjects, when none are given")
    ingest: IngestConfig = Field(IngestConfig(), description="reading a folder of subjects")
    compose: ComposeConfig = Field(ComposeConfig(), description="subjects -> scenes")
    generate: GenerateConfig = Field(GenerateConfig(), description="scene -> sampled candidates")
    segment: SegmentConfig = Field(SegmentConfig(), description="candidate -> instances")
    describe: DescribeConfig = Field(DescribeConfig(), description="instance -> words")
    disrupt: DisruptConfig = Field(DisruptConfig(), description="repaints without a reference")
    score: ScoreConfig = Field(ScoreConfig(), description="identity, leakage, meaning")
    pair: PairConfig = Field(PairConfig(), description="scores -> pairs and rejects")
    complexity: ComplexityConfig = Field(ComplexityConfig(), description="the map M_d")
    shard: ShardConfig = Field(ShardConfig(), description="pairs -> webdataset shards")
    executor: ExecutorConfig = Field(LocalConfig(), description="where the stages run")


SECTIONS = tuple(
    sorted(
        {"suite", "models", "partitions_per_task"}
        | set(Stages.model_fields)
        | {
            "train",
            "premise",
            "held_out",
            "evaluate",
            "dreambench",
            "own_scenes",
            "report",
            "ablation",
            "retrain",
            "alert",
        }
    )
)
"""What a preset file may hold."""
