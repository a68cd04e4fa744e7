"""What each command can be told: one closed, typed tree per flow, composed of the components' own.

Importing this module imports no torch and no Prefect.

Every field has a default but those that vary by user (which root, where to write). A preset lies
under what is given, so that a Prefect parameter or `--set` names only what differs from it.
Importing this module imports no torch and no Prefect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import Split
from focusdpo.evaluation.dreambench_protocol import DreamBenchConfig, OwnScenesConfig
from focusdpo.evaluation.held_out import HeldOutConfig
from focusdpo.evaluation.protocols import EvaluateConfig, ProtocolId
from focusdpo.flows.ablation.config import AblationConfig
from focusdpo.flows.build.executor_config import ExecutorConfig, LocalConfig
from focusdpo.flows.models_config import Family, ModelsConfig
from focusdpo.flows.retrain.config import RetrainConfig, YieldAlertConfig
from focusdpo.flows.settings import load_preset, merge
from focusdpo.model.focus_config import PremiseConfig
from focusdpo.model.training.config import TrainConfig
from focusdpo.pipeline.complexity import ComplexityConfig
from focusdpo.pipeline.compose import ComposeConfig
from focusdpo.pipeline.describe import DescribeConfig
from focusdpo.pipeline.disrupt import DisruptConfig
from focusdpo.pipeline.generate import GenerateConfig
from focusdpo.pipeline.pair import PairConfig
from focusdpo.pipeline.score import ScoreConfig
from focusdpo.pipeline.segment import SegmentConfig
from focusdpo.pipeline.shard import ShardConfig
from focusdpo.pipeline.subjects.ingest import IngestConfig
from focusdpo.pocket.world_subjects import WorldConfig

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


class ReportConfig(BaseModel):
    """How much the report shows."""

    model_config = CLOSED

    pairs: int = Field(24, ge=1, description="pairs with pictures")
    rejects: int = Field(18, ge=0, description="rejected pairs with pictures")


class BuildRun(Stages, Run):
    """`build-dataset`: subjects -> a dataset version in `root`."""

    root: str = Field(description="folder of the dataset, made when absent")
    subjects: str | None = Field(
        None,
        description="folder with a folder of pictures per subject; none: the subjects that the "
        "root has, or individuals of the pocket world",
    )
    strict: bool = Field(False, description="stop at the first bad subject or partition")
    partitions_per_task: int = Field(
        0, ge=0, description="partitions of one task; 0: so many that a stage has about 8 tasks"
    )
    alert: YieldAlertConfig = Field(
        YieldAlertConfig(), description="when a drop of the yield is told"
    )


class GenerateRun(Run):
    """`generate` and `doctor`: the models alone, and how references are read."""

    ingest: IngestConfig = Field(IngestConfig(), description="reading pictures of subjects")


class TrainRun(Run):
    """`train`: a dataset version -> an adapter in `out`."""

    sends: ClassVar[bool] = True
    root: str = Field(description="folder of the dataset")
    version: str = Field("latest", description="dataset version")
    out: str = Field(
        description="folder or address of the run; the adapter lies in `adapter` below it"
    )
    train: TrainConfig = Field(TrainConfig(), description="objective, optimiser, focus")


class FocusMapsRun(Run):
    """`focus-maps`: a dataset version -> pictures of its focus maps and the premise's check."""

    root: str = Field(description="folder of the dataset")
    version: str = Field("latest", description="dataset version")
    out: str = Field(description="folder of the figures and numbers")
    adapter: str | None = Field(
        None, description="folder or address of an adapter; none: the base alone"
    )
    split: Split = Field("train", description="which pairs: train or val")
    pair_id: str | None = Field(
        None, description="id of the pair that is drawn; none: the first with most subjects"
    )
    pairs: int = Field(48, ge=1, description="pairs that are measured, over numbers of subjects")
    train: TrainConfig = Field(TrainConfig(), description="its focus and seed are used")
    premise: PremiseConfig = Field(PremiseConfig(), description="what is measured")


class EvaluateRun(Run):
    """`evaluate`: base against adapter by a protocol -> rows and pictures in `out`."""

    sends: ClassVar[bool] = True
    adapter: str = Field(description="folder or address of the adapter")
    out: str = Field(description="folder or address of the evaluation")
    protocol: ProtocolId = Field(
        "pocket", description="what is painted and how it is measured (docs/dreambench.md)"
    )
    data: str | None = Field(
        None, description="folder of the protocol's photographs; pocket renders its own pictures"
    )
    ingest: IngestConfig = Field(IngestConfig(), description="reading a folder of subjects")
    own_scenes: OwnScenesConfig = Field(
        OwnScenesConfig(), description="scenes of the protocol subjects"
    )
    dreambench: DreamBenchConfig = Field(
        DreamBenchConfig(), description="how much of a DreamBench protocol is painted"
    )
    held_out: HeldOutConfig = Field(HeldOutConfig(), description="the scenes that are painted")
    evaluate: EvaluateConfig = Field(
        EvaluateConfig(), description="pictures, thresholds, intervals"
    )


def shared(run: BaseModel, model: type[BaseModel]) -> dict[str, Any]:
    """The fields of `run` that `model` has too."""
    values = run.model_dump()
    return {name: values[name] for name in model.model_fields if name in values}


class _WholeJob(Stages, Run):
    """What the commands share that build, train and evaluate in one folder."""

    subjects: str | None = Field(None, description="folder of subjects; none: the pocket world's")
    strict: bool = Field(False, description="stop at the first bad subject or partition")
    partitions_per_task: int = Field(0, ge=0, description="as for build-dataset")
    train: TrainConfig = Field(TrainConfig(), description="objective, optimiser, focus")
    held_out: HeldOutConfig = Field(HeldOutConfig(), description="the scenes that are painted")
    evaluate: EvaluateConfig = Field(
        EvaluateConfig(), description="pictures, thresholds, intervals"
    )


class AblateRun(_WholeJob):
    """`ablate`: every objective on every kind of pairs with several seeds, beside the base."""

    out: str = Field(description="folder of everything that is made")
    root: str | None = Field(
        None, description="folder of a dataset; none: one is built in `dataset` below `out`"
    )
    version: str = Field("latest", description="dataset version")
    ablation: AblationConfig = Field(AblationConfig(), description="what is compared")

    @property
    def dataset_root(self) -> str:
        """Where the pairs lie."""
        return self.root or f"{self.out}/dataset"

    def build_run(self) -> BuildRun:
        """Its build-dataset part."""
        return BuildRun.model_validate(shared(self, BuildRun) | {"root": self.dataset_root})


class DemoRun(_WholeJob):
    """`demo`: the whole job in one folder."""

    out: str = Field("demo", description="folder of everything that is made")
    report: ReportConfig = Field(ReportConfig(), description="how much the report shows")

    @property
    def subject_folder(self) -> str:
        """The folder of subjects: as given, or made in `out`."""
        return self.subjects or f"{self.out}/subjects"

    def build_run(self) -> BuildRun:
        """Its build-dataset part."""
        own = {"root": f"{self.out}/dataset", "subjects": self.subject_folder}
        return BuildRun.model_validate(shared(self, BuildRun) | own)

    def train_run(self) -> TrainRun:
        """Its train part."""
        own = {"root": f"{self.out}/dataset", "out": f"{self.out}/train"}
        return TrainRun.model_validate(shared(self, TrainRun) | own)

    def evaluate_run(self) -> EvaluateRun:
        """Its evaluate part."""
        own = {"adapter": f"{self.out}/train/adapter", "out": f"{self.out}/evaluate"}
        return EvaluateRun.model_validate(shared(self, EvaluateRun) | own)


class RetrainRun(_WholeJob):
    """`retrain`: build, decide, train, evaluate, and promote what is better, in `out`."""

    sends: ClassVar[bool] = True
    out: str = Field(
        description="folder or address of the models: candidates, and which one is in use"
    )
    root: str | None = Field(None, description="folder of the dataset; none: `dataset` below `out`")
    protocol: ProtocolId = Field("pocket", description="what decides, as for evaluate")
    data: str | None = Field(None, description="folder of the protocol's photographs")
    own_scenes: OwnScenesConfig = Field(
        OwnScenesConfig(), description="scenes of the protocol subjects"
    )
    dreambench: DreamBenchConfig = Field(
        DreamBenchConfig(), description="how much of a DreamBench protocol is painted"
    )
    retrain: RetrainConfig = Field(RetrainConfig(), description="when to train and to promote")
    alert: YieldAlertConfig = Field(
        YieldAlertConfig(), description="when a drop of the yield is told"
    )

    @property
    def dataset_root(self) -> str:
        """Where the pairs lie."""
        return self.root or f"{self.out}/dataset"

    def build_run(self) -> BuildRun:
        """Its build-dataset part."""
        return BuildRun.model_validate(shared(self, BuildRun) | {"root": self.dataset_root})

    def train_run(self, version: str, out: str) -> TrainRun:
        """Its train part, on a dataset version."""
        own = {"root": self.dataset_root, "version": version, "out": out}
        return TrainRun.model_validate(shared(self, TrainRun) | own)

    def evaluate_run(self, adapter: str, out: str) -> EvaluateRun:
        """Its evaluate part, of an adapter."""
        own = {"adapter": adapter, "out": out}
        return EvaluateRun.model_validate(shared(self, EvaluateRun) | own)
