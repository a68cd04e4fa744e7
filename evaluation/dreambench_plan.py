"""The protocols on photographs: DreamBench's, and a team's own subjects.

The public dataset is read from its folder as it is; own subjects as build-dataset reads them. What
measures instances is the judge's parts, which no pair was made with where the `models` section
names others for it; photographs.parquet has the scores of whole pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.data_schemas.evaluations import EvalScene, WholeScores
from focusdpo.data_schemas.runs import EvalRow, Watch
from focusdpo.data_schemas.subjects import Subject
from focusdpo.evaluation.comparison import rows
from focusdpo.evaluation.dreambench_metrics import (
    BENCH_METRICS,
    BenchParts,
    bench_pictures,
    know_subject,
    measure_pictures,
    undetected,
)
from focusdpo.evaluation.dreambench_protocol import (
    BENCHES,
    ID,
    BenchScenes,
    bench_scenes,
    own_scenes,
    target_photographs,
)
from focusdpo.evaluation.folder import PHOTOGRAPHS, read_pictures
from focusdpo.evaluation.photographs import GET, open_photographs, read_photograph
from focusdpo.evaluation.protocols import (
    ADAPTER,
    BASE,
    MODELS,
    EvaluateConfig,
    Individual,
    Measured,
    Models,
    Panel,
    Plan,
    Request,
)
from focusdpo.pipeline.parts import Detection, Image, Mask, ReferenceImage, Segmenter
from focusdpo.pipeline.score import crop_on_white
from focusdpo.pipeline.stage import read_reference
from focusdpo.pipeline.subjects.cutouts import StoredMasks
from focusdpo.pipeline.subjects.ingest import ingest
from focusdpo.store.artefacts import Store
from focusdpo.store.checkpoints import digest_files
from focusdpo.store.keys import config_digest
from focusdpo.store.outputs import address_of, local
from focusdpo.store.provenance import ADAPTER_FOLDER, require_kind

DINO = "dino"
"""The kind of identity encoder that DreamBench's numbers are of."""
VERSION = 1
"""Changes when the same settings would give other numbers."""
CUT_MARGIN = 0.1
"""White border of a cut-out that the generator is shown, as a share of its longer side."""
PARTS = {
    "generator": "generator",
    "dino": "DINO",
    "clip": "CLIP-I, CLIP-T",
    "identity": "instances' identity",
    "segmenter": "instances' masks",
}
"""Part -> what a table calls it."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A subject that stands in some scene, and how its pictures are read."""

    class_name: str
    pictures: tuple[str, ...]
    """What its target pictures are called, the shown one first."""
    digest: str
    """Of all target pictures."""
    shown_digest: str
    load: Callable[[], list[ReferenceImage]]
    """The target pictures. UserError for a damaged one."""
    masked: bool
    """Whether their masks tell where the subject is; else the segmenter looks for it."""


class BenchPlan(Plan):
    """A run of a protocol on photographs."""

    def __init__(
        self,
        request: Request,
        bench: BenchScenes,
        members: Mapping[str, Member],
        adapter: str,
        left_out: tuple[str, ...] = (),
    ) -> None:
        self.left_out = left_out
        self.request, self.bench, self.members, self.adapter = request, bench, members, adapter
        self.id, self.seed, self.per_scene = bench.shown_id, bench.seed, bench.images_per_prompt
        self.cast, self.num_scenes = counted(len(members), "subject"), len(bench.scenes)
        if bench.protocol.what != "subjects":
            self.cast += f" in {bench.sets} {bench.protocol.what}"
        fingerprint = request.models.fingerprint
        self.fingerprints = {part: fingerprint(role) for part, role in self.roles.items()}

    @cached_property
    def roles(self) -> dict[str, str]:
        """Measuring part, and the generator -> its role."""
        return {**roles_of(self.request), "generator": "generator"}

    @property
    def key(self) -> str:
        return config_digest(
            {
                "version": VERSION,
                "protocol": self.id,
                "targets": self.bench.protocol.targets,
                "evaluate": self.request.evaluate.model_dump(mode="json"),
                "scenes": [asdict(scene) for scene in self.bench.scenes],
                "images": self.per_scene,
                "pictures": {name: member.digest for name, member in self.members.items()},
                "paintings": {model: self.painting_key(model) for model in MODELS},
                "parts": self.fingerprints,
                "metrics": list(BENCH_METRICS),
            }
        )

    def painting_key(self, model: str) -> str:
        about: dict[str, Any] = {
            "version": VERSION,
            "seeds": [(scene.id, scene.seed) for scene in self.bench.scenes],
            "images": self.per_scene,
            "shown": {name: member.shown_digest for name, member in self.members.items()},
            "how": self.request.dreambench.shown,
            "generator": self.fingerprints["generator"],
            "adapter": self.adapter if model == ADAPTER else None,
        }
        if self.cuts_out:
            config = self.request.evaluate
            about["segmenter"] = self.fingerprints["segmenter"]
            about["limits"] = (config.min_confidence, config.min_area)
        return config_digest(about)

    @property
    def cuts_out(self) -> bool:
        """Whether the segmenter decides what the generator is shown."""
        return self.request.dreambench.shown == "cut_out"

    def load(self, watch: Watch) -> BenchPanel:
        request = self.request
        parts = {
            part: request.models.build(role)
            for part, role in self.roles.items()
            if part != "generator"
        }
        whole = parts.pop("dino", None)
        if whole is not None and not hasattr(whole, "embed_whole"):
            raise UserError(
                f"protocol {request.protocol}: the identity encoder of suite '{request.suite}' "
                "takes no whole pictures; take a preset of suite checkpoints, as in --preset "
                "flux-uno"
            )
        return BenchPanel(self, BenchParts(whole=whole, **parts), watch)


class BenchPanel(Panel[WholeScores]):
    """Segmenter, identity encoder and CLIP, DINO where whole pictures are compared, and what they
    know of the subjects' photographs."""

    table = (PHOTOGRAPHS, WholeScores)

    def __init__(self, plan: BenchPlan, parts: BenchParts, watch: Watch) -> None:
        self.plan, self.parts, self.scenes = plan, parts, plan.bench.scenes
        self.known = {}
        self.individuals = {}
        for done, (name, member) in enumerate(plan.members.items(), 1):
            pictures = member.load()
            images = [picture.image for picture in pictures]
            masks = [picture.mask for picture in pictures] if member.masked else None
            known = know_subject(images, member.class_name, parts, self._config, masks)
            cut = plan.cuts_out and not member.masked
            self.known[name] = known
            self.individuals[name] = Individual(
                shown=_cut_out(images[0], known.masks[0]) if cut else pictures[0],
                pictures=images,
                about={
                    "class_name": member.class_name,
                    "held_out_class": False,
                    "photographs": list(member.pictures),
                },
            )
            watch("look at photographs", done, len(plan.members), {})

    @property
    def _config(self) -> EvaluateConfig:
        return self.plan.request.evaluate

    def measure(
        self, model: str, out: Path, names: Sequence[str], watch: Watch
    ) -> Measured[WholeScores]:
        """A batch at a time: the pictures need not fit the memory together."""
        judged: list[EvalScene] = []
        whole: list[WholeScores] = []
        for start in range(0, len(names), self._config.batch):
            part = names[start : start + self._config.batch]
            numbers = range(start, start + len(part))
            records, scores = measure_pictures(
                model,
                self.plan.id,
                [self.scenes[at // self.plan.per_scene] for at in numbers],
                [at % self.plan.per_scene for at in numbers],
                part,
                read_pictures(out, part),
                self.known,
                self.parts,
                self._config,
            )
            judged += records
            whole += scores
            watch(f"measure {model}", len(judged), len(names), {})
        return Measured(judged=judged, beside=whole)

    def rows(self, measured: Mapping[str, Measured[WholeScores]]) -> list[EvalRow]:
        base, adapter = (
            bench_pictures(measured[model].judged, measured[model].beside)
            for model in (BASE, ADAPTER)
        )
        return rows(base, adapter, self._config, BENCH_METRICS)

    def about(self, measured: Mapping[str, Measured[WholeScores]]) -> dict[str, Any]:
        plan, members = self.plan, self.plan.members
        failures = {model: undetected(records.judged) for model, records in measured.items()}
        failures["photographs"] = (
            sum(subject.undetected for subject in self.known.values()),
            sum(len(member.pictures) for member in members.values()),
        )
        return {
            "images_per_prompt": plan.per_scene,
            "targets": plan.bench.protocol.targets,
            "shown": {name: member.pictures[0] for name, member in members.items()},
            "failed_detections": failures,
            "fingerprints": {**plan.fingerprints, "adapter": plan.adapter},
            "notes": list(_notes(plan, failures)),
        }


def _notes(plan: BenchPlan, failures: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """What must stand beside the numbers: protocol, checkpoints, crops, references, seeds,
    failures."""
    bench, config = plan.bench, plan.request.evaluate
    whole = "dino" in plan.fingerprints
    targets = (
        "the shown photograph" if bench.protocol.targets == "shown" else "all of its photographs"
    )
    return (
        f"protocol {plan.id}: {bench.sets} {bench.protocol.what}, {len(bench.scenes)} prompts, "
        f"{counted(plan.per_scene, 'picture')} each, seed {plan.seed}",
        (f"DINO, CLIP-I: whole picture and {targets} per subject; " if whole else "")
        + "CLIP-T: whole picture and prompt",
        "instances: segmenter by class words, assigned by word, then identity; confidence at least "
        f"{config.min_confidence:g}, area at least {config.min_area:g}",
        *(
            f"{label}: {_checkpoint(plan, part)}"
            for part, label in PARTS.items()
            if part in plan.fingerprints
        ),
        "not found: "
        + ", ".join(f"{lost} of {total} ({what})" for what, (lost, total) in failures.items()),
        f"intervals: {config.level:.0%}, bootstrap over {bench.protocol.what}, not over pictures",
    )


def _checkpoint(plan: BenchPlan, part: str) -> str:
    """A part's kind, weights and crops as the run names them, and the start of its fingerprint."""
    request = plan.request
    named: list[str] = [request.suite]
    if request.suite == "checkpoints":
        values = dict(request.named["backbone" if part == "generator" else plan.roles[part]])
        named = [values.pop("kind")]
        named += [f"{name} {value}" for name, value in values.items() if isinstance(value, str)]
    return f"{', '.join(named)} ({plan.fingerprints[part][:12]})"


def _cut_out(image: Image, mask: Mask) -> ReferenceImage:
    """The subject on white in a square."""
    black = crop_on_white(np.zeros_like(image), mask, CUT_MARGIN)
    return ReferenceImage(image=crop_on_white(image, mask, CUT_MARGIN), mask=black[..., 0] == 0)


def public(request: Request) -> BenchPlan:
    """A DreamBench protocol. UserError for bad data, or an absent adapter."""
    if request.data is None:
        raise _needs_data(request, f"the dataset; {GET}")
    adapter = adapter_digest(local(request.adapter))
    protocol = BENCHES[request.protocol]
    folder = open_photographs(request.data)
    bench = bench_scenes(folder, protocol, request.dreambench)
    members = {}
    for name in bench.names:
        files = target_photographs(folder, name, protocol)
        members[name] = Member(
            class_name=folder.classes[name],
            pictures=tuple(file.name for file in files),
            digest=digest_files(files),
            shown_digest=digest_files(files[:1]),
            load=partial(_photographs, files),
            masked=False,
        )
    return BenchPlan(request, bench, members, adapter)


def own(request: Request) -> BenchPlan:
    """The team's own subjects, read into a store of the evaluation's own. The segmenter is loaded
    for a photograph without alpha that was not seen before. A subject that cannot be used is left
    out, as a build does. UserError as `public`."""
    if request.data is None:
        raise _needs_data(request, "your subjects")
    adapter = adapter_digest(local(request.adapter))
    store = Store.open(f"{address_of(request.out)}/store")
    backgrounds, words = request.models.vocabulary()
    checkpoints = request.suite == "checkpoints"
    find = StoredMasks(store, _LazySegmenter(request.models)) if checkpoints else None
    ingested = ingest(request.data, store, request.ingest, known_classes=words, find=find)
    bench = own_scenes(ingested.subjects, backgrounds, request.own_scenes)
    members = {
        subject.id: Member(
            class_name=subject.class_name,
            pictures=tuple(f"picture {at}" for at in range(len(subject.references))),
            digest=subject.digest,
            shown_digest=subject.digest,
            load=partial(_stored, store, subject),
            masked=True,
        )
        for subject in ingested.subjects
        if subject.id in bench.names
    }
    left_out = tuple(problem.message for problem in ingested.problems if problem.fatal)
    return BenchPlan(request, bench, members, adapter, left_out)


def _needs_data(request: Request, what: str) -> UserError:
    return UserError(f"data: protocol {request.protocol} needs --data, the folder of {what}")


class _LazySegmenter:
    """The dataset's own, loaded on its first call: masks are as build-dataset makes them."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self.fingerprint = models.fingerprint("segmenter")

    def segment(
        self, images: Sequence[Image], class_names: Sequence[Sequence[str]]
    ) -> list[list[Detection]]:
        """As `pipeline.parts.Segmenter`."""
        segmenter: Segmenter = self._models.build("segmenter")
        return segmenter.segment(images, class_names)


def _photographs(files: Sequence[Path]) -> list[ReferenceImage]:
    images = [read_photograph(file) for file in files]
    return [
        ReferenceImage(image=image, mask=np.ones(image.shape[:2], np.bool_)) for image in images
    ]


def _stored(store: Store, subject: Subject) -> list[ReferenceImage]:
    return [read_reference(store.image, reference) for reference in subject.references]


def roles_of(request: Request) -> dict[str, str]:
    """Measuring part -> its role: judges where there are some. The protocols' DINO is DINO v1
    ViT-S/16, whichever role has it. UserError when none does."""
    compares_whole = request.protocol != ID
    if request.suite != "checkpoints":
        same = {part: part for part in ("identity", "segmenter", "clip")}
        return {"dino": "identity", **same} if compares_whole else same
    judges = {"identity": "judge_identity", "segmenter": "judge_segmenter", "clip": "clip"}
    if not compares_whole:
        return judges
    kinds = {role: request.named[role]["kind"] for role in ("identity", "judge_identity")}
    dino = next((role for role, kind in kinds.items() if kind == DINO), None)
    if dino is None:
        raise UserError(
            f"protocol {request.protocol}: its DINO score needs DINO v1, but models.identity is "
            f"{kinds['identity']} and models.judge_identity {kinds['judge_identity']}; make one of "
            "them {kind: dino}"
        )
    return {"dino": dino, **judges}


def adapter_digest(folder: Path) -> str:
    """Of an adapter's weights. UserError where there is none."""
    require_kind(folder, ADAPTER_FOLDER)
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "adapter.json").is_file():
        raise UserError(
            f"{folder}: no adapter (adapter.json and *.safetensors); --adapter takes the folder "
            "that `train` wrote"
        )
    return digest_files(files)
