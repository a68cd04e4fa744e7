"""Shards: what was written never changes, and every reader of webdataset tars can use them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from stored_pairs import flat_complexity, put_pairs, put_subjects

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.pairs import Pair
from focusdpo.data_schemas.shards import IndexRow, field_names
from focusdpo.pipeline.shard import (
    ShardConfig,
    load_images,
    split_of,
    write_shards,
)
from focusdpo.store.artefacts import Store
from focusdpo.store.samples import Sample

CONFIG = ShardConfig(max_pairs=4, val_share=0.3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "root")


def some_pairs(store: Store, partitions: int = 6, each: int = 3) -> list[Pair]:
    """Partitions p0, p1, ... with 1, 2, 3, 1, ... subjects."""
    subjects = put_subjects(store, 3)
    return [
        pair
        for p in range(partitions)
        for pair in put_pairs(store, subjects[: p % 3 + 1], each, partition=f"p{p}")[0]
    ]


def write(
    store: Store, pairs: list[Pair], previous: list[IndexRow] | None = None
) -> list[IndexRow]:
    return write_shards(store, pairs, flat_complexity, CONFIG, previous=previous or [])


def hashes(store: Store) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (store.root / "shards").iterdir()
    }


def test_every_pair_is_read_back_by_its_row(store: Store) -> None:
    pairs = some_pairs(store)
    rows = write(store, pairs)
    assert [row.pair_id for row in rows] == sorted(pair.id for pair in pairs)
    by_id = {pair.id: pair for pair in pairs}
    for row in rows:
        sample = Sample(row, store).read()
        pair = by_id[row.pair_id]
        assert sample.pair == pair
        assert sample.split == row.split == split_of(pair.partition, CONFIG)
        given = load_images(store, pair, flat_complexity)
        np.testing.assert_array_equal(sample.images.win, given.win)
        np.testing.assert_array_equal(sample.images.prior, given.prior)
        np.testing.assert_array_equal(sample.images.references, given.references)
        for image, kept in (
            (given.win, sample.images.complexity),
            (given.lose, sample.images.lose_complexity),
        ):
            np.testing.assert_allclose(kept, flat_complexity(image, given.prior), atol=1 / 255)


def test_the_prior_of_a_rank_pair_is_the_union_of_its_masks(store: Store) -> None:
    pairs = [pair for pair in some_pairs(store) if pair.source == "rank"]
    for pair in pairs:
        images = load_images(store, pair, flat_complexity)
        np.testing.assert_array_equal(images.prior, np.logical_or.reduce(images.masks))


def test_a_shard_has_one_split_one_number_of_subjects_and_few_pairs(store: Store) -> None:
    rows = write(store, some_pairs(store))
    for name in {row.shard for row in rows}:
        own = [row for row in rows if row.shard == name]
        assert len(own) <= CONFIG.max_pairs
        assert len({(row.split, row.num_subjects) for row in own}) == 1
        assert name.startswith(f"pairs-{own[0].split}-r{own[0].num_subjects}-")
    assert {row.split for row in rows} == {"train", "val"}


def test_a_subject_set_never_sits_in_both_splits(store: Store) -> None:
    rows = write(store, some_pairs(store))
    splits = {(row.partition, row.split) for row in rows}
    assert len(splits) == len({partition for partition, _ in splits})
    many = [split_of(f"partition-{i}", ShardConfig(val_share=0.1)) for i in range(5000)]
    assert many.count("val") / 5000 == pytest.approx(0.1, abs=0.015)


def test_bytes_follow_from_the_pairs_alone(tmp_path: Path) -> None:
    stores = [Store.open(tmp_path / name) for name in ("one", "two")]
    rows = [write(stores[0], some_pairs(stores[0]))]
    rows.append(write(stores[1], some_pairs(stores[1])[::-1]))
    assert rows[0] == rows[1]
    assert hashes(stores[0]) == hashes(stores[1])


def test_new_pairs_go_to_new_shards_and_old_shards_keep_their_bytes(store: Store) -> None:
    pairs = some_pairs(store)
    first = write(store, pairs)
    before = hashes(store)
    more, _ = put_pairs(store, put_subjects(store, 2), 5, partition="later")
    second = write(store, [*pairs, *more], first)
    assert hashes(store).items() >= before.items()
    new = {row.shard for row in second} - set(before)
    assert {row.pair_id for row in second if row.shard in new} == {pair.id for pair in more}
    assert [row for row in second if row.shard in before] == first


def test_with_nothing_new_nothing_is_written(store: Store) -> None:
    pairs = some_pairs(store)
    first = write(store, pairs)
    times = {path: path.stat().st_mtime_ns for path in (store.root / "shards").iterdir()}
    assert write(store, pairs, first) == first
    assert times == {path: path.stat().st_mtime_ns for path in (store.root / "shards").iterdir()}


def test_a_pair_that_is_gone_loses_its_row_only(store: Store) -> None:
    pairs = some_pairs(store)
    first = write(store, pairs)
    before = hashes(store)
    second = write(store, pairs[1:], first)
    assert hashes(store) == before
    assert second == [row for row in first if row.pair_id != pairs[0].id]


def test_another_complexity_makes_new_samples(store: Store) -> None:
    pairs = some_pairs(store, partitions=2)
    first = write(store, pairs)
    second = write_shards(
        store, pairs, flat_complexity, CONFIG, previous=first, complexity_config={"sigma": 2}
    )
    assert not {row.shard for row in first} & {row.shard for row in second}


def test_a_lost_shard_is_written_again_with_the_same_bytes(store: Store) -> None:
    pairs = some_pairs(store)
    first = write(store, pairs)
    before = hashes(store)
    (store.root / "shards" / first[0].shard).unlink()
    assert write(store, pairs, first) == first
    assert hashes(store) == before


def test_a_stopped_call_leaves_whole_shards_and_can_be_repeated(store: Store) -> None:
    pairs = some_pairs(store)
    calls = 0

    def breaks(win: np.ndarray, prior: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt
        return flat_complexity(win, prior)

    with pytest.raises(KeyboardInterrupt):
        write_shards(store, pairs, breaks, CONFIG)
    left = hashes(store)
    assert left
    assert list((store.root / ".tmp").iterdir()) == []
    write(store, pairs)
    assert hashes(store).items() >= left.items()


def test_damage_is_named_by_the_row_that_meets_it(store: Store) -> None:
    rows = write(store, some_pairs(store))
    row = next(row for row in rows if row.offset > 0)
    path = store.root / "shards" / row.shard
    whole = path.read_bytes()
    for damaged, what in (
        (whole[: row.offset + row.size // 2], "truncated"),
        (whole[: row.offset + 700] + b"#" + whole[row.offset + 701 :], "not what was written"),
        (b"", "truncated"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{row.shard} is damaged.*{row.pair_id}.*{what}"):
            Sample(row, store).read()
    path.unlink()
    with pytest.raises(UserError, match=f"{row.shard} is damaged: the file is missing"):
        Sample(row, store).read()


def test_a_pair_id_that_a_tar_reader_would_cut_is_refused(store: Store) -> None:
    pairs = some_pairs(store, partitions=1, each=1)
    with pytest.raises(ValueError, match="there twice"):
        write(store, pairs * 2)


def shards_of(store: Store, rows: list[IndexRow], num: int) -> list[str]:
    names = sorted({row.shard for row in rows if row.num_subjects == num})
    return [str(store.root / "shards" / name) for name in names]


def test_webdataset_reads_them(store: Store) -> None:
    import webdataset as wds

    rows = write(store, some_pairs(store))
    urls = shards_of(store, rows, 2)
    seen = {s["__key__"]: s for s in wds.WebDataset(urls, shardshuffle=False)}
    assert sorted(seen) == [row.pair_id for row in rows if row.num_subjects == 2]
    for sample in seen.values():
        assert sorted(k for k in sample if not k.startswith("__")) == field_names(2)


def test_datasets_reads_them_with_equal_columns(store: Store, tmp_path: Path) -> None:
    import datasets

    rows = write(store, some_pairs(store))
    loaded = datasets.load_dataset(
        "webdataset", data_files=shards_of(store, rows, 2), split="train",
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert sorted(loaded["__key__"]) == [row.pair_id for row in rows if row.num_subjects == 2]
    assert {one["json"]["pair"]["source"] for one in loaded} == {"disrupt", "rank"}
    assert loaded[0]["win.png"].size == (64, 64)
