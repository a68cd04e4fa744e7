"""Images for a scene and what was found and measured in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from focusdpo.data_schemas.subjects import ImageKey

Kind = Literal["sampled", "disrupted"]
DisruptMode = Literal["all", "subset", "swap"]
Found = Literal["one", "missing", "duplicate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """An image generated with all references."""

    id: str
    scene_id: str
    index: int
    seed: int
    image: ImageKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Disrupted:
    """A sampled image in which some subjects were repainted without their own reference."""

    id: str
    scene_id: str
    parent_id: str
    """The sampled candidate it was made from."""
    mode: DisruptMode
    subject_ids: tuple[str, ...]
    """The repainted subjects, in scene order."""
    seed: int
    image: ImageKey
    prior: ImageKey
    """The mask really repainted (dilated, feather included): 0 or 255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One subject looked for in one sampled candidate."""

    candidate_id: str
    scene_id: str
    subject_id: str
    class_name: str
    found: Found
    box: tuple[int, int, int, int] | None
    """x0, y0, x1, y1 in pixels, end exclusive; None when missing."""
    mask: ImageKey | None
    confidence: float
    extra: int
    """How many further instances claim this subject (duplicates)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """An instance with the words that a text-only repaint may use: no words of appearance."""

    instance: Instance
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What the scorers measured on a candidate. R subjects in scene order."""

    candidate_id: str
    scene_id: str
    kind: Kind
    similarity: tuple[tuple[float, ...], ...]
    """S, R x R: cosine of reference i (mean over its pictures) and the instance at subject j's
    place; a missing instance gives a column of -1."""
    identity: tuple[float, ...]
    """The diagonal of S: matched identity, in [-1, 1]."""
    leakage_margin: tuple[float, ...]
    """S[i,i] - max over j != i of S[i,j]; equals S[i,i] - (-1) when R = 1."""
    clip_i: tuple[float, ...]
    """CLIP image similarity of instance crop and references, per subject."""
    clip_t: float
    """CLIP cosine of the whole image and the prompt."""
    background: float
    """Mean absolute difference to the parent outside the repainted mask, in [0, 1]; 0 for
    sampled candidates."""
    complete: bool
    """Every subject was found exactly once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """What the filter of unsafe pictures said of a candidate, where a run has one."""

    candidate_id: str
    scene_id: str
    unsafe: float
    """How sure it is that the picture is unsafe, in [0, 1]."""
    threshold: float
    refused: bool
    """Unsafe by the threshold or more: the candidate is in no pair."""
