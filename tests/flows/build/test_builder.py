"""The executor: what is missing is computed, once; what is there stays; one bad partition leaves
the others alone."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_suite
import toy_world
from plain_build import execute, prepare
from toy_root import Toy

from focusdpo.data_schemas.errors import TakenAway, UserError
from focusdpo.data_schemas.pairs import Pair
from focusdpo.flows.build import builder as builder_module
from focusdpo.flows.build.outcome import BuildResult
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.config import BuildRun
from focusdpo.flows.settings import merge, resolve
from focusdpo.pipeline.parts import Detection
from focusdpo.store.versions import open_version


def build(toy: Toy, **given: object) -> BuildResult:
    return execute(prepare(resolve(BuildRun, merge(toy.tree(), given))))


def test_a_first_build_makes_every_stage_of_every_partition(toy: Toy) -> None:
    result = build(toy)
    assert result.new and result.whole
    assert result.partitions == 6  # three singles, three pairs
    assert result.made == dict.fromkeys(STAGES, 6)
    assert result.pairs == len(open_version(str(toy.root)).rows) > 0
    assert result.model_seconds > 0


@pytest.mark.usefixtures("built")
def test_a_second_build_makes_nothing_and_publishes_nothing(toy: Toy) -> None:
    before = toy.files()
    toy_suite.GENERATOR.calls.clear()
    second = build(toy)
    assert not toy_suite.GENERATOR.calls
    assert second.made == {} and second.model_seconds == 0 and not second.new
    assert second.version == open_version(str(toy.root)).id
    assert toy.files() == before


def test_a_root_that_is_taken_away_is_told_whatever_notices_it(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(work: object) -> Any:
        toy.root.rename(toy.root.with_name("taken"))
        return list(toy.root.iterdir())

    monkeypatch.setitem(STAGES, "disrupt", replace(STAGES["disrupt"], run=gone))
    with pytest.raises(TakenAway, match="root: was taken away; run the same command again"):
        build(toy)
    assert not toy.root.exists()


def test_two_roots_get_the_same_bytes(toy: Toy, toy_made: Path) -> None:
    build(toy, partitions_per_task=5)  # there, one
    assert made_in(toy.root) == made_in(toy_made)


def made_in(root: Path) -> dict[str, bytes]:
    """Artefacts and shards."""
    toy = Toy(root, root)
    return toy.files("stages") | toy.files("shards")


@pytest.mark.usefixtures("built")
def test_a_new_subject_computes_its_own_partitions_and_keeps_every_shard(toy: Toy) -> None:
    before = toy.files("shards")
    toy.add(yellow=("square", 60.0))
    result = build(toy)
    assert result.made == dict.fromkeys(STAGES, 4)  # itself, and with each of the three others
    after = toy.files("shards")
    assert before.items() <= after.items() and len(after) > len(before)


@pytest.mark.usefixtures("built")
def test_a_changed_setting_computes_what_depends_on_it(toy: Toy) -> None:
    assert build(toy, pair={"min_drop": 0.2}).made == {"pair": 6}
    assert build(toy, score={"crop_margin": 0.2}).made == {"score": 6, "pair": 6}
    disrupted = build(toy, disrupt={"dilate": 4}).made
    assert disrupted == {"disrupt": 6, "score": 6, "pair": 6}
    assert build(toy).made == {}


@pytest.mark.usefixtures("built")
def test_another_model_computes_what_it_made(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    from focusdpo.flows import wiring

    monkeypatch.setitem(toy_suite.FINGERPRINTS, "clip", "toy-2")
    monkeypatch.setattr(toy_suite.PARTS["clip"], "fingerprint", "toy-2")
    wiring.resident_parts.cache_clear()
    assert build(toy).made == {"score": 6, "pair": 6}


def test_a_fingerprint_that_changes_on_loading_is_refused(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(toy_suite.FINGERPRINTS, "generator", "another")
    with pytest.raises(RuntimeError, match="content keys would lie"):
        build(toy, strict=True)


class Flaky:
    """Fails on chosen calls, then works."""

    fingerprint = "toy"

    def __init__(self, error: BaseException, fails: range) -> None:
        self.error, self.fails, self.calls = error, fails, 0

    def generate(self, *args: object, **more: Any) -> object:
        self.calls += 1
        if self.calls in self.fails:
            raise self.error
        return toy_suite.GENERATOR.generate(*args, **more)


def flaky(monkeypatch: pytest.MonkeyPatch, error: BaseException, fails: range) -> Flaky:
    made = Flaky(error, fails)
    monkeypatch.setitem(toy_suite.PARTS, "generator", made)
    return made


def test_one_bad_partition_leaves_the_others_alone(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky(monkeypatch, RuntimeError("the model choked"), range(2, 3))
    result = build(toy)
    assert result.made["generate"] == result.made["pair"] == 5
    assert len(result.failed) == 1 and "the model choked" in result.failed[0]
    assert not result.whole and result.pairs > 0
    again = build(toy)
    assert again.made == dict.fromkeys(list(STAGES)[1:], 1) and again.whole


def test_strict_stops_at_once_and_keeps_what_was_made(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = flaky(monkeypatch, UserError("bad picture"), range(3, 4))
    with pytest.raises(UserError, match="bad picture"):
        build(toy, strict=True)
    assert made.calls == 3
    assert build(toy).made["generate"] == 4


def test_a_full_disk_stops_the_run_and_loses_nothing(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    made = flaky(monkeypatch, full, range(3, 99))
    with pytest.raises(OSError, match="No space left"):
        build(toy)
    assert made.calls == 3
    monkeypatch.setitem(toy_suite.PARTS, "generator", toy_suite.GENERATOR)
    from focusdpo.flows import wiring

    wiring.resident_parts.cache_clear()
    assert build(toy).made["generate"] == 4


def test_a_mistake_of_ours_is_not_swallowed(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    flaky(monkeypatch, TypeError("a bug"), range(1, 2))
    with pytest.raises(TypeError, match="a bug"):
        build(toy)


def test_when_every_partition_fails_nothing_is_published(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky(monkeypatch, RuntimeError("no memory"), range(1, 99))
    with pytest.raises(UserError, match="every partition failed"):
        build(toy)
    with pytest.raises(UserError, match="no dataset version yet"):
        open_version(str(toy.root))


def test_thresholds_that_nothing_passes_are_named(toy: Toy) -> None:
    with pytest.raises(UserError, match=r"no pair was accepted.*weak_winner"):
        build(toy, pair={"min_winner_identity": 1.0})


def test_the_cause_of_a_full_disk_is_found_behind_another_error() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError as error:
            raise UserError("cannot write") from error
    except UserError as error:
        assert builder_module.disk_is_full(error)
    assert not builder_module.disk_is_full(UserError("else"))


@pytest.mark.usefixtures("built")
def test_every_pair_leads_back_to_pictures_in_the_store(toy: Toy) -> None:
    version = open_version(str(toy.root))
    for key in version.store.keys("pair"):
        for pair in version.store.read("pair", key, Pair):
            for image in (pair.win_image, pair.lose_image, *pair.masks):
                digest = hashlib.blake2b(version.store.image_bytes(image)).hexdigest()
                assert digest
            sample = version.read(next(r for r in version.rows if r.pair_id == pair.id))
            assert (sample.images.win == version.store.image(pair.win_image)).all()


def test_a_plan_tells_what_is_missing_before_anything_runs(toy: Toy) -> None:
    prepared = prepare(resolve(BuildRun, toy.tree()))
    assert prepared.builder.plan.counts() == dict.fromkeys(STAGES, (6, 6))
    execute(prepared)
    toy.add(yellow=("square", 60.0))
    again = prepare(resolve(BuildRun, toy.tree()))
    assert again.builder.plan.counts() == dict.fromkeys(STAGES, (10, 4))


class Diverged:
    """A part of the toy world after its weights became NaN."""

    fingerprint = "toy"

    def inpaint(self, images: list[np.ndarray], *_: object, **more: object) -> list[np.ndarray]:
        return [np.zeros_like(image) for image in images]

    generate = inpaint

    def embed(self, images: list[np.ndarray], masks: object) -> np.ndarray:
        return np.full((len(images), 3), np.nan, np.float32)

    def embed_images(self, images: list[np.ndarray]) -> np.ndarray:
        return np.full((len(images), 3), np.nan, np.float32)

    embed_texts = embed_images

    def segment(self, images: list[np.ndarray], words: list[list[str]]) -> list[list[Detection]]:
        return [
            [replace(one, confidence=float("nan")) for one in row]
            for row in toy_world.Segmenter().segment(images, words)
        ]


@pytest.mark.parametrize(
    ("role", "stage"),
    [
        ("inpainter", "disrupt"),
        ("identity", "segment"),
        ("clip", "score"),
        ("segmenter", "segment"),
    ],
)
def test_what_is_not_finite_is_not_stored_and_the_healthy_model_goes_on(
    toy: Toy, toy_made: Path, monkeypatch: pytest.MonkeyPatch, role: str, stage: str
) -> None:
    from focusdpo.flows import wiring

    with monkeypatch.context() as patch:
        patch.setitem(toy_suite.PARTS, role, Diverged())
        with pytest.raises(UserError, match=f"every partition failed:\n  {stage}.* the {role}: "):
            build(toy)
    assert not toy.files("shards") and not toy.files(f"stages/{stage}")
    wiring.resident_parts.cache_clear()
    result = build(toy)
    assert result.whole and result.made[stage] == 6
    assert made_in(toy.root) == made_in(toy_made)
