"""Facts of the rendered world that everything else rests on."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focusdpo.data_schemas.errors import UserError
from focusdpo.pocket.first.identities import (
    BACKGROUNDS,
    HUE_BINS,
    PATTERNS,
    Identity,
    cell_split,
    class_names,
    sample_identities,
)
from focusdpo.pocket.first.vocabulary import LENGTH, token_ids, words
from focusdpo.pocket.first.world import (
    GAP,
    hue_distance,
    measure_hue,
    prompt_for,
    render_references,
    render_scenes,
)


def people(count: int, seed: int = 0) -> list[Identity]:
    return sample_identities("train", class_names(), count, seed)


def test_class_splits_are_disjoint_and_complete() -> None:
    parts = [set(class_names(s)) for s in ("train", "val", "held_out")]
    assert [len(p) for p in parts] == [32, 8, 8]
    assert len(set.union(*parts)) == len(class_names()) == 48


def test_every_identity_cell_has_one_split_and_all_splits_have_cells() -> None:
    cells = itertools.product(class_names(), range(HUE_BINS), PATTERNS)
    counts = {"train": 0, "val": 0, "held_out": 0}
    for cell in cells:
        counts[cell_split(*cell)] += 1
    total = sum(counts.values())
    assert counts["train"] / total == pytest.approx(0.8, abs=0.02)
    assert counts["val"] / total == pytest.approx(0.1, abs=0.02)


@given(seed=st.integers(0, 10**6), split=st.sampled_from(["train", "val", "held_out"]))
@settings(max_examples=20, deadline=None)
def test_sampled_identities_belong_to_their_split(seed: int, split: str) -> None:
    found = sample_identities(split, class_names("val"), 6, seed)  # type: ignore[arg-type]
    assert [identity.split for identity in found] == [split] * 6
    assert found == sample_identities(split, class_names("val"), 6, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("tidy", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_masks_are_disjoint_and_boxes_apart(count: int, tidy: bool) -> None:
    ids = people(24 * count, seed=count)
    rows = [ids[i * count : (i + 1) * count] for i in range(24)]
    scenes = render_scenes(rows, range(24), tidy=tidy)
    assert scenes.images.shape == (24, 3, 64, 64)
    assert scenes.images.min() >= 0 and scenes.images.max() <= 1
    assert scenes.masks.sum(1).max() == 1
    assert scenes.masks.sum((-2, -1)).min() > 40
    for boxes in scenes.boxes:
        x0, y0, x1, y1 = boxes.unbind(1)
        for i, j in itertools.combinations(range(count), 2):
            gap_x = max(x0[i] - x1[j], x0[j] - x1[i])
            gap_y = max(y0[i] - y1[j], y0[j] - y1[i])
            # A box of a mask is up to a pixel smaller than the body's own.
            assert max(gap_x, gap_y) >= GAP - 1
        middle = (x0 + x1) / 2
        assert (middle.diff() > 0).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_item_depends_on_its_own_seed_alone(count: int) -> None:
    ids = people(6 * count)
    rows = [ids[i * count : (i + 1) * count] for i in range(6)]
    batch = render_scenes(rows, [7, 8, 9, 10, 11, 12])
    alone = render_scenes(rows[3:4], [10])
    assert torch.equal(batch.images[3], alone.images[0])
    assert torch.equal(batch.masks[3], alone.masks[0])
    assert batch.backgrounds[3] == alone.backgrounds[0]
    references, masks = render_references(ids, range(len(ids)))
    one, one_mask = render_references(ids[2:3], [2])
    assert torch.equal(references[2], one[0]) and torch.equal(masks[2], one_mask[0])


def test_a_seed_places_the_same_whatever_the_background() -> None:
    rows = [people(2)]
    first = render_scenes(rows, [5], ["sand"])
    second = render_scenes(rows, [5], ["tiles"])
    assert torch.equal(first.masks, second.masks)
    assert not torch.equal(first.images, second.images)


def test_measured_hue_is_the_one_asked_for() -> None:
    ids = sample_identities("train", class_names(), 96, 1)
    asked = torch.tensor([identity.hue for identity in ids])
    references, masks = render_references(ids, range(96))
    hue, purity = measure_hue(references, masks)
    assert hue_distance(hue, asked).max() < 1e-3 and purity.min() > 0.99
    scenes = render_scenes([[identity] for identity in ids], range(96))
    hue, purity = measure_hue(scenes.images, scenes.masks[:, 0])
    assert hue_distance(hue, asked).max() < 0.02 and purity.min() > 0.95


def test_patterns_change_lightness_and_nothing_else() -> None:
    plain = Identity("bell", 0.6, 0.8, 0.5, "plain")
    pictures = []
    for pattern in PATTERNS:
        image, mask = render_references([Identity("bell", 0.6, 0.8, 0.5, pattern)], [3])
        hue, purity = measure_hue(image, mask)
        assert hue_distance(hue, torch.tensor([plain.hue])) < 1e-3 and purity > 0.99
        pictures.append(image)
    for first, second in itertools.combinations(pictures, 2):
        assert (first - second).abs().mean() > 0.005


def test_references_show_another_pose_than_scenes() -> None:
    ids = people(8)
    first, _ = render_references(ids, range(8))
    second, _ = render_references(ids, range(100, 108))
    assert ((first - second).abs().flatten(1).mean(1) > 0.01).all()
    small, masks = render_references(ids, range(8), size=32)
    assert small.shape == (8, 3, 32, 32) and masks.shape == (8, 32, 32)
    # Outside the body and its soft edge a reference is white.
    outside = ~torch.nn.functional.max_pool2d(masks[:, None].float(), 5, 1, 2).bool()
    assert (small.amin(1, keepdim=True)[outside] == 1).all()


def test_hue_distance_goes_round() -> None:
    assert hue_distance(torch.tensor(0.95), torch.tensor(0.05)) == pytest.approx(0.1)
    assert hue_distance(torch.tensor(0.0), torch.tensor(0.5)) == 0.5


def test_world_refuses_what_it_does_not_know() -> None:
    with pytest.raises(UserError, match="unicorn"):
        sample_identities("train", ["unicorn"], 1, 0)
    with pytest.raises(UserError, match="moon"):
        render_scenes([people(1)], [0], ["moon"])
    with pytest.raises(UserError, match="1 to 3"):
        render_scenes([people(4)], [0])


def test_prompts_are_made_of_known_words() -> None:
    assert prompt_for(["cat"], "sand") == "a cat on sand"
    assert prompt_for(["cat", "top hat"], "sand") == "a cat and a top hat on sand"
    for count, background in itertools.product((1, 2, 3), BACKGROUNDS):
        ids = token_ids(prompt_for(class_names()[:count], background))
        assert len(ids) == LENGTH and 1 not in ids
    assert len(set(words())) == len(words())


def test_longest_word_wins_and_strangers_become_unknown() -> None:
    known = words()
    ids = token_ids("a teddy bear and a teddy on the grass")
    names = [known[i] for i in ids]
    assert names == [
        "a",
        "teddy bear",
        "and",
        "a",
        "<unk>",
        "on",
        "<unk>",
        "grass",
        "<pad>",
        "<pad>",
    ]
    assert token_ids("") == (0,) * LENGTH
