"""What each command can be told: one closed, typed tree per flow, composed of the components' own.

Every field has a default but those that vary by user (which root, where to write). A preset lies
under what is given, so that a Prefect parameter or `--set` names only what differs from it. Fields
marked with `Option` are the command's options. Importing this module imports no torch and no
Prefect.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import Split
from focusdpo.evaluation.dreambench_protocol import DreamBenchConfig, OwnScenesConfig
from focusdpo.evaluation.held_out import HeldOutConfig
from focusdpo.evaluation.protocols import EvaluateConfig, ProtocolId, data_help, protocol_help
from focusdpo.flows.ablation.config import AblationConfig
from focusdpo.flows.build.config import ExecutorConfig, LocalConfig, YieldAlertConfig
from focusdpo.flows.levels.config import LevelsConfig
from focusdpo.flows.models_config import Family, ModelsConfig
from focusdpo.flows.retrain.config import RetrainConfig
from focusdpo.flows.rounds.config import RoundsConfig
from focusdpo.flows.settings import Option, load_preset, merge, over_defaults
from focusdpo.model.focus_config import PremiseConfig
from focusdpo.model.training.config import TrainConfig
from focusdpo.pipeline.complexity import ComplexityConfig
from focusdpo.pipeline.compose import ComposeConfig
from focusdpo.pipeline.describe import DescribeConfig
from focusdpo.pipeline.disrupt import DisruptConfig
from focusdpo.pipeline.generate import GenerateConfig
from focusdpo.pipeline.pairing.gates import PairConfig
from focusdpo.pipeline.score import ScoreConfig
from focusdpo.pipeline.segment import SegmentConfig
from focusdpo.pipeline.shard import ShardConfig
from focusdpo.pipeline.subjects.ingest import IngestConfig
from focusdpo.pipeline.subjects.near_duplicates import DuplicateConfig
from focusdpo.pocket.world.world_subjects import WorldConfig
from focusdpo.sharing.marks import MarkConfig
from focusdpo.sharing.pair_records import ImportConfig
from focusdpo.store.addresses import at_home, is_remote, refuse_secret

CLOSED = ConfigDict(extra="forbid", frozen=True)
STUDIO_TOKEN = "FOCUSDPO_STUDIO_TOKEN"
"""In the environment: what visitors of the studio must know."""


def _without_secret(address: Any) -> Any:
    """An address, or several, as given. UserError for one with a password or token: what a run is
    told stands in its folder, on pages and in logs."""
    for place in address if isinstance(address, tuple) else (address,):
        refuse_secret(str(place))
    return address


Address = Annotated[str, AfterValidator(_without_secret)]
"""A folder or an address; never with a secret in it."""
Preset = Annotated[
    str,
    Option("--preset"),
    Field(description="a shipped preset, or the path of a YAML file"),
]
Root = Annotated[Address, Option("--root"), Field(description="folder of the dataset")]
Version = Annotated[str, Option("--version"), Field(description="dataset version")]
Adapter = Annotated[
    Address | None,
    Option("--adapter"),
    Field(description="an adapter, RUN/adapter or its address; none: the base alone"),
]


PLACES = (
    *("root", "out", "subjects", "data", "adapter"),
    *("pictures", "references", "within", "lite"),
)
"""Fields of a run that name a folder: their ~ is the home folder."""


class Run(BaseModel):
    """What all runs share. A preset is laid under the given fields before they are checked."""

    model_config = CLOSED
    sends: ClassVar[bool] = False
    """Whether `out` may be an address."""

    preset: Preset = "pocket"
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
        given = {
            name: at_home(value) if name in PLACES and isinstance(value, str) else value
            for name, value in given.items()
        }
        tree = load_preset(str(given.get("preset", cls.model_fields["preset"].default)))
        unknown = sorted(set(tree) - set(SECTIONS))
        if unknown:
            raise UserError(
                f"preset '{given.get('preset')}': no such section: {', '.join(unknown)}; "
                f"sections: {', '.join(SECTIONS)}"
            )
        sections = {name: tree[name] for name in tree if name in cls.model_fields}
        return over_defaults(cls, merge(sections, given))

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
        if isinstance(out, str) and "://" in out and not self.sends:
            raise ValueError(
                f"out={out}: this command writes to a local folder; only train, evaluate, "
                "measure and retrain take an address as `out`"
            )
        return self

    @model_validator(mode="after")
    def _pictures_are_here(self) -> Run:
        for name in ("subjects", "data", "pictures", "references", "within", "lite"):
            place = getattr(self, name, None)
            if isinstance(place, str) and is_remote(place):
                raise ValueError(
                    f"{name}={place}: an address, and pictures are read from a local folder; copy "
                    "them to this machine"
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
    duplicates: DuplicateConfig = Field(DuplicateConfig(), description="nearly equal pictures")
    complexity: ComplexityConfig = Field(ComplexityConfig(), description="the map M_d")
    shard: ShardConfig = Field(ShardConfig(), description="pairs -> webdataset shards")
    executor: ExecutorConfig = Field(LocalConfig(), description="where the stages run")


SECTIONS = tuple(
    sorted(
        {"suite", "models", "partitions_per_task", "num_processes"}
        | set(Stages.model_fields)
        | {
            "train",
            "premise",
            "held_out",
            "evaluate",
            "dreambench",
            "own_scenes",
            "report",
            "measure",
            "ablation",
            "retrain",
            "rounds",
            "levels",
            "alert",
            "imports",
            "marks",
        }
    )
)
"""What a preset file may hold."""


class ReportConfig(BaseModel):
    """How much the report shows."""

    model_config = CLOSED

    pairs: int = Field(24, ge=1, description="pairs with pictures")
    rejects: int = Field(18, ge=0, description="rejected pairs with pictures")


class _Shared(BaseModel):
    """Work that processes of this machine may share."""

    num_processes: Annotated[int, Option("--num-processes", metavar="N")] = Field(
        1,
        ge=0,
        description="processes of this machine that share the work, each with a card of its own "
        "(CUDA_VISIBLE_DEVICES says which there are) or a share of the cores; 0: one for each "
        "visible card. Results are the same (docs/multi_gpu.md)",
    )


class _Build(_Shared, Stages, Run):
    """What the commands share that build a dataset."""

    subjects: Annotated[Address | None, Option("--subjects", metavar="DIR")] = Field(
        None,
        description="a folder that holds one folder of pictures per subject (png, jpg, webp; alpha "
        "is the mask), each with an optional subject.yaml (class_name, licence). Without it: the "
        "subjects that the root has registered (`focusdpo subjects`), or individuals of the pocket "
        "world",
    )
    strict: Annotated[bool, Option("--strict")] = Field(
        False, description="stop at the first bad subject or partition"
    )
    partitions_per_task: int = Field(
        0, ge=0, description="partitions of one task; 0: so many that a stage has about 8 tasks"
    )


class _Train(BaseModel):
    train: TrainConfig = Field(TrainConfig(), description="objective, optimiser, focus")


class _HeldOut(BaseModel):
    held_out: HeldOutConfig = Field(HeldOutConfig(), description="the scenes that are painted")
    evaluate: EvaluateConfig = Field(
        EvaluateConfig(), description="pictures, thresholds, intervals"
    )


class _Protocol(_HeldOut):
    """What an evaluation by any protocol is told."""

    protocol: Annotated[ProtocolId, Option("--protocol")] = Field(
        "pocket", description=f"what is painted and how it is measured. {protocol_help()}"
    )
    data: Annotated[Address | None, Option("--data", metavar="DIR")] = Field(
        None, description=f"the protocol's photographs. {data_help()}"
    )
    own_scenes: OwnScenesConfig = Field(
        OwnScenesConfig(), description="scenes of the protocol subjects"
    )
    dreambench: DreamBenchConfig = Field(
        DreamBenchConfig(), description="how much of a DreamBench protocol is painted"
    )


class _Alert(BaseModel):
    alert: YieldAlertConfig = Field(
        YieldAlertConfig(), description="when a drop of the yield is told"
    )


class BuildRun(_Alert, _Build):
    """`build-dataset`: subjects -> a dataset version in `root`."""

    root: Root = Field(description="folder of the dataset, made when absent")


class ImportRun(Stages, Run):
    """`import pairs`: pairs made elsewhere -> a dataset version in `root`."""

    root: Annotated[Address, Option("--root")] = Field(
        description="folder of the dataset, made when absent; one of its own for imported pairs"
    )
    strict: Annotated[bool, Option("--strict")] = Field(
        False, description="stop at the first row that cannot be used"
    )
    licence: Annotated[str, Option("--licence")] = Field(
        "", description="licence of the subjects for which the table tells none"
    )
    imports: ImportConfig = Field(ImportConfig(), description="pairs from elsewhere")


class GenerateRun(Run):
    """What needs the models alone, and how references are read: `doctor`, `subjects`."""

    ingest: IngestConfig = Field(IngestConfig(), description="reading pictures of subjects")
    marks: MarkConfig = Field(
        MarkConfig(), description="what pictures that are painted for people say of their origin"
    )


class TrainRun(_Train, Run):
    """`train`: a dataset version -> an adapter in `out`."""

    sends: ClassVar[bool] = True
    root: Root
    version: Version = "latest"
    out: Annotated[Address, Option("--out")] = Field(
        description="folder or address of the run; the adapter lies in `adapter` below it"
    )


class EncodeRun(_Train, Run):
    """`encode`: a dataset version -> its pictures and prompts as a training reads them."""

    root: Root
    version: Version = "latest"


class FocusMapsRun(_Train, Run):
    """`focus-maps`: a dataset version -> pictures of its focus maps and the premise's check."""

    root: Root
    version: Version = "latest"
    out: Annotated[Address, Option("--out")] = Field(
        description="folder of the figures and numbers"
    )
    adapter: Adapter = Field(
        None, description="an adapter, RUN/adapter or its address: shows it beside the base"
    )
    split: Annotated[Split, Option("--split")] = Field("train", description="which pairs")
    pair_id: Annotated[str | None, Option("--pair")] = Field(
        None, description="id of the pair to draw; none: the first with most subjects"
    )
    pairs: Annotated[int, Option("--pairs")] = Field(
        48, ge=1, description="how many pairs to measure, over numbers of subjects"
    )
    premise: PremiseConfig = Field(PremiseConfig(), description="what is measured")


class NoiseLevelsRun(Stages, Run):
    """`noise-levels`: a dataset's failed and right candidates, painted on from each level."""

    root: Root
    version: Version = "latest"
    out: Annotated[Address, Option("--out")] = Field(
        "runs/levels", description="folder of the table and the pictures"
    )
    levels: LevelsConfig = Field(LevelsConfig(), description="what is painted on, and from where")


class EvaluateRun(_Shared, _Protocol, Run):
    """`evaluate`: base against adapter by a protocol -> rows and pictures in `out`."""

    sends: ClassVar[bool] = True
    adapter: Annotated[Address, Option("--adapter")] = Field(
        description="the adapter: RUN/adapter of a training run, or its address"
    )
    out: Annotated[Address, Option("--out")] = Field(
        description="folder or address of the evaluation"
    )
    base_from: Annotated[Address | None, Option("--base-from")] = Field(
        None, description="another evaluation, whose pictures of the base are taken over"
    )
    ingest: IngestConfig = Field(IngestConfig(), description="reading a folder of subjects")


def shared(run: BaseModel, model: type[BaseModel]) -> dict[str, Any]:
    """The fields of `run` that `model` has too."""
    values = run.model_dump()
    return {name: values[name] for name in model.model_fields if name in values}


class _OwnRoot(_Build):
    """What the commands share whose dataset may lie in their own folder."""

    out: Address = Field(description="folder or address of everything that is made")
    root: Annotated[Address | None, Option("--root")] = Field(
        None, description="folder of the dataset; without it one is built in `dataset` below --out"
    )

    @property
    def dataset_root(self) -> str:
        """Where the pairs lie."""
        return self.root or f"{self.out}/dataset"

    def build_run(self) -> BuildRun:
        """Its build-dataset part."""
        return BuildRun.model_validate(shared(self, BuildRun) | {"root": self.dataset_root})


class AblateRun(_Train, _HeldOut, _OwnRoot):
    """`ablate`: every objective on every kind of pairs with several seeds, beside the base."""

    out: Annotated[Address, Option("--out")] = Field(
        "runs/ablation", description="folder of everything that is made"
    )
    version: Version = "latest"
    ablation: AblationConfig = Field(AblationConfig(), description="what is compared")


class DemoRun(_Train, _HeldOut, _Build):
    """`demo`: the whole job in one folder."""

    preset: Preset = "demo"
    out: Annotated[Address, Option("--out")] = Field(
        "demo", description="folder of everything that is made"
    )
    report: ReportConfig = Field(ReportConfig(), description="how much the report shows")

    @property
    def subject_folder(self) -> str:
        """As given, or made in `out`."""
        return self.subjects or f"{self.out}/subjects"

    def build_run(self) -> BuildRun:
        """Its build-dataset part."""
        settings = {"root": f"{self.out}/dataset", "subjects": self.subject_folder}
        return BuildRun.model_validate(shared(self, BuildRun) | settings)

    def train_run(self) -> TrainRun:
        """Its train part."""
        settings = {"root": f"{self.out}/dataset", "out": f"{self.out}/train"}
        return TrainRun.model_validate(shared(self, TrainRun) | settings)

    def evaluate_run(self) -> EvaluateRun:
        """Its evaluate part."""
        settings = {"adapter": f"{self.out}/train/adapter", "out": f"{self.out}/evaluate"}
        return EvaluateRun.model_validate(shared(self, EvaluateRun) | settings)


class _Cycle(_Train, _Protocol, _Alert, _OwnRoot):
    """What the commands share that build, train and evaluate."""

    def train_run(self, version: str, out: str) -> TrainRun:
        """Its train part, on a dataset version."""
        settings = {"root": self.dataset_root, "version": version, "out": out}
        return TrainRun.model_validate(shared(self, TrainRun) | settings)

    def evaluate_run(self, adapter: str, out: str, base_from: str | None = None) -> EvaluateRun:
        """Its evaluate part, of an adapter."""
        settings = {"adapter": adapter, "out": out, "base_from": base_from}
        return EvaluateRun.model_validate(shared(self, EvaluateRun) | settings)


class RetrainRun(_Cycle):
    """`retrain`: build, decide, train, evaluate, and promote what is better, in `out`."""

    sends: ClassVar[bool] = True
    out: Annotated[Address, Option("--out")] = Field(
        description="folder or address of the models: candidates, and promoted.json"
    )
    retrain: RetrainConfig = Field(RetrainConfig(), description="when to train and to promote")


class RoundsRun(_Cycle):
    """`rounds`: build, train, evaluate, then build with that adapter, and so on, in `out`."""

    out: Annotated[Address, Option("--out")] = Field(
        "runs/rounds", description="folder of the rounds"
    )
    rounds: RoundsConfig = Field(RoundsConfig(), description="how many rounds")

    def build_round(self, adapter: str | None) -> BuildRun:
        """Its build-dataset part, painted with an adapter, or as `generate` says."""
        run = self.build_run()
        if adapter is None:
            return run
        generate = run.generate.model_copy(update={"adapter": adapter})
        return run.model_copy(update={"generate": generate})


class StudioRun(BaseModel):
    """`studio`: where it looks, and who may look through it."""

    model_config = CLOSED

    root: Root = Field(description="folder of the dataset; it may be empty or new")
    runs: Annotated[tuple[Path, ...], Option("--runs"), AfterValidator(_without_secret)] = Field(
        (), description="folder of training runs or evaluations, or of such; may be repeated"
    )
    host: Annotated[str, Option("--host")] = Field(
        "127.0.0.1", description="address to listen at; beyond loopback with a token"
    )
    port: Annotated[int, Option("--port")] = Field(
        8765, ge=0, le=65535, description="port; 0: any free one"
    )
    token: Annotated[str | None, Option("--token")] = Field(
        None,
        repr=False,
        description=f"what visitors must know; {STUDIO_TOKEN} in the environment does the same, "
        "unseen by `ps`",
    )
    hosts: Annotated[tuple[str, ...], Option("--allow-host")] = Field(
        (), description="a further name of this machine; may be repeated"
    )
    preset: Preset = Field(
        "pocket", description="models and settings of what is run from the pages"
    )
