"""A scene: which subjects stand together, and the words for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


def stable_hash(*parts: object) -> int:
    """A 64-bit number that depends on the parts alone, equal on every machine."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def stable_id(*parts: object) -> str:
    """`stable_hash` as 16 hexadecimal digits: safe as a file name and a webdataset key."""
    return f"{stable_hash(*parts):016x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """An ordered set of 1 to 3 subjects, a prompt that names their classes, a seed base."""

    id: str
    """`stable_id` of subjects, their digests, prompt and variant."""
    partition: str
    """`stable_id` of the subject set: all scenes of a set are computed and stored together."""
    subject_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    prompt: str
    variant: int
    seed: int
    """Seed base in [0, 2**31); candidate i uses `stable_hash(seed, i)` cut to 31 bits."""


def candidate_seed(scene_seed: int, index: int) -> int:
    """The seed of candidate `index`: depends on scene and index, never on batching."""
    return stable_hash("candidate", scene_seed, index) % 2**31
