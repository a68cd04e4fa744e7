"""Stage generate: scene -> N sampled candidates, painted with one reference per subject."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from focusdpo.data_schemas.candidates import Sampled
from focusdpo.data_schemas.scenes import Scene, candidate_seed, stable_id
from focusdpo.data_schemas.strict import Later, StrictModel
from focusdpo.data_schemas.subjects import Subject
from focusdpo.pipeline.parts import Generator, Image, ReferenceImage, guided
from focusdpo.pipeline.stage import (
    ImageReader,
    ReferenceChoice,
    StageOutput,
    chunks,
    image_key,
    member,
    read_references,
)
from focusdpo.store.addresses import at_home, refuse_secret

VERSION = 1

log = logging.getLogger(__name__)


def _plain(address: str | None) -> str | None:
    """An adapter's place as given. UserError for one with a secret: settings are shown."""
    if address is None:
        return None
    refuse_secret(address)
    return at_home(address)


class GenerateConfig(StrictModel):
    """How many candidates a scene gets, and what the generator is shown."""

    candidates: int = Field(default=4, ge=1, le=64, description="Sampled candidates per scene.")
    reference: ReferenceChoice = Field(
        default="by_scene",
        description="Which picture of a subject the generator sees: its first, or one chosen by "
        "the hash of scene and subject.",
    )
    guidance: Annotated[float | None, Later()] = Field(
        default=None,
        ge=1,
        le=30,
        description="Guidance that candidates and repaints are painted with; less than pictures are"
        " shown with helped with the pocket suite (docs/results.md). None: that of the backbone.",
    )
    batch: int = Field(default=64, ge=1, description="Most images in one call of the generator.")
    adapter: Annotated[str | None, Later(), AfterValidator(_plain)] = Field(
        default=None,
        description="Folder or address of an adapter that `train` wrote: candidates are painted "
        "with it, by the digest of its weights in content keys. Without: the base.",
    )


def generate(
    scenes: Sequence[Scene],
    subjects: Mapping[str, Subject],
    images: ImageReader,
    generator: Generator,
    config: GenerateConfig,
    prefix: str,
) -> StageOutput[Sampled]:
    """N candidates of each scene of one partition; the seed depends on (scene, index) alone.

    `subjects` maps ids to the scene's subjects. New pictures are named by candidate id.
    """
    wanted = [(scene, index) for scene in scenes for index in range(config.candidates)]
    references = {
        scene.id: read_references(images, scene, subjects, config.reference) for scene in scenes
    }
    seeds = [candidate_seed(scene.seed, index) for scene, index in wanted]
    painted = paint(
        [scene.prompt for scene, _ in wanted],
        [references[scene.id] for scene, _ in wanted],
        seeds,
        generator,
        batch=config.batch,
        guidance=config.guidance,
    )
    records = [
        _record(scene, index, seed, prefix)
        for (scene, index), seed in zip(wanted, seeds, strict=True)
    ]
    log.info("generate %s: %d scenes, %d candidates", prefix, len(scenes), len(records))
    return StageOutput(records, {member(r.id): p for r, p in zip(records, painted, strict=True)})


def paint(
    prompts: Sequence[str],
    references: Sequence[Sequence[ReferenceImage]],
    seeds: Sequence[int],
    generator: Generator,
    *,
    batch: int,
    guidance: float | None = None,
) -> list[Image]:
    """One image per prompt, in order, in calls of equally many references and at most `batch`."""
    painted: dict[int, Image] = {}
    for count in sorted({len(refs) for refs in references}):
        same = [at for at, refs in enumerate(references) if len(refs) == count]
        for part in chunks(same, batch):
            made = generator.generate(
                [prompts[at] for at in part],
                [references[at] for at in part],
                [seeds[at] for at in part],
                **guided(guidance),
            )
            painted.update(zip(part, made, strict=True))
    return [painted[at] for at in range(len(prompts))]


def _record(scene: Scene, index: int, seed: int, prefix: str) -> Sampled:
    name = stable_id("sampled", scene.id, index)
    return Sampled(
        id=name, scene_id=scene.id, index=index, seed=seed, image=image_key(prefix, name)
    )
