"""Pictures that are nearly one, by a perceptual hash (imagehash's pHash, 64 bits), and subjects
that are one, by the identity encoder.

A winner of validation that training shows as well would measure memory; it is kept out by default.
Hashes of winners are remembered in the root, because a build looks at new pairs alone.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.data_schemas.subjects import Subject
from focusdpo.data_schemas.tables import from_parquet, to_parquet
from focusdpo.pipeline.parts import Vectors
from focusdpo.pipeline.subjects.folders import listed
from focusdpo.store.artefacts import Store
from focusdpo.store.local import Files

HASHES = "hashes.parquet"
"""Of winners, in the root. It may be lost: it is made anew."""
BITS = 64
SLACK = 0.02
"""Cosine: by so much the pictures of one subject in two folders may be less alike than in one."""

log = logging.getLogger(__name__)


class DuplicateConfig(StrictModel):
    """When two pictures count as one."""

    bits: int = Field(
        4, ge=0, le=16, description="so many of the 64 bits of a perceptual hash may differ"
    )
    identity: float = Field(
        0.97,
        ge=0,
        le=1,
        description="how alike two subjects' references are, to the identity encoder, when they "
        "may be one, if they have one picture each; others are measured by their own. 1: never",
    )
    keep_in_validation: bool = Field(
        False, description="keep validation pairs whose winner training shows as well"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WinnerHash:
    """A pair and the perceptual hash of its winner."""

    digest: str
    """Of the pair's sample: its record and settings."""
    hash: str
    """16 hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Winner:
    """A pair's winner, for comparison with others."""

    pair_id: str
    scene_id: str
    digest: str
    """Of the pair's sample."""
    validation: bool
    read: Callable[[], NDArray[np.uint8]]
    """Its picture (H, W, 3)."""


def picture_hash(image: NDArray[np.uint8]) -> int:
    """64 bits of a picture (H, W, 3)."""
    import imagehash

    bits = imagehash.phash(Image.fromarray(image), hash_size=8).hash.ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def near(hashes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Places (i < j) of hashes that differ in at most `most` bits. Of `most` + 1 bands of bits at
    least one is equal then, so that few are compared."""
    bands = np.array_split(np.arange(BITS), most + 1)
    masks = [sum(1 << int(bit) for bit in band) for band in bands]
    pairs = set()
    for mask in masks:
        alike: dict[int, list[int]] = defaultdict(list)
        for place, value in enumerate(hashes):
            alike[value & mask].append(place)
        for places in alike.values():
            pairs |= {
                pair
                for pair in itertools.combinations(places, 2)
                if (hashes[pair[0]] ^ hashes[pair[1]]).bit_count() <= most
            }
    return sorted(pairs)


def near_apart(hashes: Sequence[int], scenes: Sequence[str], most: int) -> list[tuple[int, int]]:
    """`near` without those of one scene, which are meant to be alike."""
    return [(i, j) for i, j in near(hashes, most) if scenes[i] != scenes[j]]


def reference_notes(
    store: Store, subjects: Sequence[Subject], config: DuplicateConfig
) -> list[str]:
    """Subjects with nearly equal references, and subjects that share one."""
    owners = [(subject.id, at) for subject in subjects for at in range(len(subject.references))]
    hashes = [
        picture_hash(store.image(reference.image))
        for subject in subjects
        for reference in subject.references
    ]
    within: dict[str, int] = defaultdict(int)
    across: dict[tuple[str, str], int] = defaultdict(int)
    for i, j in near(hashes, config.bits):
        a, b = owners[i][0], owners[j][0]
        if a == b:
            within[a] += 1
        else:
            across[min(a, b), max(a, b)] += 1
    notes = [
        f"subject '{name}': {counted(count, 'pair')} of nearly equal pictures; views from other "
        "sides teach more"
        for name, count in within.items()
    ]
    return notes + [
        f"subjects '{a}' and '{b}' share a nearly equal picture; if they are one, merge them"
        for a, b in across
    ]


def identity_notes(
    vectors: Mapping[str, Vectors], class_names: Mapping[str, str], config: DuplicateConfig
) -> list[str]:
    """Subjects of one class that may be one: their references (pictures, D), of unit length, are as
    alike as each subject's are among themselves."""

    def own(vectors_ND: Vectors) -> float:
        num = len(vectors_ND)
        if num == 1:
            return config.identity
        return float((vectors_ND @ vectors_ND.T).sum() - num) / (num * (num - 1))

    notes = []
    for a, b in itertools.combinations(sorted(vectors), 2):
        if class_names[a] != class_names[b]:
            continue
        across = float(np.mean(vectors[a] @ vectors[b].T))
        if across >= (own(vectors[a]) + own(vectors[b])) / 2 - SLACK:
            notes.append(
                f"subjects '{a}' and '{b}' may be one: their pictures are alike by {across:.3f}; "
                "pairs that show both teach confusion"
            )
    return notes


@dataclass(frozen=True)
class WinnersAlike:
    """Near-duplicates among winners."""

    leaking: frozenset[str]
    """Validation pairs whose winner training shows as well."""
    notes: list[str]


def compare_winners(
    files: Files, winners: Sequence[Winner], config: DuplicateConfig
) -> WinnersAlike:
    """Winners of different scenes that are nearly one. A hash is computed once for each picture."""
    hashes = _hashes(files, winners)
    leaking: set[str] = set()
    alike: set[str] = set()
    scenes = [winner.scene_id for winner in winners]
    for i, j in near_apart([hashes[winner.digest] for winner in winners], scenes, config.bits):
        a, b = winners[i], winners[j]
        if a.validation == b.validation:
            alike |= {a.pair_id, b.pair_id}
        else:
            leaking.add(a.pair_id if a.validation else b.pair_id)
    notes = []
    if alike:
        notes.append(
            f"{counted(len(alike), 'pair')} whose winners nearly equal that of another scene: "
            f"{listed(sorted(alike))}"
        )
    if leaking:
        done = "stay there" if config.keep_in_validation else "are kept out of it"
        notes.append(
            f"{counted(len(leaking), 'validation pair')} whose winner training nearly shows as "
            f"well {done}: {listed(sorted(leaking))}"
        )
    return WinnersAlike(frozenset(leaking), notes)


def _hashes(files: Files, winners: Sequence[Winner]) -> dict[str, int]:
    """Digest of the pair -> hash; those that are remembered are not read."""
    known = remembered(files)
    made = {
        winner.digest: known[winner.digest]
        if winner.digest in known
        else picture_hash(winner.read())
        for winner in winners
    }
    if made.keys() != known.keys():
        rows = [WinnerHash(digest=key, hash=f"{made[key]:016x}") for key in sorted(made)]
        files.write(HASHES, to_parquet(rows, WinnerHash))
    return made


def remembered(files: Files) -> dict[str, int]:
    """Digest of the pair -> hash of its winner, as the last build left them."""
    try:
        rows = from_parquet(files.read(HASHES), WinnerHash, HASHES)
        return {row.digest: int(row.hash, 16) for row in rows}
    except FileNotFoundError:
        return {}
    except (UserError, ValueError) as error:
        log.warning("%s: made anew (%s)", HASHES, error)
        return {}
