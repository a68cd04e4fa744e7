"""Stage compose: subjects -> scenes.

Stable: whether subjects stand together, in which order, on which background, is decided by hashes
of that set of subjects alone. So adding a subject adds scenes and changes none.

Above a rate of 1/64 every set of a size is asked by its own hash. Below, candidates are found
without asking every set: each name has a place on a circle of 2**64; a set is a candidate when the
sum of its members' places falls into a short arc, and is drawn when one hash of the set agrees,
too. Partners with a sum in an arc lie side by side among sorted places, so a draw costs about four
hashes, whatever the number of subjects.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.prompts import caption
from focusdpo.data_schemas.scenes import Scene, stable_hash, stable_id
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.data_schemas.subjects import Subject

DENSE = 1 / 64
"""From this rate on, every set is asked by its own hash."""
THINNING = 4
"""Candidates per drawn set: without it, names that lie close would share all their partners."""

Places = NDArray[np.uint64]


def sparse_sets(ids: Sequence[str], size: int, rate: float, seed: int) -> Iterator[tuple[int, ...]]:
    """Positions in `ids` (sorted, unique) of the drawn sets of 2 or 3, each ascending and once.

    A share of `rate` (at most `DENSE`) of all sets; a higher rate draws these sets and more.
    """
    arc = THINNING * rate
    candidates = (
        _pairs(_places(ids, "two", seed), arc) if size == 2 else _triples(ids, math.sqrt(arc), seed)
    )
    for places in candidates:
        names = [ids[place] for place in places]
        if stable_hash("chosen", seed, *names) < 2**64 // THINNING:
            yield places


def num_sets(classes: Sequence[str], size: int, same_class: bool) -> int:
    """How many sets of 1, 2 or 3 there are, with unlike classes unless `same_class`."""
    if same_class:
        return math.comb(len(classes), size)
    counts = Counter(classes).values()
    # Elementary symmetric polynomials of the classes' counts, by Newton's identities.
    ones, twos, threes = (sum(count**power for count in counts) for power in (1, 2, 3))
    return (ones, (ones**2 - twos) // 2, (ones**3 - 3 * ones * twos + 2 * threes) // 6)[size - 1]


def _places(ids: Sequence[str], what: str, seed: int) -> Places:
    return np.array([stable_hash("place", what, seed, name) for name in ids], np.uint64)


def _pairs(places: Places, arc: float) -> Iterator[tuple[int, int]]:
    """Positions i < j whose places sum into [0, arc) of the circle."""
    order = np.argsort(places, kind="stable")
    around = places[order]
    for i, place in enumerate(places):
        for j in order[_inside(around, place, arc)]:
            if j > i:
                yield i, int(j)


def _triples(ids: Sequence[str], arc: float, seed: int) -> Iterator[tuple[int, int, int]]:
    """Positions i < j < k: the first two by one circle, all three by another."""
    thirds = _places(ids, "three", seed)
    order = np.argsort(thirds, kind="stable")
    around = thirds[order]
    with np.errstate(over="ignore"):
        for i, j in _pairs(_places(ids, "first two", seed), arc):
            for k in order[_inside(around, thirds[i] + thirds[j], arc)]:
                if k > j:
                    yield i, j, int(k)


def _inside(around: Places, place: np.uint64, arc: float) -> NDArray[np.intp]:
    """Indices into sorted places whose sum with `place` falls into [0, arc)."""
    start = -int(place) % 2**64
    stop = start + int(arc * 2**64)
    low = int(np.searchsorted(around, np.uint64(start)))
    if stop <= 2**64:
        high = len(around) if stop == 2**64 else int(np.searchsorted(around, np.uint64(stop)))
        return np.arange(low, high)
    high = int(np.searchsorted(around, np.uint64(stop - 2**64)))
    return np.concatenate([np.arange(low, len(around)), np.arange(high)])


VERSION = 2

log = logging.getLogger(__name__)


class ComposeConfig(StrictModel):
    """Which subjects stand together, and how often."""

    single_rate: float = Field(1.0, ge=0, le=1, description="share of subjects that stand alone")
    pair_rate: float = Field(1.0, ge=0, le=1, description="share of the sets of two subjects")
    triple_rate: float = Field(0.1, ge=0, le=1, description="share of the sets of three subjects")
    variants: int = Field(2, ge=1, le=1000, description="scenes per set of subjects")
    same_class: bool = Field(False, description="also sets with two subjects of one class")
    class_pair_rate: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the sets of two of one class, where same_class; null: pair_rate."
        " Similar subjects are the ones that get mixed up, and most sets are of unlike ones",
    )
    max_scenes: int = Field(100_000, ge=1, description="more scenes than this is an error")
    seed: int = Field(0, ge=0, description="another seed chooses other sets and backgrounds")

    @property
    def rates(self) -> dict[int, float]:
        """Number of subjects -> share of the sets of that size."""
        return {1: self.single_rate, 2: self.pair_rate, 3: self.triple_rate}

    def expected(self, classes: Sequence[str]) -> float:
        """About how many sets are chosen of subjects of these classes."""
        sets = sum(
            rate * num_sets(classes, size, self.same_class) for size, rate in self.rates.items()
        )
        if not self.same_class or self.class_pair_rate is None:
            return sets
        of_class = num_sets(classes, 2, True) - num_sets(classes, 2, False)
        return sets + of_class * (self.class_pair_rate - self.pair_rate)


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
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise UserError(f"compose: subjects {twice} are there twice; give each its own name")
    if not backgrounds:
        raise UserError("compose: no backgrounds; name at least one")


def _chosen_sets(
    subjects: Sequence[Subject], config: ComposeConfig
) -> Iterable[tuple[Subject, ...]]:
    """The chosen sets, members by id."""
    ordered = sorted(subjects, key=lambda subject: subject.id)
    classes = [subject.class_name for subject in ordered]
    # Far too many: said at once, not after minutes of counting them.
    if config.variants * config.expected(classes) > 2 * config.max_scenes + 1000:
        raise _too_many(classes, config)
    left = config.max_scenes // config.variants
    for size, rate in config.rates.items():
        for members in _sets_at_their_rates(ordered, size, rate, config):
            left -= 1
            if left < 0:
                raise _too_many(classes, config)
            yield members


def _sets_at_their_rates(
    ordered: Sequence[Subject], size: int, rate: float, config: ComposeConfig
) -> Iterable[tuple[Subject, ...]]:
    """Sets of a size; pairs of one class at the rate that they may have of their own."""
    class_rate = config.class_pair_rate if size == 2 and config.same_class else None
    if class_rate is None:
        yield from _sets_of(ordered, size, rate, config)
        return
    yield from _sets_of(ordered, size, rate, config.model_copy(update={"same_class": False}))
    by_class: dict[str, list[Subject]] = {}
    for subject in ordered:
        by_class.setdefault(subject.class_name, []).append(subject)
    for members in by_class.values():
        yield from _sets_of(members, size, class_rate, config)


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
    ids = [subject.id for subject in ordered]
    for places in sparse_sets(ids, size, rate, config.seed):
        members = tuple(ordered[place] for place in places)
        if _is_apart(members, config):
            yield members


def _is_apart(members: tuple[Subject, ...], config: ComposeConfig) -> bool:
    return config.same_class or len({subject.class_name for subject in members}) == len(members)


def _is_chosen(members: tuple[Subject, ...], rate: float, config: ComposeConfig) -> bool:
    ids = [subject.id for subject in members]
    return rate == 1 or stable_hash("chosen", config.seed, *ids) < rate * 2**64


def _too_many(classes: Sequence[str], config: ComposeConfig) -> UserError:
    sets = {size: num_sets(classes, size, config.same_class) for size in config.rates}
    expected = config.variants * config.expected(classes)
    return UserError(
        f"compose: {len(classes)} subjects give about {expected:.0f} scenes, more than "
        f"compose.max_scenes = {config.max_scenes}; lower compose.pair_rate "
        f"({sets[2]} sets of two; compose.class_pair_rate has those of one class) and "
        f"compose.triple_rate ({sets[3]} sets of three)"
    )


def _scenes_of(
    members: tuple[Subject, ...], backgrounds: Sequence[str], config: ComposeConfig
) -> Iterable[Scene]:
    """The variants of a set."""
    ids = [subject.id for subject in members]
    orders = list(itertools.permutations(members))
    first = stable_hash("order", config.seed, *ids)
    start = stable_hash("background", config.seed, *ids)
    partition = stable_id("partition", *ids)
    for variant in range(config.variants):
        # Both walk on with the variant, so that the variants of a set differ and favour no order.
        order = orders[(first + variant) % len(orders)]
        background = backgrounds[(start + variant) % len(backgrounds)]
        classes = tuple(subject.class_name for subject in order)
        prompt = caption(classes, background)
        names_and_digests = [part for subject in order for part in (subject.id, subject.digest)]
        scene_id = stable_id("scene", prompt, variant, *names_and_digests)
        yield Scene(
            id=scene_id,
            partition=partition,
            subject_ids=tuple(subject.id for subject in order),
            class_names=classes,
            prompt=prompt,
            variant=variant,
            seed=stable_hash("seed", config.seed, scene_id) % 2**31,
        )
