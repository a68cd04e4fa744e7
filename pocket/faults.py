"""Planted faults: what a judge must find before it may judge, and true renders that it must pass.

A scene asks for subjects by their references; its picture shows them as asked, or with one fault
planted: a subject twice, one missing, looks swapped, a stranger added. The kit needs no painter,
and any judge behind `pipeline.judge.Judge` can be put to it: a `Reader` says how the project reads
its looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import numpy as np
from PIL import Image as PillowImage

from focusdpo.pipeline.parts import Image, Judge, Mask, ReferenceImage
from focusdpo.pocket.classes import Split, class_names
from focusdpo.pocket.figures import to_images, to_masks
from focusdpo.pocket.world.casting import draw_like, told_apart
from focusdpo.pocket.world.grammar import prompt_for
from focusdpo.pocket.world.identities import Identity, draw_of_split
from focusdpo.pocket.world.world import render_references, render_scenes

Fault = Literal["none", "replaced", "twice", "swapped", "missing", "stranger", "painted"]
"""none: as asked. replaced: one subject in the place of another. twice: one subject once more
beside the others. swapped: two subjects in each other's looks. missing: one is left out. stranger:
somebody whom nobody asked for. painted: whatever a generator made of it."""
Kind = Literal["one", "two classes", "one class", "three", "four"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
KINDS: tuple[Kind, ...] = get_args(Kind)
_COUNTS: dict[Kind, int] = {"one": 1, "two classes": 2, "one class": 2, "three": 3, "four": 4}
_FAULTS_OF: dict[Kind, tuple[Fault, ...]] = {
    "one": ("none", "twice", "missing", "stranger"),
    "two classes": ("none", "replaced", "twice", "swapped", "missing", "stranger"),
    # Looks swapped within a class are the same scene.
    "one class": ("none", "replaced", "twice", "missing", "stranger"),
    "three": ("none", "replaced", "missing", "stranger"),
    "four": ("none", "replaced", "missing"),
}


@dataclass(frozen=True)
class PlantedScene:
    """A picture with what was asked and what is wrong with it."""

    kind: Kind
    fault: Fault
    image: Image
    """(H, W, 3)."""
    prompt: str
    class_names: tuple[str, ...]
    """Of the asked subjects."""
    references: tuple[tuple[ReferenceImage, ...], ...]
    """Pictures of each asked subject."""
    asked: tuple[Identity, ...]
    shown: tuple[Identity, ...]
    """Who stands in the picture in truth."""
    masks: tuple[Mask, ...]
    """(H, W) of each of `shown`."""


@dataclass(frozen=True)
class Verdict:
    """What is read out of a judge's looks at one picture."""

    missing: bool
    """Some asked subject has no instance."""
    doubled: bool
    """More than one instance looks most like one subject."""
    confused: bool
    """Some subject's instance looks more like another one."""
    unlike: bool
    """Some subject's instance is not like it."""
    extra: bool
    """There are more instances than subjects."""
    recognised: float
    """Share of the asked subjects that have an instance of their class."""

    @property
    def failed(self) -> bool:
        """Whether the picture fails for any reason."""
        return self.missing or self.doubled or self.confused or self.unlike or self.extra


Reader = Callable[[Judge, Sequence[PlantedScene]], list[Verdict]]


@dataclass(frozen=True)
class FaultRow:
    """Scenes of one kind and fault, and the share of them of which the judge says so."""

    kind: Kind
    fault: Fault
    scenes: int
    failed: float
    missing: float
    doubled: float
    confused: float
    unlike: float
    extra: float
    recognised: float

    @property
    def ok(self) -> bool:
        """True renders: under 3 % of each reason. Planted faults: at least 95 % found. Of a
        painter nothing is asked here."""
        if self.fault == "painted":
            return True
        if self.fault != "none":
            return self.failed >= 0.95
        reasons = (self.missing, self.doubled, self.confused, self.unlike, self.extra)
        return max(reasons) < 0.03


def plant_scenes(
    count: int,
    seed: int = 1,
    *,
    split: Split = "held_out",
    references: int = 2,
    scale: int = 1,
) -> list[PlantedScene]:
    """`count` scenes of each kind and fault, of a split's individuals of the training classes.

    `scale` magnifies all pictures by a whole factor, for judges that were made for larger ones.
    """
    planted = []
    for kind in KINDS:
        for number in range(count):
            rng = np.random.default_rng([seed, KINDS.index(kind), number])
            asked = draw_asked(kind, split, rng)
            pictures = draw_references(asked, references, rng, scale)
            for fault in _FAULTS_OF[kind]:
                shown = _with_fault(asked, fault, split, rng)
                scene = render_scenes([shown], [int(rng.integers(2**31))])
                words = tuple(subject.class_name for subject in asked)
                planted.append(
                    PlantedScene(
                        kind=kind,
                        fault=fault,
                        image=_magnified(to_images(scene.images)[0], scale),
                        prompt=prompt_for(words, scene.backgrounds[0]),
                        class_names=words,
                        references=pictures,
                        asked=tuple(asked),
                        shown=tuple(shown),
                        masks=tuple(
                            _magnified_mask(mask, scale) for mask in to_masks(scene.masks[0])
                        ),
                    )
                )
    return planted


def check_judge(
    judge: Judge,
    reader: Reader,
    count: int,
    *,
    split: Split = "held_out",
    seed: int = 1,
    scale: int = 1,
) -> list[FaultRow]:
    """The judge's table: a row for each kind of scene and fault."""
    planted = plant_scenes(count, seed, split=split, scale=scale)
    return tabulate(planted, reader(judge, planted))


def tabulate(planted: Sequence[PlantedScene], verdicts: Sequence[Verdict]) -> list[FaultRow]:
    """Shares of verdicts by kind of scene and fault."""
    rows = []
    for kind, fault in _cells():
        group = [
            verdict
            for scene, verdict in zip(planted, verdicts, strict=True)
            if scene.kind == kind and scene.fault == fault
        ]
        if group:
            shares = {
                field.name: float(np.mean([getattr(v, field.name) for v in group]))
                for field in fields(Verdict)
            }
            failed = float(np.mean([v.failed for v in group]))
            rows.append(FaultRow(kind, fault, len(group), failed, **shares))
    return rows


def table_lines(rows: Sequence[FaultRow]) -> list[str]:
    """The table as Markdown."""
    names = ("failed", "missing", "doubled", "confused", "unlike", "extra", "recognised")
    lines = [
        "| scene | planted | scenes | " + " | ".join(names) + " | |",
        "| --- | --- | ---: |" + " ---: |" * len(names) + " --- |",
    ]
    for row in rows:
        shares = " | ".join(f"{100 * getattr(row, name):.1f}" for name in names)
        mark = "ok" if row.ok else "LOW"
        lines.append(f"| {row.kind} | {row.fault} | {row.scenes} | {shares} | {mark} |")
    return lines


def _cells() -> Iterator[tuple[Kind, Fault]]:
    return ((kind, fault) for kind in KINDS for fault in (*_FAULTS_OF[kind], "painted"))


def draw_asked(kind: Kind, split: Split, rng: np.random.Generator) -> list[Identity]:
    """Individuals of a split and of training classes; of one class, or all of different ones."""
    classes = class_names("train")
    if kind == "one class":
        first = draw_of_split(split, classes, rng)
        return [first, draw_like(first, "class", split, classes, rng)]
    words = rng.choice(classes, _COUNTS[kind], replace=False)
    return [draw_of_split(split, [str(word)], rng) for word in words]


def _with_fault(
    asked: Sequence[Identity], fault: Fault, split: Split, rng: np.random.Generator
) -> list[Identity]:
    """Who stands in the picture."""
    shown = list(asked)
    first, second = (int(i) for i in rng.permutation(len(shown))[:2]) if len(shown) > 1 else (0, 0)
    if fault == "replaced":
        shown[first] = shown[second]
    elif fault == "twice":
        shown.append(shown[first])
    elif fault == "swapped":
        shown[first], shown[second] = (
            replace(asked[second], class_name=asked[first].class_name),
            replace(asked[first], class_name=asked[second].class_name),
        )
    elif fault == "missing":
        del shown[first]
    elif fault == "stranger":
        shown.append(_stranger(asked, split, rng))
    return shown or [_stranger(asked, split, rng)]


def _stranger(asked: Sequence[Identity], split: Split, rng: np.random.Generator) -> Identity:
    """Somebody else; where all are of one class, of that class."""
    words = {subject.class_name for subject in asked}
    classes = (
        sorted(words)
        if len(words) == 1 and len(asked) > 1
        else [word for word in class_names("train") if word not in words]
    )
    while True:
        stranger = draw_of_split(split, classes, rng)
        if all(told_apart(subject, stranger) for subject in asked):
            return stranger


def draw_references(
    asked: Sequence[Identity], count: int, rng: np.random.Generator, scale: int = 1
) -> tuple[tuple[ReferenceImage, ...], ...]:
    """`count` pictures of each."""
    pictures = []
    for subject in asked:
        images, masks = render_references(
            [subject] * count, rng.integers(2**31, size=count).tolist()
        )
        pictures.append(
            tuple(
                ReferenceImage(_magnified(image, scale), _magnified_mask(mask, scale))
                for image, mask in zip(to_images(images), to_masks(masks), strict=True)
            )
        )
    return tuple(pictures)


def _magnified(image: Image, scale: int) -> Image:
    if scale == 1:
        return image
    size = (image.shape[1] * scale, image.shape[0] * scale)
    large = PillowImage.fromarray(image).resize(size, PillowImage.Resampling.BICUBIC)
    return np.asarray(large)


def _magnified_mask(mask: Mask, scale: int) -> Mask:
    large: Mask = np.kron(mask, np.ones((scale, scale), bool))
    return large
