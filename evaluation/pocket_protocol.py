"""Protocol `pocket`: base against adapter on held-out identities, seen by an independent judge.

Both models paint the same scenes from the same seeds; a judge that the dataset never used finds
whatever instances there are, and each subject is matched to one of them. The tables give means
over scenes with bootstrap intervals, and the paired difference of the two models.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.data_schemas.evaluations import EvalScene, ScorerView
from focusdpo.data_schemas.runs import EvalRow, Watch
from focusdpo.data_schemas.scenes import Scene, candidate_seed
from focusdpo.evaluation.agreement import agreement, owners_of, scorer_values
from focusdpo.evaluation.comparison import rows
from focusdpo.evaluation.folder import read_pictures
from focusdpo.evaluation.held_out import HeldOutConfig, held_out_scenes
from focusdpo.evaluation.metrics import (
    METRICS,
    circular_mean,
    hue_difference,
    judged_scene,
    nan_mean,
    pattern_difference,
    thumb,
)
from focusdpo.evaluation.protocols import (
    ADAPTER,
    BASE,
    EvaluateConfig,
    Individual,
    Measured,
    Models,
    Panel,
    Plan,
    Request,
)
from focusdpo.pipeline.generate import paint
from focusdpo.pipeline.matching import NOBODY, Matrix, assign, similarity_matrix
from focusdpo.pipeline.parts import (
    Generator,
    Image,
    Judge,
    ReferenceImage,
    Seen,
    TextImageEncoder,
    Vectors,
)
from focusdpo.pipeline.stage import chunks
from focusdpo.store.keys import config_digest, digest
from focusdpo.store.outputs import local
from focusdpo.store.provenance import ADAPTER_FOLDER, require_kind

PROTOCOL = "pocket"
SCORERS = ("segmenter", "identity", "clip")
"""The parts that chose the training's pairs."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the judge knows of a subject."""

    vectors: Vectors
    hue: float
    patterns: Vectors
    """(pictures, 2, S, S)."""
    thumbs: tuple[ReferenceImage, ...]


def paint_scenes(
    scenes: Sequence[Scene],
    references: Mapping[str, Sequence[ReferenceImage]],
    generator: Generator,
    config: EvaluateConfig,
) -> list[Image]:
    """`images_per_scene` pictures of each scene, scene by scene, from the scenes' own seeds.

    The generator sees each subject's first reference; base and adapter get the same noise.
    """
    wanted = [(scene, index) for scene in scenes for index in range(config.images_per_scene)]
    return paint(
        [scene.prompt for scene, _ in wanted],
        [[references[name][0] for name in scene.subject_ids] for scene, _ in wanted],
        [candidate_seed(scene.seed, index) for scene, index in wanted],
        generator,
        batch=config.batch,
    )


def measure(
    model: str,
    scenes: Sequence[Scene],
    pictures: Sequence[Image],
    references: Mapping[str, Sequence[ReferenceImage]],
    judge: Judge,
    config: EvaluateConfig,
    *,
    held_out_classes: Collection[str] = (),
    clip: TextImageEncoder | None = None,
    names: Sequence[str] | None = None,
    protocol: str = PROTOCOL,
) -> list[EvalScene]:
    """One record per picture, in the order of `paint_scenes`.

    `references` holds all pictures of each subject: the judge compares with every one. `names`
    says where each picture lies. Without `clip` there is no prompt fit.
    """
    per_scene = config.images_per_scene
    owners = owners_of(pictures, scenes, per_scene)
    wanted = {name for scene in scenes for name in scene.subject_ids}
    known = _know({name: references[name] for name in sorted(wanted)}, judge)
    fits = _prompt_fits(owners, pictures, clip, config)
    looks = [seen for part in chunks(pictures, config.batch) for seen in judge.look(part)]
    records = []
    for at, (scene, picture, seen) in enumerate(zip(owners, pictures, looks, strict=True)):
        instances = [
            instance
            for instance in seen
            if instance.confidence >= config.min_confidence
            and instance.mask.mean() >= config.min_area
        ]
        similarity, given = _match(scene, instances, known, judge, config)
        hits = [instances[k] if k != NOBODY else None for k in given]
        subjects = [known[name] for name in scene.subject_ids]
        records.append(
            judged_scene(
                scene,
                picture,
                similarity,
                given,
                instances,
                [subject.thumbs for subject in subjects],
                claim=config.claim,
                least=config.least_identity,
                protocol=protocol,
                model=model,
                index=at % per_scene,
                image=names[at] if names else "",
                held_out=any(name in held_out_classes for name in scene.class_names),
                class_recognition=_recognised(scene, hits, judge.class_names),
                **_errors(picture, hits, subjects, judge),
                clip_t=fits[at],
            )
        )
    log.info("evaluate %s: %d pictures of %d scenes", model, len(records), len(scenes))
    return records


def protocol_of(held_out: HeldOutConfig) -> str:
    """The id that every table prints, so that validation is never taken for results."""
    return PROTOCOL if held_out.split == "held_out" else f"{PROTOCOL}/{held_out.split}"


class PocketPanel(Panel[ScorerView]):
    """The judge, and beside it the parts that chose the training's pairs."""

    table = ("scorer.parquet", ScorerView)

    def __init__(
        self, models: Models, held_out: HeldOutConfig, config: EvaluateConfig, adapter: str = ""
    ) -> None:
        self.config, self.id = config, protocol_of(held_out)
        self._models, self._adapter = models, adapter
        self.world = held_out_scenes(held_out, models.vocabulary()[0])
        self.scenes = self.world.scenes
        self._judge = models.build("judge")
        self._segmenter, self._identity, self._clip = (models.build(role) for role in SCORERS)
        new = self.world.held_out_classes
        self.individuals = {
            name: Individual(
                shown=subject.pictures[0],
                pictures=[picture.image for picture in subject.pictures],
                about={
                    "class_name": subject.identity.class_name,
                    "held_out_class": subject.identity.class_name in new,
                    "identity": asdict(subject.identity),
                },
            )
            for name, subject in self.world.subjects.items()
        }

    def measure(
        self, model: str, out: Path, names: Sequence[str], watch: Watch
    ) -> Measured[ScorerView]:
        world, pictures = self.world, read_pictures(out, names)
        judged = measure(
            model,
            world.scenes,
            pictures,
            world.references,
            self._judge,
            self.config,
            held_out_classes=world.held_out_classes,
            clip=self._clip,
            names=names,
            protocol=self.id,
        )
        views = scorer_values(
            world.scenes,
            pictures,
            world.references,
            self._segmenter,
            self._identity,
            model=model,
            per_scene=self.config.images_per_scene,
        )
        return Measured(judged=judged, beside=views)

    def rows(self, measured: Mapping[str, Measured[ScorerView]]) -> list[EvalRow]:
        return rows(measured[BASE].judged, measured[ADAPTER].judged, self.config)

    def about(self, measured: Mapping[str, Measured[ScorerView]]) -> dict[str, Any]:
        judged = {model: records.judged for model, records in measured.items()}
        scored = {model: records.beside for model, records in measured.items()}
        models = self._models
        parts = {part: models.fingerprint(part) for part in ("judge", *SCORERS)}
        painters = {BASE: None, ADAPTER: self._adapter}
        for model, adapter in painters.items():
            parts[model] = models.build("generator", adapter=adapter).fingerprint
        return {
            "fingerprints": parts,
            "agreement": [asdict(row) for row in agreement(judged, scored, self.config)],
        }


class PocketPlan(Plan):
    """Base against adapter on individuals of the embedded world."""

    def __init__(self, request: Request) -> None:
        held_out, self.request = request.held_out, request
        self.id, self.seed = protocol_of(held_out), held_out.seed
        self.per_scene = request.evaluate.images_per_scene
        self.num_scenes = sum(scenes for scenes, _, _ in held_out.kinds)
        self.cast = counted(sum(scenes * size for scenes, size, _ in held_out.kinds), "subject")
        adapter = local(request.adapter)
        require_kind(adapter, ADAPTER_FOLDER)
        card, weights = adapter / "adapter.json", adapter / "pytorch_lora_weights.safetensors"
        for file in (card, weights):
            if not file.is_file():
                raise UserError(f"{file}: absent; --adapter takes the folder that `train` wrote")
        self._adapter = digest(weights.read_bytes())

    @property
    def key(self) -> str:
        request = self.request
        settings = {
            "suite": request.suite,
            "held_out": request.held_out.model_dump(mode="json"),
            "evaluate": request.evaluate.model_dump(mode="json"),
        }
        roles = ("generator", "judge", *SCORERS)
        parts = {role: request.models.fingerprint(role) for role in roles}
        return config_digest(
            {"settings": settings, "parts": parts, "metrics": list(METRICS), "a": self._adapter}
        )

    def painting_key(self, model: str) -> str:
        return config_digest(
            {
                "held_out": self.request.held_out.model_dump(mode="json"),
                "images": self.per_scene,
                "batch": self.request.evaluate.batch,
                "generator": self.request.models.fingerprint("generator"),
                "adapter": self._adapter if model == ADAPTER else None,
            }
        )

    def load(self, watch: Watch) -> PocketPanel:
        request = self.request
        adapter = str(local(request.adapter))
        return PocketPanel(request.models, request.held_out, request.evaluate, adapter)


def plan(request: Request) -> PocketPlan:
    """The protocol's plan. UserError for checkpoints and an absent adapter."""
    if request.suite != "pocket":
        raise UserError(
            "protocol pocket paints the embedded world's individuals; for checkpoints give "
            "--protocol dreambench-single/kosmosg, dreambench-single/all-refs, dreambench-multi/uno"
            " or subjects, and --data (docs/dreambench.md)"
        )
    return PocketPlan(request)


def _prompt_fits(
    owners: Sequence[Scene],
    pictures: Sequence[Image],
    clip: TextImageEncoder | None,
    config: EvaluateConfig,
) -> list[float]:
    """CLIP-T of each picture; NaN without a CLIP."""
    if clip is None:
        return [np.nan] * len(pictures)
    prompts = sorted({scene.prompt for scene in owners})
    texts = np.asarray(clip.embed_texts(prompts), dtype=np.float64)
    shown = np.concatenate([clip.embed_images(part) for part in chunks(pictures, config.batch)])
    both = zip(shown.astype(np.float64), owners, strict=True)
    return [float(a @ texts[prompts.index(scene.prompt)]) for a, scene in both]


def _know(references: Mapping[str, Sequence[ReferenceImage]], judge: Judge) -> dict[str, _Known]:
    known = {}
    for name, pictures in references.items():
        images, masks = [p.image for p in pictures], [p.mask for p in pictures]
        known[name] = _Known(
            vectors=judge.embed_references(images, masks),
            hue=circular_mean(judge.hue(images, masks).astype(np.float64)),
            patterns=judge.pattern(images, masks),
            thumbs=tuple(thumb(p.image, p.mask) for p in pictures),
        )
    return known


def _match(
    scene: Scene,
    seen: Sequence[Seen],
    known: Mapping[str, _Known],
    judge: Judge,
    config: EvaluateConfig,
) -> tuple[Matrix, list[int]]:
    """S (R, n) of identity, and the instance of each subject by identity and class together."""
    vectors = np.stack([s.embedding for s in seen]) if seen else np.zeros((0, 1), np.float32)
    similarity = similarity_matrix([known[name].vectors for name in scene.subject_ids], vectors)
    evidence = similarity.copy()
    for row, word in enumerate(scene.class_names):
        if word in judge.class_names:
            column = judge.class_names.index(word)
            evidence[row] += [config.class_weight * float(s.class_scores[column]) for s in seen]
    return similarity, assign(evidence)


def _recognised(scene: Scene, hits: Sequence[Seen | None], words: tuple[str, ...]) -> float:
    """Share of found subjects whose likeliest class is right; classes unknown to the judge are
    left out."""
    right = [
        float(words[int(hit.class_scores.argmax())] == word)
        for word, hit in zip(scene.class_names, hits, strict=True)
        if hit is not None and word in words
    ]
    return nan_mean(np.array(right))


def _errors(
    picture: Image, hits: Sequence[Seen | None], subjects: Sequence[_Known], judge: Judge
) -> dict[str, float]:
    """Of hue and pattern, means over the found subjects."""
    pairs = [(hit, known) for hit, known in zip(hits, subjects, strict=True) if hit is not None]
    seen = judge.pattern([picture] * len(pairs), [hit.mask for hit, _ in pairs])
    hues = [hue_difference(hit.hue, known.hue) for hit, known in pairs]
    patterns = [
        pattern_difference(pattern, list(known.patterns))
        for pattern, (_, known) in zip(seen, pairs, strict=True)
    ]
    return {"hue_error": nan_mean(np.array(hues)), "pattern_error": nan_mean(np.array(patterns))}
