"""Protocol `subjects`: a team's own subjects in scenes that no dataset was built from (pure).

Backgrounds are ones that build-dataset never names, and noise comes from seeds that it never draws,
so an adapter is not asked for what it was trained on. The subjects themselves may be those of the
training: that is the question, whether it now tells them apart.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.data_schemas.subjects import Subject
from focusdpo.pipeline.compose import ComposeConfig, compose
from focusdpo.pipeline.dreambench import BenchProtocol, BenchScenes

ID = "subjects"
BACKGROUNDS = (
    "a marble staircase",
    "a heap of autumn leaves",
    "a library floor",
    "a wooden pier",
    "a picnic blanket",
    "a gravel driveway",
    "a garden bench",
    "a concrete rooftop in the rain",
)


class OwnScenesConfig(BaseModel):
    """Which scenes of the team's subjects are painted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backgrounds: tuple[str, ...] = Field(
        BACKGROUNDS, min_length=1, description="places after 'on'; none that build-dataset names"
    )
    variants: int = Field(4, ge=1, le=1000, description="scenes per set of subjects")
    single_rate: float = Field(1.0, ge=0, le=1, description="share of subjects that stand alone")
    pair_rate: float = Field(1.0, ge=0, le=1, description="share of the sets of two subjects")
    triple_rate: float = Field(0.0, ge=0, le=1, description="share of the sets of three subjects")
    same_class: bool = Field(True, description="also sets with two subjects of one class")
    max_scenes: int = Field(2000, ge=1, description="more scenes than this is an error")
    images_per_prompt: int = Field(1, ge=1, le=64, description="pictures per scene and model")
    seed: int = Field(0, ge=0, lt=2**31, description="decides sets, backgrounds and noise")


def own_scenes(
    subjects: Sequence[Subject], taught: Collection[str], config: OwnScenesConfig
) -> BenchScenes:
    """The scenes of all chosen sets, stable as `compose` is. `taught` are the backgrounds of
    build-dataset. UserError when one of `config.backgrounds` is among them, and as `compose`."""
    known = sorted(set(config.backgrounds) & set(taught))
    if known:
        raise UserError(
            f"own_scenes.backgrounds: {', '.join(known)} is named by build-dataset too; choose "
            "places that the training did not see"
        )
    made = compose(
        subjects,
        config.backgrounds,
        ComposeConfig(**config.model_dump(include=set(_SHARED))),
    )
    scenes = tuple(
        replace(one, seed=stable_hash("evaluated", config.seed, one.id) % 2**31) for one in made
    )
    sets = tuple(dict.fromkeys(one.subject_ids for one in scenes))
    distinct = {frozenset(names) for names in sets}
    return BenchScenes(
        protocol=BenchProtocol(
            id=ID,
            sets=sets,
            what="sets of subjects",
            images_per_prompt=config.images_per_prompt,
            targets="all",
        ),
        shown_id=ID,
        scenes=scenes,
        sets=len(distinct),
        images_per_prompt=config.images_per_prompt,
        seed=config.seed,
        names=tuple(sorted({name for names in sets for name in names})),
    )


_SHARED = (
    "variants", "single_rate", "pair_rate", "triple_rate", "same_class", "max_scenes", "seed",
)  # fmt: skip
