"""Stage compose: subjects -> scenes.

Stable: whether subjects stand together, in which order, on which background, is decided by hashes
of that set of subjects alone. So adding a subject adds scenes and changes none.

Above a rate of 1/64 every set of a size is asked; below, candidates are found by `pipeline.draws`
in time that grows with how many are chosen and not with how many there are.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.scenes import Scene, stable_hash, stable_id
from focusdpo.data_schemas.subjects import Subject
from focusdpo.pipeline.draws import DENSE, num_sets, sparse_sets

VERSION = 1

log = logging.getLogger(__name__)

TEMPLATES: Mapping[int, str] = {
    1: "a {0} on {background}",
    2: "a {0} and a {1} on {background}",
    3: "a {0}, a {1} and a {2} on {background}",
}
"""Prompt by number of subjects; the words go in by scene order."""


class ComposeConfig(BaseModel):
    """Which subjects stand together, and how often."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    single_rate: float = Field(1.0, ge=0, le=1, description="share of subjects that stand alone")
    pair_rate: float = Field(1.0, ge=0, le=1, description="share of the sets of two subjects")
    triple_rate: float = Field(0.1, ge=0, le=1, description="share of the sets of three subjects")
    variants: int = Field(2, ge=1, le=1000, description="scenes per set of subjects")
    same_class: bool = Field(False, description="also sets with two subjects of one class")
    max_scenes: int = Field(100_000, ge=1, description="more scenes than this is an error")
    seed: int = Field(0, ge=0, description="another seed chooses other sets and backgrounds")

    @property
    def rates(self) -> dict[int, float]:
        """Number of subjects -> share of the sets of that size."""
        return {1: self.single_rate, 2: self.pair_rate, 3: self.triple_rate}


def compose(
    subjects: Sequence[Subject], backgrounds: Sequence[str], config: ComposeConfig
) -> list[Scene]:
    """The scenes of all chosen subject sets, sorted by partition and variant.

    Raises UserError when there are no subjects, two of one id, no scene or more than `max_scenes`.
    """
    _check_input(subjects, backgrounds)
    scenes = [
        scene
        for members in _chosen_sets(subjects, config)
        for scene in _scenes_of(members, backgrounds, config)
    ]
    if not scenes:
        raise UserError(
            f"compose: {len(subjects)} subjects give no scene; raise compose.pair_rate or "
            "compose.single_rate, or bring subjects of different classes"
        )
    log.info("compose: %d subjects, %d scenes", len(subjects), len(scenes))
    return sorted(scenes, key=lambda scene: (scene.partition, scene.variant))


def by_partition(scenes: Iterable[Scene]) -> dict[str, list[Scene]]:
    """Partition -> its scenes by variant; partitions sorted."""
    groups: dict[str, list[Scene]] = {}
    for scene in sorted(scenes, key=lambda scene: (scene.partition, scene.variant)):
        groups.setdefault(scene.partition, []).append(scene)
    return groups


def _check_input(subjects: Sequence[Subject], backgrounds: Sequence[str]) -> None:
    if not subjects:
        raise UserError("compose: no subjects; bring at least one")
    counts = Counter(subject.id for subject in subjects)
    if twice := sorted(one for one, count in counts.items() if count > 1):
        raise UserError(f"compose: subjects {twice} are there twice; give each its own name")
    if not backgrounds:
        raise UserError("compose: no backgrounds; name at least one")


def _chosen_sets(
    subjects: Sequence[Subject], config: ComposeConfig
) -> Iterable[tuple[Subject, ...]]:
    """The chosen sets, members by id."""
    ordered = sorted(subjects, key=lambda subject: subject.id)
    classes = [one.class_name for one in ordered]
    expected = sum(
        rate * num_sets(classes, size, config.same_class) for size, rate in config.rates.items()
    )
    # Far too many: said at once, not after minutes of counting them.
    if config.variants * expected > 2 * config.max_scenes + 1000:
        raise _too_many(classes, config)
    left = config.max_scenes // config.variants
    for size, rate in config.rates.items():
        for members in _sets_of(ordered, size, rate, config):
            left -= 1
            if left < 0:
                raise _too_many(classes, config)
            yield members


def _sets_of(
    ordered: Sequence[Subject], size: int, rate: float, config: ComposeConfig
) -> Iterable[tuple[Subject, ...]]:
    """Sets of a size whose hash falls below their rate."""
    if rate == 0:
        return
    if size == 1 or rate >= DENSE:
        for members in itertools.combinations(ordered, size):
            if _is_apart(members, config) and _is_chosen(members, rate, config):
                yield members
        return
    ids = [one.id for one in ordered]
    for places in sparse_sets(ids, size, rate, config.seed):
        members = tuple(ordered[place] for place in places)
        if _is_apart(members, config):
            yield members


def _is_apart(members: tuple[Subject, ...], config: ComposeConfig) -> bool:
    return config.same_class or len({one.class_name for one in members}) == len(members)


def _is_chosen(members: tuple[Subject, ...], rate: float, config: ComposeConfig) -> bool:
    ids = [one.id for one in members]
    return rate == 1 or stable_hash("chosen", config.seed, *ids) < rate * 2**64


def _too_many(classes: Sequence[str], config: ComposeConfig) -> UserError:
    sets = {size: num_sets(classes, size, config.same_class) for size in config.rates}
    expected = config.variants * sum(rate * sets[size] for size, rate in config.rates.items())
    return UserError(
        f"compose: {len(classes)} subjects give about {expected:.0f} scenes, more than "
        f"compose.max_scenes = {config.max_scenes}; lower compose.pair_rate "
        f"({sets[2]} sets of two) and compose.triple_rate ({sets[3]} sets of three)"
    )


def _scenes_of(
    members: tuple[Subject, ...], backgrounds: Sequence[str], config: ComposeConfig
) -> Iterable[Scene]:
    """The variants of a set."""
    ids = [one.id for one in members]
    orders = list(itertools.permutations(members))
    first = stable_hash("order", config.seed, *ids)
    start = stable_hash("background", config.seed, *ids)
    partition = stable_id("partition", *ids)
    for variant in range(config.variants):
        # Both walk on with the variant, so that the variants of a set differ and favour no order.
        order = orders[(first + variant) % len(orders)]
        background = backgrounds[(start + variant) % len(backgrounds)]
        classes = tuple(one.class_name for one in order)
        prompt = TEMPLATES[len(order)].format(*classes, background=background)
        names_and_digests = [part for one in order for part in (one.id, one.digest)]
        scene_id = stable_id("scene", prompt, variant, *names_and_digests)
        yield Scene(
            id=scene_id,
            partition=partition,
            subject_ids=tuple(one.id for one in order),
            class_names=classes,
            prompt=prompt,
            variant=variant,
            seed=stable_hash("seed", config.seed, scene_id) % 2**31,
        )
