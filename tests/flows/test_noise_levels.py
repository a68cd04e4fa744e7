"""noise-levels: from pure noise on it is the generator, from little noise on the picture stays, and
the level between is told."""

from __future__ import annotations

import numpy as np
import pytest
import toy_trainer
from toy_root import Toy

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows import wiring
from focusdpo.flows.config import NoiseLevelsRun
from focusdpo.flows.levels.run import (
    LevelRow,
    choose,
    decided_between,
    measure_levels,
    strength_for,
    table_lines,
)
from focusdpo.flows.levels.run import _Painter as Painter
from focusdpo.flows.settings import resolve
from focusdpo.pipeline.adapters.painter import BackbonePainter
from focusdpo.pipeline.stage import read_references
from focusdpo.store.artefacts import Store
from focusdpo.store.versions import open_version


def run_of(toy: Toy, **levels: object) -> NoiseLevelsRun:
    out = str(toy.root.parent / "levels")
    return resolve(NoiseLevelsRun, {"root": str(toy.root), "out": out, "levels": levels})


@pytest.fixture
def learning(built: Toy, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A built toy root, and a suite whose generator is a real transformer."""
    monkeypatch.setitem(wiring.SUITES, "pocket", "toy_trainer")
    wiring.resident_parts.cache_clear()
    return built


def test_candidates_are_failed_or_right_and_as_many_of_each(learning: Toy) -> None:
    version = open_version(Store.open(str(learning.root)), "latest")
    kinds = choose(version, run_of(learning, candidates=3))
    assert len(kinds["failed"]) == len(kinds["right"]) <= 3
    assert all(min(one.shown) == -1 for one in kinds["failed"])
    assert all(set(one.shown) == {1} for one in kinds["right"])
    with pytest.raises(UserError, match="both kinds are needed"):
        strict = run_of(learning).model_dump() | {"pair": {"min_winner_identity": 1.0}}
        choose(version, resolve(NoiseLevelsRun, strict))


def test_from_pure_noise_on_it_is_the_generator_itself(learning: Toy) -> None:
    run = run_of(learning, candidates=2)
    version = open_version(Store.open(str(learning.root)), "latest")
    painter, chosen = Painter(run, version), choose(version, run)["right"]
    level, painted = painter.paint_on(chosen, 1.0)
    assert level == 1.0
    backbone = toy_trainer.backbone()
    plain = BackbonePainter(backbone, "").generate(
        [one.scene.prompt for one in chosen],
        [
            read_references(version.store.image, one.scene, painter.subjects, "by_scene")
            for one in chosen
        ],
        [painter._seed(one, 1.0) for one in chosen],
        guidance=run.generate.guidance,
    )
    np.testing.assert_array_equal(painted, plain)
    before = backbone.sampling
    low, kept = painter.paint_on(chosen, 0.05)
    assert low == pytest.approx(0.05) and backbone.sampling == before
    # The autoencoder's own picture of them, all but untouched by so little noise.
    again = [version.store.image(one.sampled.image) for one in chosen]
    codec = BackbonePainter(backbone, "").inpaint(
        again, [np.zeros(a.shape[:2], bool) for a in again], ["a", "a"], [[], []], [0, 0]
    )
    assert np.abs(np.int64(kept) - codec).mean() < np.abs(np.int64(painted) - codec).mean() / 2


def test_the_whole_command_leaves_table_and_pictures(learning: Toy) -> None:
    run = run_of(learning, candidates=2, sigmas=[0.2, 0.9], resamples=100)
    outcome = measure_levels(run)
    assert [(row.sigma, row.kind) for row in outcome.rows] == [
        (0.9, "failed"), (0.9, "right"), (0.2, "failed"), (0.2, "right"),
    ]  # fmt: skip
    assert {file.name for file in (learning.root.parent / "levels").iterdir()} == {
        "levels.json", "pictures.png",
    }  # fmt: skip
    assert len(table_lines(outcome.rows)) == 3


def test_the_level_of_decision_is_where_the_origin_begins_to_tell() -> None:
    shares = {0.95: (0.4, 0.4), 0.9: (0.5, 0.4), 0.8: (0.9, 0.1), 0.5: (1.0, 0.0)}
    rows = [
        LevelRow(sigma=sigma, kind=kind, candidates=9, failed=share, low=0, high=1)
        for sigma, both in shares.items()
        for kind, share in zip(("failed", "right"), both, strict=True)
    ]
    assert decided_between(rows) == (0.9, 0.8)
    assert decided_between([row for row in rows if row.sigma < 0.9]) is None
    assert strength_for(lambda strength: strength**2, 0.25) == (0.5, 0.25)
