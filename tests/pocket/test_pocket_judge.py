"""The judge: its protocol, its measured hue, its independence, its figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_scorers import arrays, save_random, small_scenes

from focusdpo.pocket.models.judge import JudgeModelConfig, JudgeNet, PocketJudge
from focusdpo.pocket.recipes.identity_recipe import IdentityRecipe
from focusdpo.pocket.recipes.judge_recipe import JudgeRecipe
from focusdpo.pocket.recipes.segmenter_recipe import SegmenterRecipe
from focusdpo.pocket.world.identities import Identity, sample_identities
from focusdpo.pocket.world.world import render_scenes

TINY = JudgeModelConfig(classes=("cat", "fish"), channels=(8, 16), size=32, embedding=8)


@pytest.fixture
def part(tmp_path: Path) -> PocketJudge:
    torch.manual_seed(0)
    return PocketJudge(save_random("judge", JudgeNet(TINY), TINY, tmp_path))


def test_look_tells_all_of_each_body(part: PocketJudge) -> None:
    scenes, _ = small_scenes(4)
    rows = part.look(arrays(scenes.images))
    assert len(rows) == 4
    for seen in [one for row in rows for one in row]:
        x0, y0, x1, y1 = seen.box
        assert seen.mask[y0:y1, x0:x1].sum() == seen.mask.sum() > 0
        assert seen.class_scores.sum() == pytest.approx(1, abs=1e-5)
        assert np.linalg.norm(seen.embedding) == pytest.approx(1, abs=1e-5)
        assert 0 <= seen.confidence <= 1
    assert part.look([]) == []


def test_a_white_picture_has_no_hue_and_an_empty_mask_neither(part: PocketJudge) -> None:
    white = np.full((64, 64, 3), 255, np.uint8)
    masks = [np.ones((64, 64), bool), np.zeros((64, 64), bool)]
    assert np.isnan(part.hue([white, white], masks)).all()


@pytest.mark.parametrize("turn", [0.0, 0.3, 0.8])
def test_hue_is_measured_exactly(part: PocketJudge, turn: float) -> None:
    """A body whose parts are turned alike has the picture's own hue, turned."""
    drawn = sample_identities("train", ["fish"], 1, 3)[0]
    plain = replace(drawn, hue=0.0, second_hue=0.0, pattern="plain", mark="none")
    own, turned = (hue_of(part, one) for one in (plain, replace(plain, hue=turn, second_hue=turn)))
    assert abs((turned - own - 360 * turn + 180) % 360 - 180) < 4


def hue_of(part: PocketJudge, one: Identity) -> float:
    scenes = render_scenes([[one]], [1])
    return float(part.hue(arrays(scenes.images), [scenes.masks[0, 0].numpy()])[0])


def test_it_shares_no_seed_with_the_scorers() -> None:
    own = {JudgeRecipe().sight.seed, JudgeRecipe().look.seed}
    scorers = SegmenterRecipe()
    assert own.isdisjoint({scorers.proposals.seed, scorers.words.seed, IdentityRecipe().views.seed})
