"""What all stages share: the hand-off of records and pixels, and how a reference is chosen.

A stage is a pure function of one partition: every scene of one subject set, so that it is one
model batch and its bytes depend on nothing else. It knows no store: pictures are read through an
`ImageReader` and handed back by member name. Each stage's module has `VERSION`, which enters the
content key and is raised whenever the same input would give other bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.pairs import Reject
from focusdpo.data_schemas.scenes import Scene, stable_hash
from focusdpo.data_schemas.subjects import ImageKey, Reference, Subject
from focusdpo.pipeline.parts import Mask, ReferenceImage

ImageReader = Callable[[ImageKey], NDArray[np.uint8]]
"""Key -> pixels: (H, W, 3) for a picture, (H, W) with 0 and 255 for a mask."""

ReferenceChoice = Literal["first", "by_scene"]
ROLES: dict[str, tuple[str, ...]] = {
    "compose": (),
    "generate": ("generator",),
    "segment": ("segmenter", "identity"),
    "describe": ("captioner",),
    "disrupt": ("inpainter",),
    "score": ("identity", "clip"),
    "pair": (),
}
"""Stage, in the order in which they run -> the models it uses, in the order of its fingerprint."""
OPTIONAL: dict[str, tuple[str, ...]] = {"score": ("safety",)}
"""Models that a run may be without; behind the others in the fingerprint of a stage."""
Record = TypeVar("Record")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class StageOutput(Generic[Record]):
    """What a stage hands back for one partition."""

    records: list[Record]
    images: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    """`member(name)` -> new picture, uint8; its key in records is `image_key(prefix, name)`."""
    rejects: list[Reject] = field(default_factory=list)
    more: dict[str, tuple[type, list[Any]]] = field(default_factory=dict)
    """Further tables by name: the class of their records, and these."""


def roles_in(stage: str, fingerprint: str) -> tuple[str, ...]:
    """The models behind a stage's recorded fingerprint."""
    roles = ROLES.get(stage, ())
    return roles + OPTIONAL.get(stage, ()) if fingerprint.count("+") >= len(roles) > 0 else roles


def member(name: str) -> str:
    """The file name of a new picture in its artefact."""
    return f"{name}.png"


def image_key(prefix: str, name: str) -> ImageKey:
    """The key of a new picture; `prefix` is "<stage>/<artefact key>"."""
    return f"{prefix}/{member(name)}"


def reference_of(scene: Scene, subject: Subject, choice: ReferenceChoice) -> Reference:
    """The one reference of `subject` that the generator sees in `scene`.

    All candidates of a scene share it, so that winner and loser answer the same request.
    """
    if choice == "first":
        return subject.references[0]
    at = stable_hash("reference", scene.id, subject.id) % len(subject.references)
    return subject.references[at]


def scene_references(
    scene: Scene, subjects: Mapping[str, Subject], choice: ReferenceChoice
) -> tuple[Reference, ...]:
    """`reference_of` for each subject, in scene order."""
    return tuple(reference_of(scene, subjects[name], choice) for name in scene.subject_ids)


def read_mask(images: ImageReader, key: ImageKey) -> Mask:
    """A stored mask as bool (H, W)."""
    return np.asarray(images(key)) >= 128


def read_reference(images: ImageReader, reference: Reference) -> ReferenceImage:
    """A stored reference with its mask."""
    return ReferenceImage(image=images(reference.image), mask=read_mask(images, reference.mask))


def read_references(
    images: ImageReader, scene: Scene, subjects: Mapping[str, Subject], choice: ReferenceChoice
) -> list[ReferenceImage]:
    """What the generator sees of each subject, in scene order."""
    return [read_reference(images, r) for r in scene_references(scene, subjects, choice)]


def mask_image(mask: Mask) -> NDArray[np.uint8]:
    """A mask as it is stored: uint8, 0 or 255."""
    return mask.astype(np.uint8) * np.uint8(255)


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Runs of at most `size` items, in order."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
