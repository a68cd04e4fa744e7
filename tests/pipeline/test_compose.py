"""Scenes are a function of the subject set alone: what comes later changes nothing."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.scenes import stable_id
from focusdpo.data_schemas.subjects import Reference, Subject
from focusdpo.pipeline.compose import ComposeConfig, by_partition, compose

GROUNDS = ("grass", "sand", "snow")


def subject(name: str, class_name: str = "", digest: str = "d") -> Subject:
    reference = Reference(image="subjects/k/ref0.png", mask="subjects/k/refmask0.png")
    return Subject(
        id=name, class_name=class_name or f"class-{name}", references=(reference,), licence="",
        digest=digest,
    )  # fmt: skip


def many(count: int) -> list[Subject]:
    return [subject(f"s{i:02d}") for i in range(count)]


CONFIGS = st.builds(
    ComposeConfig,
    single_rate=st.sampled_from([0.5, 1.0]),
    pair_rate=st.sampled_from([0.3, 1.0]),
    triple_rate=st.sampled_from([0.0, 0.2]),
    variants=st.integers(1, 3),
    same_class=st.booleans(),
    class_pair_rate=st.sampled_from([None, 0.0, 0.5, 1.0]),
    seed=st.integers(0, 3),
)
NAMES = st.lists(st.text("abcdefgh", min_size=1, max_size=4), min_size=1, max_size=7, unique=True)


def scenes_of(subjects: list[Subject], config: ComposeConfig) -> list:
    try:
        return compose(subjects, GROUNDS, config)
    except UserError:
        return []


@settings(max_examples=60, deadline=None)
@given(names=NAMES, new=st.text("xyz", min_size=1, max_size=3), config=CONFIGS, data=st.data())
def test_adding_a_subject_adds_scenes_and_changes_none(
    names: list[str], new: str, config: ComposeConfig, data: st.DataObject
) -> None:
    classes = st.sampled_from(["cat", "dog", "car"])
    before = [subject(name, data.draw(classes)) for name in names]
    added = subject(new, data.draw(classes))
    old = scenes_of(before, config)
    after = scenes_of([added, *before], config)
    assert {scene.id for scene in old} <= {scene.id for scene in after}
    assert [scene for scene in after if new not in scene.subject_ids] == old


@settings(max_examples=30, deadline=None)
@given(names=NAMES, config=CONFIGS, data=st.data())
def test_the_order_of_subjects_does_not_matter(
    names: list[str], config: ComposeConfig, data: st.DataObject
) -> None:
    subjects = [subject(name) for name in names]
    shuffled = data.draw(st.permutations(subjects))
    assert scenes_of(shuffled, config) == scenes_of(subjects, config)


def test_with_rate_1_every_set_is_there_with_every_variant() -> None:
    config = ComposeConfig(triple_rate=1.0, variants=2)
    scenes = compose(many(5), GROUNDS, config)
    sets = Counter(tuple(sorted(scene.subject_ids)) for scene in scenes)
    ids = [one.id for one in many(5)]
    expected = [s for size in (1, 2, 3) for s in itertools.combinations(ids, size)]
    assert sets == dict.fromkeys(expected, 2)
    assert len({scene.id for scene in scenes}) == len(scenes)
    assert len({scene.seed for scene in scenes}) == len(scenes)
    assert all(0 <= scene.seed < 2**31 for scene in scenes)


def test_a_partition_is_a_subject_set() -> None:
    groups = by_partition(compose(many(6), GROUNDS, ComposeConfig(variants=3)))
    assert list(groups) == sorted(groups)
    for scenes in groups.values():
        assert len({frozenset(scene.subject_ids) for scene in scenes}) == 1
        assert [scene.variant for scene in scenes] == [0, 1, 2]
        assert len({scene.prompt for scene in scenes}) == 3, "variants differ"


def test_prompts_name_the_classes_in_scene_order() -> None:
    config = ComposeConfig(triple_rate=1.0, variants=4)
    orders = set()
    for scene in compose([subject(n, n) for n in ("cat", "dog", "car")], GROUNDS, config):
        a, *rest = scene.class_names
        ground = scene.prompt.rpartition(" ")[2]
        assert ground in GROUNDS
        words = {
            0: f"a {a}",
            1: f"a {a} and a {rest[0]}" if rest else "",
            2: f"a {a}, a {rest[0]} and a {rest[-1]}" if rest else "",
        }[len(rest)]
        assert scene.prompt == f"{words} on {ground}"
        assert scene.class_names == scene.subject_ids
        orders.add(scene.class_names)
    assert ("cat", "dog") in orders
    assert ("dog", "cat") in orders


def test_rates_are_shares() -> None:
    config = ComposeConfig(single_rate=0, pair_rate=0.3, triple_rate=0, variants=1)
    assert len(compose(many(60), GROUNDS, config)) == pytest.approx(0.3 * 60 * 59 / 2, rel=0.15)


def test_two_of_one_class_only_when_asked() -> None:
    subjects = [subject("a", "cat"), subject("b", "cat"), subject("c", "dog")]
    alone = compose(subjects, GROUNDS, ComposeConfig(variants=1))
    assert {s.subject_ids for s in alone if set(s.subject_ids) == {"a", "b"}} == set()
    together = compose(subjects, GROUNDS, ComposeConfig(variants=1, same_class=True))
    assert any(set(s.subject_ids) == {"a", "b"} for s in together)


def test_pairs_of_one_class_may_have_a_rate_of_their_own() -> None:
    subjects = [subject(f"s{i:02d}", f"class-{i % 4}") for i in range(40)]

    def pairs(**changes: object) -> tuple[set[str], set[str]]:
        """Partitions of unlike subjects, and of those of one class."""
        config = ComposeConfig(
            single_rate=0, pair_rate=0.25, triple_rate=0, variants=1, same_class=True
        )
        made = compose(subjects, GROUNDS, config.model_copy(update=changes))
        alike = {one.partition for one in made if len(set(one.class_names)) == 1}
        return {one.partition for one in made} - alike, alike

    unlike, alike = pairs()
    more, all_alike = pairs(class_pair_rate=1.0)
    assert more == unlike, "the others stay as they were"
    assert len(all_alike) == 4 * 45 and alike < all_alike
    assert pairs(class_pair_rate=0.0) == (unlike, set())
    assert pairs(class_pair_rate=0.25) == (unlike, alike)
    assert pairs(class_pair_rate=0.5, same_class=False) == (unlike, set())
    sparse, rare = pairs(pair_rate=0.01, class_pair_rate=0.5)
    assert len(sparse) < 20 < len(rare) < 4 * 45


def test_a_changed_subject_changes_its_scenes_and_no_other() -> None:
    config = ComposeConfig(variants=2)
    before = compose(many(4), GROUNDS, config)
    changed = [subject("s00", digest="new"), *many(4)[1:]]
    after = {scene.id: scene for scene in compose(changed, GROUNDS, config)}
    for scene in before:
        assert (scene.id in after) == ("s00" not in scene.subject_ids)
    assert {s.partition for s in before} == {s.partition for s in after.values()}


def test_what_cannot_be_composed_says_why() -> None:
    with pytest.raises(UserError, match="no subjects"):
        compose([], GROUNDS, ComposeConfig())
    with pytest.raises(UserError, match=r"\['a'\] are there twice"):
        compose([subject("a"), subject("a", "dog")], GROUNDS, ComposeConfig())
    with pytest.raises(UserError, match="no backgrounds"):
        compose(many(1), [], ComposeConfig())
    with pytest.raises(UserError, match="give no scene; raise compose.pair_rate"):
        compose(many(1), GROUNDS, ComposeConfig(single_rate=0))
    with pytest.raises(UserError, match="about 3616 scenes, more than compose.max_scenes = 100"):
        compose(many(40), GROUNDS, ComposeConfig(triple_rate=0.1, max_scenes=100))


def fingerprint(scenes: list) -> str:
    return stable_id(*(f"{scene.id}-{scene.seed}" for scene in scenes))


def test_the_sets_of_shipped_settings_stay_as_they_were() -> None:
    """Recorded before sparse drawing came: these rates ask every set, as ever. The second has been
    written anew: it now says `two c0`."""
    people = [subject(f"s{i:02d}", f"c{i % 10}") for i in range(24)]
    pocket = ComposeConfig(pair_rate=0.25, triple_rate=0.02, variants=1)
    flux = ComposeConfig(pair_rate=0.5, triple_rate=0.0, variants=4, same_class=True)
    assert fingerprint(compose(people, GROUNDS, pocket)) == "d45d60b4a54e1a9c"
    assert fingerprint(compose(people, GROUNDS, flux)) == "2ac5671ea0c006d4"
    assert fingerprint(compose(people, GROUNDS, ComposeConfig())) == "2747c8ea1328c2b5"


def test_a_thousand_subjects_are_composed_in_seconds() -> None:
    config = ComposeConfig(pair_rate=0.01, triple_rate=1e-5, variants=2)
    people = [subject(f"s{i:04d}", f"c{i % 100}") for i in range(1000)]
    start = time.process_time()
    scenes = compose(people, GROUNDS, config)
    assert time.process_time() - start < 10
    sizes = Counter(len(scene.subject_ids) for scene in scenes)
    assert sizes[1] == 2000
    assert sizes[2] == pytest.approx(2 * 0.01 * 1000 * 990 / 2, rel=0.05)
    assert sizes[3] == pytest.approx(2 * 1e-5 * 1000 * 990 * 980 / 6, rel=0.1)
    newcomer = compose([*people, subject("a-new", "dog")], GROUNDS, config)
    assert [scene for scene in newcomer if "a-new" not in scene.subject_ids] == scenes
    start = time.process_time()
    with pytest.raises(UserError, match="more than compose.max_scenes = 100000"):
        compose(people, GROUNDS, ComposeConfig())
    assert time.process_time() - start < 1
