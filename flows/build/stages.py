"""The per-partition stages as a table: what each reads, which models it uses, how it is called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from focusdpo.data_schemas.candidates import (
    Described,
    Disrupted,
    Instance,
    Sampled,
    Scored,
    Screened,
)
from focusdpo.data_schemas.pairs import Pair, Reject
from focusdpo.data_schemas.scenes import Scene
from focusdpo.data_schemas.strict import key_values
from focusdpo.data_schemas.subjects import Subject
from focusdpo.flows.config import BuildRun
from focusdpo.flows.wiring import Parts
from focusdpo.pipeline import compose, describe, disrupt, generate, pair, score, segment
from focusdpo.pipeline.parts import guided
from focusdpo.pipeline.stage import OPTIONAL, ROLES, StageOutput
from focusdpo.store.artefacts import Store


@dataclass(frozen=True)
class Work:
    """One stage of one partition, ready to run."""

    run: BuildRun
    store: Store
    parts: Parts
    scenes: tuple[Scene, ...]
    subjects: Mapping[str, Subject]
    """The partition's subjects by id."""
    keys: Mapping[str, str]
    """Stage -> artefact key of this partition."""
    prefix: str
    """"<stage>/<key>" of what is being made."""
    _read: dict[str, list[Any]] = field(default_factory=dict)

    def records(self, stage: str) -> list[Any]:
        """An earlier stage's records for this partition."""
        if stage not in self._read:
            record = STAGES[stage].record
            self._read[stage] = self.store.read(stage, self.keys[stage], record)
        return self._read[stage]

    def screened(self) -> list[Screened]:
        """What the filter of unsafe pictures said; nothing without one."""
        if self.parts.safety is None:
            return []
        return self.store.read("score", self.keys["score"], Screened, score.SCREENED)

    def rejects(self, stage: str) -> list[Reject]:
        """What an earlier stage rejected of this partition."""
        key = self.keys[stage]
        if "rejects.parquet" not in self.store.artefact(stage, key).files:
            return []
        return self.store.read(stage, key, Reject, table="rejects")

    @functools.cached_property
    def images(self) -> Callable[[str], Any]:
        """Pictures by key, each decoded once: scorers ask for a reference again and again."""
        return functools.lru_cache(maxsize=4096)(self.store.image)


@dataclass(frozen=True)
class Stage:
    """One row of the table."""

    name: str
    record: type
    module: ModuleType
    """Where the stage is written; its VERSION enters the content key."""
    needs: tuple[str, ...]
    """Earlier stages whose records it reads."""
    roles: tuple[str, ...]
    """Models it uses; their fingerprints enter the content key."""
    settings: Callable[[BuildRun], Mapping[str, Any]]
    """Everything of the configuration that its result depends on."""
    run: Callable[[Work], StageOutput[Any]]

    def used(self, parts: Parts) -> tuple[str, ...]:
        """The models that it uses of these parts, in the order of its fingerprint."""
        more = OPTIONAL.get(self.name, ())
        return (*self.roles, *(role for role in more if parts.has(role)))

    @property
    def version(self) -> int:
        """Of the stage's code."""
        return int(self.module.VERSION)


def _dump(**configs: BaseModel | str) -> dict[str, Any]:
    return {
        name: key_values(config) if isinstance(config, BaseModel) else config
        for name, config in configs.items()
    }


def _segment_settings(run: BuildRun) -> dict[str, Any]:
    """Failures are told by where the second of a duplicate stands."""
    extras = {"extras": True} if run.pair.keeps_failures else {}
    return {**_dump(segment=run.segment), **extras}


def _disrupt_settings(run: BuildRun) -> dict[str, Any]:
    """A repaint is guided as its candidate is."""
    own = _dump(disrupt=run.disrupt, reference=run.generate.reference)
    return {**own, **guided(run.generate.guidance)}


def _compose(work: Work) -> StageOutput[Scene]:
    return StageOutput(list(work.scenes))


def _generate(work: Work) -> StageOutput[Sampled]:
    return generate.generate(
        work.scenes,
        work.subjects,
        work.images,
        work.parts.generator,
        work.run.generate,
        work.prefix,
    )


def _segment(work: Work) -> StageOutput[Instance]:
    return segment.segment(
        work.scenes,
        work.subjects,
        work.records("generate"),
        work.images,
        work.parts.segmenter,
        work.parts.identity,
        work.run.segment,
        work.prefix,
        extras=work.run.pair.keeps_failures,
    )


def _describe(work: Work) -> StageOutput[Described]:
    return describe.describe(
        work.records("generate"),
        work.records("segment"),
        work.images,
        work.parts.captioner,
        work.run.describe,
    )


def _disrupt(work: Work) -> StageOutput[Disrupted]:
    return disrupt.disrupt(
        work.scenes,
        work.subjects,
        work.records("generate"),
        work.records("describe"),
        work.images,
        work.parts.inpainter,
        work.run.disrupt,
        work.prefix,
        reference=work.run.generate.reference,
        guidance=work.run.generate.guidance,
    )


def _score(work: Work) -> StageOutput[Scored]:
    made = score.score(
        work.scenes,
        work.subjects,
        work.records("generate"),
        work.records("disrupt"),
        work.records("segment"),
        work.images,
        work.parts.identity,
        work.parts.clip,
        work.run.score,
        work.parts.safety,
    )
    if work.run.score.find_repaints:  # segmenter and its settings are in the keys of its inputs
        made.rejects.extend(
            score.empty_repaints(
                work.scenes,
                work.records("disrupt"),
                work.records("segment"),
                work.images,
                work.parts.segmenter,
                work.run.segment,
            )
        )
    return made


def _pair(work: Work) -> StageOutput[Pair]:
    return pair.pair(
        work.scenes,
        work.subjects,
        work.records("generate"),
        work.records("disrupt"),
        work.records("segment"),
        work.records("describe"),
        work.records("score"),
        work.images,
        work.run.pair,
        work.prefix,
        reference=work.run.generate.reference,
        screened=work.screened(),
        rejected=work.rejects("score"),
    )


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("compose", Scene, compose, (), (), lambda run: {}, _compose),
        Stage(
            "generate",
            Sampled,
            generate,
            ("compose",),
            ROLES["generate"],
            # An adapter counts by its weights, as part of the generator.
            lambda run: _dump(generate=run.generate.model_copy(update={"adapter": None})),
            _generate,
        ),
        Stage(
            "segment",
            Instance,
            segment,
            ("compose", "generate"),
            ROLES["segment"],
            _segment_settings,
            _segment,
        ),
        Stage(
            "describe",
            Described,
            describe,
            ("generate", "segment"),
            ROLES["describe"],
            lambda run: _dump(describe=run.describe),
            _describe,
        ),
        Stage(
            "disrupt",
            Disrupted,
            disrupt,
            ("compose", "generate", "describe"),
            ROLES["disrupt"],
            _disrupt_settings,
            _disrupt,
        ),
        Stage(
            "score",
            Scored,
            score,
            ("compose", "generate", "segment", "disrupt"),
            ROLES["score"],
            lambda run: _dump(score=run.score),
            _score,
        ),
        Stage(
            "pair",
            Pair,
            pair,
            ("compose", "generate", "segment", "describe", "disrupt", "score"),
            (),
            lambda run: _dump(pair=run.pair, reference=run.generate.reference),
            _pair,
        ),
    )
}
"""In the order in which they run."""
