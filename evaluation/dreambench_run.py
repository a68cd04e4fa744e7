"""A DreamBench run: what it paints, what decides its numbers, and the painting, resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import decode_png, encode_png
from focusdpo.data_schemas.progress import Watch
from focusdpo.data_schemas.scenes import Scene, candidate_seed
from focusdpo.data_schemas.subjects import Subject
from focusdpo.evaluation import dreambench_protocol
from focusdpo.evaluation.dreambench_metrics import BENCH_METRICS
from focusdpo.evaluation.dreambench_protocol import (
    PROTOCOLS,
    BenchScenes,
    bench_scenes,
    target_photographs,
)
from focusdpo.evaluation.folder import write_json
from focusdpo.evaluation.photographs import GET, open_photographs, read_photograph
from focusdpo.flows.config import EvaluateRun
from focusdpo.flows.wiring import Meter, Resident, build_part, fingerprint_of, vocabulary
from focusdpo.pipeline.generate import paint
from focusdpo.pipeline.parts import Generator, Image, ReferenceImage, Segmenter
from focusdpo.pipeline.stage import read_reference
from focusdpo.pipeline.subjects.cutouts import StoredMasks
from focusdpo.pipeline.subjects.ingest import ingest
from focusdpo.store.artefacts import Store
from focusdpo.store.checkpoints import digest_files
from focusdpo.store.keys import config_digest
from focusdpo.store.outputs import address_of, local

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
        what = "your subjects" if run.protocol == dreambench_protocol.ID else f"the dataset; {GET}"
        raise UserError(f"data: protocol {run.protocol} needs --data, the folder of {what}")
    adapter = adapter_digest(local(run.adapter))
    find = _own if run.protocol == dreambench_protocol.ID else _public
    plan, members = find(run, run.data)
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
    plan = dreambench_protocol.own_scenes(found.subjects, backgrounds, run.own_scenes)
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
    compares_whole = run.protocol != dreambench_protocol.ID
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


PAINTING = "painting.json"
"""Model -> key of the pictures that lie in images/<model>."""


def paint_missing(
    out: Path,
    model: str,
    key: str,
    scenes: Sequence[Scene],
    per_scene: int,
    references: Mapping[str, ReferenceImage],
    generator: Callable[[], Generator],
    *,
    batch: int,
    watch: Watch,
) -> list[str]:
    """`per_scene` pictures of each scene as `out`/images/`model`/*.png, scene by scene; their names
    below `out`.

    Pictures that an earlier run with the same `key` left are kept, those of another key removed;
    `generator` is called only when some are missing.
    """
    folder = out / "images" / model
    keys = json.loads((out / PAINTING).read_text("utf-8")) if (out / PAINTING).exists() else {}
    if keys.get(model) != key:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(out / PAINTING, {**keys, model: key})
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(scene, index) for scene in scenes for index in range(per_scene)]
    names = [f"images/{model}/{scene.id}-{index}.png" for scene, index in wanted]
    missing = [at for at, name in enumerate(names) if not (out / name).exists()]
    if not missing:
        return names
    painter = generator()
    for start in range(0, len(missing), batch):
        part = missing[start : start + batch]
        made = paint(
            [wanted[at][0].prompt for at in part],
            [[references[name] for name in wanted[at][0].subject_ids] for at in part],
            [candidate_seed(wanted[at][0].seed, wanted[at][1]) for at in part],
            painter,
            batch=batch,
        )
        for at, picture in zip(part, made, strict=True):
            _write(out / names[at], encode_png(picture))
        done = len(names) - len(missing) + start + len(part)
        watch(f"paint {model}", done, len(names), {})
    return names


def read_pictures(out: Path, names: Sequence[str]) -> list[Image]:
    """Pictures (H, W, 3) by name. UserError for a damaged one."""
    return [decode_png((out / name).read_bytes(), str(out / name)) for name in names]


def _write(path: Path, data: bytes) -> None:
    # A picture is whole or absent: a run may be killed at any time.
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    temporary.replace(path)
