"""A DreamBench run before any model is loaded: what it paints, what decides its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from focusdpo.data_schemas.checkpoints import digest_files
from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.subjects import Subject
from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.outputs import address_of, local
from focusdpo.flows.wiring import Meter, Resident, build_part, fingerprint_of, vocabulary
from focusdpo.pipeline import own_scenes
from focusdpo.pipeline.dreambench import (
    PROTOCOLS,
    BenchScenes,
    bench_scenes,
    target_photographs,
)
from focusdpo.pipeline.dreambench_metrics import BENCH_METRICS
from focusdpo.pipeline.ingest import ingest
from focusdpo.pipeline.keys import config_digest
from focusdpo.pipeline.parts import ReferenceImage, Segmenter
from focusdpo.pipeline.photo_masks import StoredMasks
from focusdpo.pipeline.photographs import GET, open_photographs, read_photograph
from focusdpo.pipeline.stage import read_reference
from focusdpo.pipeline.store import Store

DINO = "dino"
"""The kind of identity encoder that DreamBench's numbers are of."""
VERSION = 1
"""Changes when the same settings would give other numbers."""


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


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A run, looked at before any model is loaded."""

    run: EvaluateRun
    plan: BenchScenes
    members: Mapping[str, Member]
    fingerprints: Mapping[str, str]
    """By measuring part, and the generator's."""
    adapter: str
    """Digest of the adapter's weights."""

    @property
    def key(self) -> str:
        """Digest of all that decides the numbers."""
        return config_digest(
            {
                "version": VERSION,
                "protocol": self.plan.shown_id,
                "targets": self.plan.protocol.targets,
                "evaluate": self.run.evaluate.model_dump(mode="json"),
                "scenes": [asdict(scene) for scene in self.plan.scenes],
                "images": self.plan.images_per_prompt,
                "pictures": {name: one.digest for name, one in self.members.items()},
                "paintings": {model: self.painting_key(model) for model in ("base", "adapter")},
                "parts": dict(self.fingerprints),
                "metrics": list(BENCH_METRICS),
            }
        )

    def painting_key(self, model: str) -> str:
        """Digest of all that decides one model's pictures: measuring anew paints nothing anew."""
        about: dict[str, Any] = {
            "version": VERSION,
            "seeds": [(scene.id, scene.seed) for scene in self.plan.scenes],
            "images": self.plan.images_per_prompt,
            "shown": {name: one.shown_digest for name, one in self.members.items()},
            "how": self.run.dreambench.shown,
            "generator": self.fingerprints["generator"],
            "adapter": self.adapter if model == "adapter" else None,
        }
        if self.cuts_out:
            about["segmenter"] = self.fingerprints["segmenter"]
            about["limits"] = (self.run.evaluate.min_confidence, self.run.evaluate.min_area)
        return config_digest(about)

    @property
    def cuts_out(self) -> bool:
        """Whether the segmenter decides what the generator is shown."""
        return self.run.dreambench.shown == "cut_out"


def look(run: EvaluateRun) -> Bench:
    """A run of a DreamBench protocol or of `subjects`. UserError for bad data, or an absent
    adapter."""
    if run.data is None:
        what = "your subjects" if run.protocol == own_scenes.ID else f"the dataset; {GET}"
        raise UserError(f"data: protocol {run.protocol} needs --data, the folder of {what}")
    adapter = adapter_digest(local(run.adapter))
    plan, members = _own(run, run.data) if run.protocol == own_scenes.ID else _public(run, run.data)
    parts = {**roles(run), "generator": "generator"}
    return Bench(
        run=run,
        plan=plan,
        members=members,
        fingerprints={part: fingerprint_of(run.family, role) for part, role in parts.items()},
        adapter=adapter,
    )


def _public(run: EvaluateRun, data: str) -> tuple[BenchScenes, dict[str, Member]]:
    protocol = PROTOCOLS[run.protocol]
    folder = open_photographs(data)
    plan = bench_scenes(folder, protocol, run.dreambench)
    members = {}
    for name in plan.names:
        files = target_photographs(folder, name, protocol)
        members[name] = Member(
            class_name=folder.classes[name],
            pictures=tuple(file.name for file in files),
            digest=digest_files(files),
            shown_digest=digest_files(files[:1]),
            load=partial(_whole, files),
            masked=False,
        )
    return plan, members


def _own(run: EvaluateRun, data: str) -> tuple[BenchScenes, dict[str, Member]]:
    """Subjects read as build-dataset reads them, into a store of the evaluation's own. The
    segmenter is loaded for a photograph without alpha that was not seen before."""
    store = Store.open(f"{address_of(run.out)}/store")
    backgrounds, words = vocabulary(run.family)
    find = StoredMasks(store, _segmenter(run)) if run.suite == "checkpoints" else None
    found = ingest(data, store, run.ingest, known_classes=words, find=find, strict=True)
    plan = own_scenes.own_scenes(found.subjects, backgrounds, run.own_scenes)
    members = {
        one.id: Member(
            class_name=one.class_name,
            pictures=tuple(f"picture {at}" for at in range(len(one.references))),
            digest=one.digest,
            shown_digest=one.digest,
            load=partial(_stored, store, one),
            masked=True,
        )
        for one in found.subjects
        if one.id in plan.names
    }
    return plan, members


def _segmenter(run: EvaluateRun) -> Segmenter:
    """The dataset's own, loaded on its first call: masks are as build-dataset makes them."""
    load = partial(build_part, run.family, "segmenter")
    return cast(
        Segmenter,
        Resident("segmenter", fingerprint_of(run.family, "segmenter"), load, Meter()),
    )


def _whole(files: Sequence[Path]) -> list[ReferenceImage]:
    images = [read_photograph(file) for file in files]
    return [ReferenceImage(image=one, mask=np.ones(one.shape[:2], np.bool_)) for one in images]


def _stored(store: Store, subject: Subject) -> list[ReferenceImage]:
    return [read_reference(store.image, reference) for reference in subject.references]


def roles(run: EvaluateRun) -> dict[str, str]:
    """Measuring part -> its role: judges where there are some. The protocols' DINO is DINO v1
    ViT-S/16, whichever role has it. UserError when none does."""
    compares_whole = run.protocol != own_scenes.ID
    if run.suite != "checkpoints":
        same = {part: part for part in ("identity", "segmenter", "clip")}
        return {"dino": "identity", **same} if compares_whole else same
    judges = {"identity": "judge_identity", "segmenter": "judge_segmenter", "clip": "clip"}
    if not compares_whole:
        return judges
    kinds = {role: getattr(run.models, role).kind for role in ("identity", "judge_identity")}
    dino = next((role for role, kind in kinds.items() if kind == DINO), None)
    if dino is None:
        raise UserError(
            f"protocol {run.protocol}: its DINO score needs DINO v1, but models.identity is "
            f"{kinds['identity']} and models.judge_identity {kinds['judge_identity']}; make one of "
            "them {kind: dino}"
        )
    return {"dino": dino, **judges}


def adapter_digest(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "adapter.json").is_file():
        raise UserError(
            f"{folder}: no adapter (adapter.json and *.safetensors); --adapter takes the folder "
            "that `train` wrote"
        )
    return digest_files(files)
