"""Shards to batches: what is read, in which order, and what a damaged shard says."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from pair_samples import make_sample, shards_of, write_pairs

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import decode, encode
from focusdpo.model.backbones.flux import FluxBackbone
from focusdpo.model.focus import pool_to_grid
from focusdpo.model.focus_config import FocusConfig
from focusdpo.model.training.batches import PairData, encode_pairs, prior_tokens
from focusdpo.model.training.encoded import Encodings
from focusdpo.model.training.steps import Schedule
from focusdpo.pipeline.shard import row_of
from focusdpo.store.artefacts import Store
from focusdpo.store.local import LocalFiles
from focusdpo.store.samples import Sample, write_samples


def test_rows_find_what_webdataset_reads(pair_samples: list[Sample]) -> None:
    theirs = [
        decode(sample)
        for path in shards_of(pair_samples)
        for sample in wds.WebDataset(f"file:{path}", shardshuffle=False)
    ]
    ours = [sample.read() for sample in pair_samples]
    assert [s.pair for s in ours] == [s.pair for s in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert (a.images.win == b.images.win).all()
        assert (a.images.complexity == b.images.complexity).all()


def tokens_near(mask: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Tokens that a mask touches, and a ring around them."""
    return prior_tokens(pool_to_grid(mask, grid), grid, 0.0, 1)


def test_loser_is_the_winner_away_from_the_repainted_region(backbone: FluxBackbone) -> None:
    repainted, ranked = make_sample(0, 2), make_sample(1, 2, "rank")
    batch = encode_pairs(backbone, [repainted, ranked])
    prior = torch.from_numpy(repainted.images.prior).float()[None]
    near = tokens_near(prior, backbone.grid)[0].bool()
    assert 0 < near.sum() < len(near)
    assert torch.equal(batch.win_BNC[0, ~near], batch.lose_BNC[0, ~near])
    assert not torch.equal(batch.win_BNC[0, near], batch.lose_BNC[0, near])
    # Two different images share no region.
    assert (batch.win_BNC[1] != batch.lose_BNC[1]).any(1).all()


def test_m_prior_may_hold_touched_tokens_and_a_ring() -> None:
    prior = torch.zeros(1, 32, 32)
    prior[0, 17, 9] = 1
    near = tokens_near(prior, (4, 4)).view(4, 4)
    want = torch.zeros(4, 4)
    want[1:4, 0:3] = 1
    assert torch.equal(near, want)


def test_m_prior_goes_by_the_share_that_is_covered(backbone: FluxBackbone) -> None:
    """A quarter of one token, half of another, all of a third."""
    prior = torch.zeros(1, 32, 32)
    prior[0, 0:4, 0:4], prior[0, 0:8, 8:12], prior[0, 0:8, 16:24] = 1, 1, 1
    for cover, want in ((0.0, [1, 1, 1, 0]), (0.5, [0, 1, 1, 0]), (1.0, [0, 0, 1, 0])):
        share = pool_to_grid(prior, (4, 4))
        assert prior_tokens(share, (4, 4), cover, 0)[0, :4].tolist() == want
    sample = make_sample(0, 2)
    wide = encode_pairs(backbone, [sample], focus=FocusConfig(prior_cover=0.0, prior_ring=1))
    mask = torch.from_numpy(sample.images.prior)[None].float()
    assert torch.equal(wide.priors.prior_BN, tokens_near(mask, backbone.grid))
    assert wide.priors.prior_BN.sum() > encode_pairs(backbone, [sample]).priors.prior_BN.sum()


def test_token_maps_are_the_images_means(backbone: FluxBackbone) -> None:
    sample = make_sample(0, 2)
    priors = encode_pairs(backbone, [sample]).priors
    mask = sample.images.masks[1].reshape(8, 8, 8, 8).mean((1, 3)).reshape(-1)
    assert priors.subjects_BRN[0, 1].tolist() == (mask >= 0.5).astype(float).tolist()
    detail = sample.images.complexity.reshape(8, 8, 8, 8).mean((1, 3)).reshape(-1)
    torch.testing.assert_close(priors.detail_BN[0], torch.from_numpy(detail))


@pytest.mark.parametrize("cache_mib", [0, 100])
def test_cached_or_not_a_batch_is_the_same(
    backbone: FluxBackbone, pair_samples: list[Sample], cache_mib: int
) -> None:
    data = PairData(backbone, pair_samples, encodings=Encodings(backbone, cache_mib * 2**20))
    data.encode()
    items = data.groups()[1][:3]
    want = encode_pairs(backbone, [data.samples[item].read() for item in items])
    got = data.batch(items)
    assert got.keys == want.keys
    for a, b in zip(got.tensors(), want.tensors(), strict=True):
        assert torch.equal(a, b)


def test_the_samples_that_are_given_count_and_no_others(
    backbone: FluxBackbone, pair_samples: list[Sample]
) -> None:
    everything = PairData(backbone, pair_samples)
    assert [len(group) for group in everything.groups()] == [3, 5]
    few = PairData(backbone, pair_samples[1:3])
    assert few.keys() == everything.keys()[1:3]
    assert few.fingerprint() != everything.fingerprint()


@pytest.mark.parametrize(("source", "sizes"), [("rank", [1]), ("disrupt", [3, 4])])
def test_a_source_leaves_the_others_out(
    backbone: FluxBackbone, pair_samples: list[Sample], source: str, sizes: list[int]
) -> None:
    data = PairData(backbone, pair_samples, source=source)
    assert [len(group) for group in data.groups()] == sizes
    assert {sample.read().pair.source for sample in data.samples} == {source}
    everything = PairData(backbone, pair_samples)
    assert set(data.keys()) < set(everything.keys())
    assert data.fingerprint() != everything.fingerprint()


def test_a_source_without_a_pair_is_named(
    backbone: FluxBackbone, pair_samples: list[Sample]
) -> None:
    with pytest.raises(UserError, match="'rank': there are 3 of 'disrupt'. Set train.source"):
        PairData(backbone, pair_samples[5:], source="rank")


def test_batches_of_unlike_shapes_are_refused(
    backbone: FluxBackbone, pair_samples: list[Sample]
) -> None:
    data = PairData(backbone, pair_samples)
    one, two = (group[0] for group in data.groups())
    with pytest.raises(UserError, match="differ in image or reference sizes"):
        data.batch([one, two])


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=3).filter(any),
    batch=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_schedule_is_a_fair_function_of_the_step(sizes: list[int], batch: int, seed: int) -> None:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    groups = [list(range(s, s + n)) for s, n in zip(starts, sizes, strict=True)]
    steps = 3 * sum(sizes)
    schedule = Schedule(groups, batch, seed)
    got = [schedule.items(step) for step in range(steps)]
    assert Schedule(groups, batch, seed).items(steps - 1) == got[-1]
    assert schedule.items(steps // 2) == got[steps // 2]  # backwards, too
    seen: dict[int, list[int]] = {}
    for items in got:
        (owner,) = {i for i, group in enumerate(groups) for item in items if item in group}
        seen.setdefault(owner, []).extend(items)
    for owner, items in seen.items():
        size = len(groups[owner])
        for start in range(0, len(items) - size + 1, size):
            assert sorted(items[start : start + size]) == groups[owner]
    for owner, group in enumerate(groups):  # its share of the steps, give or take one
        taken = len(seen.get(owner, [])) / batch
        assert abs(taken - steps * len(group) / sum(sizes)) <= 1


def test_orders_differ_between_epochs_and_seeds() -> None:
    group = [list(range(20))]
    schedule = Schedule(group, 20, 0)
    assert schedule.items(0) != schedule.items(1)
    assert Schedule(group, 20, 1).items(0) != schedule.items(0)


@pytest.mark.parametrize("change", ["truncated", "header", "pixels", "empty", "missing"])
def test_a_damaged_shard_is_named(backbone: FluxBackbone, tmp_path: Path, change: str) -> None:
    samples = write_pairs(tmp_path)
    path = shards_of(samples)[0]
    data = bytearray(path.read_bytes())
    if change == "truncated":
        data = data[: len(data) // 2]
    elif change == "header":
        data[samples[1].row.offset + 5] ^= 1
    elif change == "pixels":
        data[data.index(b"IDAT") + 20] ^= 255
    elif change == "empty":
        data = bytearray()
    path.write_bytes(bytes(data))
    if change == "missing":
        path.unlink()
    with pytest.raises(UserError, match="two.tar is damaged: .* --repair"):
        PairData(backbone, samples, encodings=Encodings(backbone, 2**20)).encode()


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


def test_a_pickle_in_a_shard_is_not_opened(backbone: FluxBackbone, tmp_path: Path) -> None:
    """Not even one that its author has given the right checksum."""
    one = make_sample(0, 1)
    fields = dict(encode(one.pair, one.images, one.split))
    fields |= {name: pickle.dumps(_Bomb()) for name in ("pyd", "pickle", "pth")}
    store = Store(LocalFiles(tmp_path))
    (place,) = write_samples(store.files, "shards/bomb.tar", [(one.pair.id, fields)])
    sample = Sample(row_of(one.pair, "0" * 16, "train", "bomb.tar", place), store)
    data = PairData(backbone, [sample], encodings=Encodings(backbone, 2**20))
    data.encode()
    assert data.keys() == [one.pair.id]


def test_a_pair_of_another_size_is_named(backbone: FluxBackbone, tmp_path: Path) -> None:
    backbone.image_size = (128, 128)
    with pytest.raises(UserError, match="is 64 x 64 pixels, the backbone paints 128 x 128"):
        encode_pairs(backbone, [make_sample(0, 1)])
