"""`noise-levels` without a command line: where a picture's subjects are decided.

Candidates of a dataset that failed at a subject, and others that are right, are noised to a level
with new noise and painted on from there. Where a failed one comes out as failed as it was and a
right one right, the choice had fallen before that level; where both fail alike, it falls below. The
dataset's own segmenter and scorers look at the results, as stage pair does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.candidates import Instance, Sampled, Scored
from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import encode_png
from focusdpo.data_schemas.runs import Watch, quiet
from focusdpo.data_schemas.scenes import Scene, stable_hash
from focusdpo.data_schemas.subjects import Subject
from focusdpo.evaluation.folder import write_json
from focusdpo.evaluation.metrics import bootstrap
from focusdpo.flows.config import NoiseLevelsRun
from focusdpo.flows.wiring import build_part, resident_parts
from focusdpo.pipeline.adapters.painter import BackbonePainter
from focusdpo.pipeline.pairing.gates import shown
from focusdpo.pipeline.parts import Image, guided
from focusdpo.pipeline.score import score
from focusdpo.pipeline.segment import segment
from focusdpo.pipeline.stage import chunks, read_references
from focusdpo.pipeline.upkeep.garbage import reading
from focusdpo.store.local import make_folder, write_whole
from focusdpo.store.versions import DatasetVersion, lineage_of

RESULT = "levels.json"
KINDS = ("failed", "right")
PREFIX = "levels/painted"


@dataclass(frozen=True, kw_only=True)
class LevelRow:
    """What came of candidates of one kind, painted on from one level."""

    sigma: float
    """As the sampler has it: the nearest of its schedule."""
    kind: str
    """failed or right: how they were."""
    candidates: int
    failed: float
    """Share of their subjects that failed afterwards, of those that had failed (kind failed), or of
    all (kind right)."""
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class LevelsOutcome:
    """What a run found."""

    out: str
    version: str
    rows: list[LevelRow]
    decided: tuple[float, float] | None
    """Between which two levels the choice falls: at the first it is still open by more than half,
    at the second it has fallen. None where it never falls, or always had."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"command": "noise-levels", **asdict(self)}


def measure_levels(run: NoiseLevelsRun, watch: Watch = quiet) -> LevelsOutcome:
    """Paint on and look; what is in `run.out` is replaced. UserError for a dataset without failed
    or without right candidates, or a backbone that paints by another schedule."""
    with reading(run.root, run.version, "a look at noise levels") as version:
        chosen = choose(version, run)
        painter = _Painter(run, version)
        rows = []
        for number, sigma in enumerate(run.levels.sigmas, 1):
            for kind in KINDS:
                rows.append(painter.row(kind, chosen[kind], sigma))
            watch("noise levels", number, len(run.levels.sigmas), {})
        outcome = LevelsOutcome(
            out=run.out, version=version.id, rows=rows, decided=decided_between(rows)
        )
    out = Path(run.out)
    make_folder(out)
    write_whole(out / "pictures.png", encode_png(painter.sheet()))
    write_json(out / RESULT, json.loads(json.dumps(outcome.as_dict())))
    return outcome


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sampled candidate of two or more subjects, and how it shows each (`gates.shown`)."""

    sampled: Sampled
    scene: Scene
    shown: tuple[int, ...]


def choose(version: DatasetVersion, run: NoiseLevelsRun) -> dict[str, list[Candidate]]:
    """Failed and right candidates by a hash of their ids, as many of each. UserError where there
    are none."""
    store, keys = version.store, dict[str, list[str]]()
    for artefact in lineage_of(version):
        keys.setdefault(artefact.stage, []).append(artefact.key)

    def read(stage: str, record: type[Any]) -> list[Any]:
        return [
            entry
            for key in keys.get(stage, ())
            if store.has(stage, key)
            for entry in store.read(stage, key, record)
        ]

    scenes = {scene.id: scene for scene in read("compose", Scene)}
    scored = {entry.candidate_id: entry for entry in read("score", Scored)}
    instances_of: dict[str, dict[str, Instance]] = {}
    for instance in read("segment", Instance):
        instances_of.setdefault(instance.candidate_id, {})[instance.subject_id] = instance
    kinds: dict[str, list[Candidate]] = {kind: [] for kind in KINDS}
    for sampled in read("generate", Sampled):
        scene = scenes[sampled.scene_id]
        if len(scene.subject_ids) < 2 or sampled.id not in scored:
            continue
        instances = [instances_of[sampled.id][name] for name in scene.subject_ids]
        how = shown(scored[sampled.id], instances, run.pair)
        if min(how):
            kinds["right" if min(how) > 0 else "failed"].append(Candidate(sampled, scene, how))
    count = min(run.levels.candidates, *map(len, kinds.values()))
    if not count:
        counts = ", ".join(f"{len(candidates)} {kind}" for kind, candidates in kinds.items())
        raise UserError(
            f"{run.root}: version {version.id} has {counts} candidates of two or more subjects; "
            "both kinds are needed: build from more subjects, or with more seeds "
            "(generate.candidates)"
        )

    def order(candidate: Candidate) -> int:
        return stable_hash("levels", run.levels.seed, candidate.sampled.id)

    return {kind: sorted(candidates, key=order)[:count] for kind, candidates in kinds.items()}


class _Painter:
    """Paints on with the base and looks at the results."""

    def __init__(self, run: NoiseLevelsRun, version: DatasetVersion) -> None:
        from focusdpo.model.backbones.flux import FluxBackbone

        self.run, self.store = run, version.store
        self.subjects: dict[str, Subject] = {subject.id: subject for subject in version.subjects()}
        self.parts = resident_parts(run.family)
        backbone = build_part(run.family, "backbone")
        if not isinstance(backbone, FluxBackbone):
            raise UserError(
                "noise-levels: paints on by flow matching; this backbone has another schedule"
            )
        self.backbone = backbone
        self.first: list[list[Image]] = []
        """Of each row, its candidates' first pictures."""

    def row(self, kind: str, candidates: Sequence[Candidate], sigma: float) -> LevelRow:
        """What comes of these candidates from one level on."""
        level, pictures = self.paint_on(candidates, sigma)
        self.first.append(pictures[:8])
        after = self._look(candidates, pictures)
        was = -1 if kind == "failed" else 1
        lost = np.array(
            [
                np.mean([now == -1 for now, then in zip(*how, strict=True) if then == was])
                for how in zip(after, (candidate.shown for candidate in candidates), strict=True)
            ]
        )
        config = self.run.levels
        about = bootstrap(lost, resamples=config.resamples, level=config.level, seed=config.seed)
        return LevelRow(
            sigma=round(level, 4),
            kind=kind,
            candidates=len(candidates),
            failed=about.mean,
            low=about.low,
            high=about.high,
        )

    def paint_on(self, candidates: Sequence[Candidate], sigma: float) -> tuple[float, list[Image]]:
        """The level of the sampler's schedule, and each picture painted anew from there."""
        backbone = self.backbone
        strength, level = strength_for(lambda value: float(backbone.sigmas(value)[0]), sigma)
        before = backbone.sampling
        backbone.sampling = before.model_copy(update={"strength": strength})
        painter = BackbonePainter(backbone, "", self.run.generate.batch)
        images = [self.store.image(candidate.sampled.image) for candidate in candidates]
        shown = [
            read_references(
                self.store.image, candidate.scene, self.subjects, self.run.generate.reference
            )
            for candidate in candidates
        ]
        painted: dict[int, Image] = {}
        try:
            for count in sorted({len(references) for references in shown}):
                same = [at for at, references in enumerate(shown) if len(references) == count]
                for part in chunks(same, self.run.generate.batch):
                    made = painter.inpaint(
                        [images[at] for at in part],
                        [np.ones(images[at].shape[:2], np.bool_) for at in part],
                        [candidates[at].scene.prompt for at in part],
                        [shown[at] for at in part],
                        [self._seed(candidates[at], sigma) for at in part],
                        **guided(self.run.generate.guidance),
                    )
                    painted.update(zip(part, made, strict=True))
        finally:
            backbone.sampling = before
        return level, [painted[at] for at in range(len(candidates))]

    def _seed(self, candidate: Candidate, sigma: float) -> int:
        name = f"{sigma:g}"
        return stable_hash("levels", self.run.levels.seed, candidate.sampled.id, name) % 2**31

    def _look(
        self, candidates: Sequence[Candidate], pictures: Sequence[Image]
    ) -> list[tuple[int, ...]]:
        """How each picture shows its subjects."""
        run, parts = self.run, self.parts
        sampled = [
            replace(candidate.sampled, image=f"{PREFIX}/{candidate.sampled.id}.png")
            for candidate in candidates
        ]
        new: dict[str, NDArray[np.uint8]] = dict(
            zip([candidate.image for candidate in sampled], pictures, strict=True)
        )

        def read(key: str) -> NDArray[np.uint8]:
            return new[key] if key in new else self.store.image(key)

        scenes = list({candidate.scene.id: candidate.scene for candidate in candidates}.values())
        looked = segment(
            scenes, self.subjects, sampled, read, parts.segmenter, parts.identity, run.segment,
            PREFIX,
        )  # fmt: skip
        new.update({f"{PREFIX}/{name}": mask for name, mask in looked.images.items()})
        scored = score(
            scenes, self.subjects, sampled, [], looked.records, read, parts.identity, parts.clip,
            run.score,
        )  # fmt: skip
        instances_of: dict[str, dict[str, Instance]] = {}
        for instance in looked.records:
            instances_of.setdefault(instance.candidate_id, {})[instance.subject_id] = instance
        return [
            shown(
                about,
                [instances_of[candidate.sampled.id][name] for name in candidate.scene.subject_ids],
                run.pair,
            )
            for about, candidate in zip(scored.records, candidates, strict=True)
        ]

    def sheet(self) -> Image:
        """A row of pictures per level and kind, in the order of the table."""
        width = min(len(row) for row in self.first)
        rows = [np.concatenate(row[:width], axis=1) for row in self.first]
        return np.ascontiguousarray(np.concatenate(rows))


def strength_for(level_of: Callable[[float], float], sigma: float) -> tuple[float, float]:
    """The strength whose first noise level is nearest to `sigma`, and that level."""
    strengths = [step / 200 for step in range(1, 201)]
    best = min(strengths, key=lambda strength: abs(level_of(strength) - sigma))
    return best, level_of(best)


def decided_between(rows: Sequence[LevelRow]) -> tuple[float, float] | None:
    """The neighbouring levels between which the origin begins to tell more than half of what it
    tells at the least noise: failure of failed ones less that of right ones."""
    gaps: dict[float, float] = {}
    for row in rows:
        gaps[row.sigma] = gaps.get(row.sigma, 0.0) + (
            row.failed if row.kind == "failed" else -row.failed
        )
    levels = sorted(gaps, reverse=True)
    half = gaps[levels[-1]] / 2
    for open_at, fallen_at in zip(levels, levels[1:], strict=False):
        if gaps[open_at] < half <= gaps[fallen_at]:
            return open_at, fallen_at
    return None


def table_lines(rows: Sequence[LevelRow]) -> list[str]:
    """The rows for people: a line per level."""
    lines = [f"{'sigma':>7}{'failed ones fail again':>32}{'right ones fail':>30}"]
    by_level: Mapping[float, dict[str, LevelRow]] = {row.sigma: {} for row in rows}
    for row in rows:
        by_level[row.sigma][row.kind] = row
    for sigma, kinds in by_level.items():
        cells = [f"{row.failed:.0%} [{row.low:.0%}, {row.high:.0%}]" for row in kinds.values()]
        lines.append(f"{sigma:>7.3f}{cells[0]:>32}{cells[1]:>30}")
    return lines
