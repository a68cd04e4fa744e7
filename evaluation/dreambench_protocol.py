"""DreamBench: which subjects, photographs and prompts each protocol takes (pure).

Sources: 30 subjects, classes and 2 x 25 prompts from the public dataset itself (DreamBooth,
arXiv 2208.12242, github.com/google/dreambooth), read from its folder; the one photograph per
subject from Kosmos-G (arXiv 2310.02992), also UNO's single-subject list; the 30 pairs and the way
their prompts are joined from UNO (arXiv 2504.02160, datasets/dreambench_multiip.json). What is
written down here are those lists' facts; a test holds a digest of the 750 public rows of each.

Backgrounds are ones that build-dataset never names, and noise comes from seeds that it never draws,
so an adapter is not asked for what it was trained on. The subjects themselves may be those of the
training: that is the question, whether it now tells them apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.scenes import Scene, stable_hash, stable_id
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.data_schemas.subjects import Subject
from focusdpo.evaluation.photographs import GET, SLOT, PhotoFolder
from focusdpo.pipeline.compose import ComposeConfig, compose

PHOTOGRAPH = {
    "backpack": "02", "backpack_dog": "02", "bear_plushie": "03", "berry_bowl": "02",
    "can": "01", "candle": "02", "cat": "04", "cat2": "02", "clock": "03",
    "colorful_sneaker": "01", "dog": "02", "dog2": "02", "dog3": "05", "dog5": "00",
    "dog6": "02", "dog7": "01", "dog8": "04", "duck_toy": "01", "fancy_boot": "02",
    "grey_sloth_plushie": "04", "monster_toy": "04", "pink_sunglasses": "04",
    "poop_emoji": "00", "rc_car": "03", "red_cartoon": "00", "robot_toy": "00",
    "shiny_sneaker": "01", "teapot": "04", "vase": "02", "wolf_plushie": "04",
}  # fmt: skip
"""Subject -> the stem of the photograph that the generator is shown."""
LIVE = frozenset({"cat", "cat2", "dog", "dog2", "dog3", "dog5", "dog6", "dog7", "dog8"})
"""Subjects with the live subjects' prompts; the others have the objects'."""
PAIRS = (
    ("backpack_dog", "bear_plushie"), ("berry_bowl", "can"), ("candle", "clock"),
    ("colorful_sneaker", "duck_toy"), ("fancy_boot", "grey_sloth_plushie"),
    ("monster_toy", "pink_sunglasses"), ("poop_emoji", "rc_car"), ("red_cartoon", "robot_toy"),
    ("shiny_sneaker", "teapot"), ("vase", "wolf_plushie"),
    ("cat", "dog"), ("cat", "dog6"), ("cat", "dog8"), ("cat2", "cat"), ("cat2", "dog3"),
    ("cat2", "dog7"), ("dog", "dog2"), ("dog3", "dog5"), ("dog6", "dog7"), ("dog7", "dog8"),
    ("cat", "backpack"), ("cat2", "bear_plushie"), ("dog", "can"), ("dog2", "clock"),
    ("dog3", "duck_toy"), ("dog5", "grey_sloth_plushie"), ("dog6", "pink_sunglasses"),
    ("dog7", "rc_car"), ("dog8", "robot_toy"), ("dog6", "teapot"),
)  # fmt: skip
"""Ten pairs of objects, ten of animals, ten of an animal and an object."""
PROMPTS_PER_SET = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchProtocol:
    """How a protocol is run."""

    id: str
    sets: tuple[tuple[str, ...], ...]
    """The subjects of each scene; every set gets its 25 prompts."""
    what: str
    """subjects or pairs: what `sets` are called in a table."""
    images_per_prompt: int
    targets: Literal["shown", "all"]
    """DINO and CLIP-I compare with the shown photograph, or are the mean over all of the
    subject's photographs."""


def _single(id: str, targets: Literal["shown", "all"]) -> BenchProtocol:
    sets = tuple((name,) for name in PHOTOGRAPH)
    return BenchProtocol(id=id, sets=sets, what="subjects", images_per_prompt=4, targets=targets)


BENCHES = {
    bench.id: bench
    for bench in (
        _single("dreambench-single/kosmosg", "shown"),
        _single("dreambench-single/all-refs", "all"),
        BenchProtocol(
            id="dreambench-multi/uno",
            sets=PAIRS,
            what="pairs",
            images_per_prompt=1,
            targets="all",
        ),
    )
}


class DreamBenchConfig(StrictModel):
    """What of a DreamBench protocol is painted, and what the generator is shown."""

    allow_partial: bool = Field(
        False,
        description="run on the subjects that are there; the table then says how many of how many",
    )
    subjects: tuple[str, ...] = Field(
        (), description="only scenes of these subjects, for a quick look; none: all there are"
    )
    prompts: int = Field(
        PROMPTS_PER_SET, ge=1, le=PROMPTS_PER_SET, description="so many prompts of each set, the "
        "first of the list; fewer than 25 is said in the table",
    )  # fmt: skip
    images_per_prompt: int | None = Field(
        None, ge=1, le=64, description="pictures per prompt and model; none: the protocol's number"
    )
    shown: Literal["photograph", "cut_out"] = Field(
        "photograph",
        description="what the generator sees of a subject: the photograph as it is, or the subject "
        "on white as the segmenter finds it; the public protocols show photographs",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="decides the noise of every picture")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchScenes:
    """What a run of a protocol paints."""

    protocol: BenchProtocol
    shown_id: str
    """The protocol's id with what differs from it in brackets."""
    scenes: tuple[Scene, ...]
    sets: int
    """How many sets of subjects the scenes are of."""
    images_per_prompt: int
    seed: int
    names: tuple[str, ...]
    """The subjects that stand in some scene."""


def public_rows(folder: PhotoFolder, protocol: BenchProtocol) -> list[tuple[tuple[str, ...], str]]:
    """(subjects, prompt) of every row of the protocol, photographed or not, set by set.

    UserError when the folder's file does not list a subject.
    """
    unlisted = [name for name in PHOTOGRAPH if name not in folder.classes]
    if unlisted:
        raise UserError(
            f"{folder.root}: its prompts file lists no class of {', '.join(unlisted)}; {GET}"
        )
    return [(names, prompt) for names in protocol.sets for prompt in _prompts(folder, names)]


def bench_scenes(
    folder: PhotoFolder, protocol: BenchProtocol, config: DreamBenchConfig
) -> BenchScenes:
    """The scenes that can be painted from the folder.

    A picture's noise depends on seed, subjects, prompt and number alone: the single-subject
    protocols paint the same pictures, and a part of a protocol the same as the whole. UserError
    for missing subjects without `allow_partial`, for unknown `subjects`, for no scene.
    """
    rows = public_rows(folder, protocol)
    _check_subjects(folder, protocol, config)
    usable = frozenset(config.subjects or folder.subjects)
    sets = [names for names in protocol.sets if usable.issuperset(names)]
    if not sets:
        raise UserError(
            f"{protocol.id}: no scene has all its subjects in {folder.root}; there are "
            f"{', '.join(sorted(usable))}"
        )
    scenes = [
        _scene(names, folder, prompt, at % PROMPTS_PER_SET, config.seed)
        for at, (names, prompt) in enumerate(rows)
        if names in sets and at % PROMPTS_PER_SET < config.prompts
    ]
    marks = []
    if len(sets) < len(protocol.sets):
        marks.append(f"{len(sets)} of {len(protocol.sets)} {protocol.what}")
    if config.prompts < PROMPTS_PER_SET:
        marks.append(f"{config.prompts} of {PROMPTS_PER_SET} prompts")
    if config.shown != "photograph":
        marks.append("cut-outs shown")
    if rows_digest(rows) != PUBLIC_ROWS[protocol.id]:
        marks.append("changed prompts file")
    return BenchScenes(
        protocol=protocol,
        shown_id=" ".join([protocol.id, *(f"[{mark}]" for mark in marks)]),
        scenes=tuple(scenes),
        sets=len(sets),
        images_per_prompt=config.images_per_prompt or protocol.images_per_prompt,
        seed=config.seed,
        names=tuple(name for name in PHOTOGRAPH if any(name in names for names in sets)),
    )


def shown_photograph(folder: PhotoFolder, name: str) -> Path:
    """The one photograph of a subject that the generator sees. UserError when it is absent."""
    wanted = PHOTOGRAPH[name]
    for file in folder.subjects[name].files:
        if file.stem == wanted:
            return file
    raise UserError(
        f"{folder.root / name}: the photograph {wanted} is absent, which the protocols show; {GET}"
    )


def target_photographs(folder: PhotoFolder, name: str, protocol: BenchProtocol) -> tuple[Path, ...]:
    """The photographs that pictures of a subject are compared with, the shown one first."""
    shown = shown_photograph(folder, name)
    if protocol.targets == "shown":
        return (shown,)
    return (shown, *(file for file in folder.subjects[name].files if file != shown))


def rows_digest(rows: Iterable[tuple[Sequence[str], str]]) -> str:
    """A hash of rows, to know the public list by."""
    return stable_id(*(f"{'+'.join(names)}\t{prompt}" for names, prompt in rows))


def pair_prompt(template: str, first: str, second: str, *, live: bool, setting: bool) -> str:
    """A prompt of two class words from one of one, as UNO's list joins them.

    Both words share a setting ("a cat and a dog in the snow") and an object's adjective ("a red
    can and a red bowl"); what is said of a live first subject is said of it alone ("a cat wearing
    a red hat, next to it is a dog").
    """
    head, tail = template.split(SLOT)
    if setting or not live:
        return f"{head}{first} and {head}{second}{tail}"
    return f"{head}{first}{tail}, next to it is a {second}"


def _prompts(folder: PhotoFolder, names: tuple[str, ...]) -> list[str]:
    live = names[0] in LIVE
    templates = folder.live_prompts if live else folder.object_prompts
    if len(templates) != PROMPTS_PER_SET:
        raise UserError(
            f"{folder.root}: {len(templates)} {'live subject' if live else 'object'} prompts, "
            f"expected {PROMPTS_PER_SET}; {GET}"
        )
    words = [folder.classes[name] for name in names]
    if len(words) == 1:
        return [template.replace(SLOT, words[0]) for template in templates]
    # What objects and live subjects share, but for adjectives, says where things are.
    shared = frozenset(folder.object_prompts) & frozenset(folder.live_prompts)
    return [
        pair_prompt(
            template,
            words[0],
            words[1],
            live=live,
            setting=template in shared and not template.endswith(SLOT),
        )
        for template in templates
    ]


def _check_subjects(folder: PhotoFolder, protocol: BenchProtocol, config: DreamBenchConfig) -> None:
    if config.subjects:
        absent = [name for name in config.subjects if name not in folder.subjects]
        if absent:
            raise UserError(
                f"dreambench.subjects: {', '.join(absent)} not in {folder.root}; there are "
                f"{', '.join(folder.subjects)}"
            )
        return
    missing = [name for name in PHOTOGRAPH if name not in folder.subjects]
    if missing and not config.allow_partial:
        raise UserError(
            f"{folder.root}: {len(missing)} of {len(PHOTOGRAPH)} subjects are missing: "
            f"{', '.join(missing)}. For {protocol.id} {GET}; or run on the others with "
            "--set dreambench.allow_partial=true, which every table then says"
        )


def _scene(
    names: tuple[str, ...], folder: PhotoFolder, prompt: str, number: int, seed: int
) -> Scene:
    return Scene(
        id=stable_id("dreambench", *names, prompt),
        partition=stable_id("dreambench", *names),
        subject_ids=names,
        class_names=tuple(folder.classes[name] for name in names),
        prompt=prompt,
        variant=number,
        seed=stable_hash("dreambench", seed, *names, prompt) % 2**31,
    )


PUBLIC_ROWS = {
    "dreambench-single/kosmosg": "9fa39810d91e0b34",
    "dreambench-single/all-refs": "9fa39810d91e0b34",
    "dreambench-multi/uno": "89010f5e39228de2",
}
"""`rows_digest` of each protocol's rows with the public file."""


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


class OwnScenesConfig(StrictModel):
    """Which scenes of the team's subjects are painted."""

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
        replace(scene, seed=stable_hash("evaluated", config.seed, scene.id) % 2**31)
        for scene in made
    )
    sets = tuple(dict.fromkeys(scene.subject_ids for scene in scenes))
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
