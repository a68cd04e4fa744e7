"""Filters and orders of the grid against the plain way."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.data_schemas.tables import to_parquet
from focusdpo.studio.columns import SORTS, LazyRows, PairColumns, Wanted

NAMES = ("a", "b", "c", "d")


def make_rows(count: int = 120) -> list[IndexRow]:
    rng = np.random.default_rng(5)
    rows = []
    for at in range(count):
        num = int(rng.integers(1, 4))
        chosen = tuple(rng.choice(NAMES, num, replace=False))
        rows.append(
            IndexRow(
                pair_id=f"{at:04d}",
                digest="d",
                scene_id="s",
                partition=f"p{at % 7}",
                split="val" if at % 5 == 0 else "train",
                source="rank" if at % 3 == 0 else "disrupt",
                mode="rank" if at % 3 == 0 else "all",
                num_subjects=num,
                subject_ids=chosen,
                class_names=("x",) * (num - 1) + ("y",),
                prompt=f"A {'Cat' if at % 2 else 'dog'} (on) snow {at}",
                margin=round(float(rng.uniform(0, 1)), 2),
                win_identity=tuple(map(float, rng.uniform(0, 1, num))),
                lose_identity=tuple(map(float, rng.uniform(-1, 1, num))),
                win_clip_t=0.3,
                lose_clip_t=float(rng.uniform(0, 1)),
                shard="x.tar",
                offset=at,
                size=1,
                checksum="c",
            )  # fmt: skip
        )
    return rows


ROWS = make_rows()
COLUMNS = PairColumns.of(to_parquet(ROWS, IndexRow), "index")

wanteds = st.builds(
    Wanted,
    subject=st.sampled_from(["", *NAMES, "nobody"]),
    class_name=st.sampled_from(["", "x", "y"]),
    source=st.sampled_from(["", "rank", "disrupt"]),
    mode=st.sampled_from(["", "all", "rank"]),
    split=st.sampled_from(["", "train", "val"]),
    num_subjects=st.sampled_from([None, 1, 2, 3, 9]),
    text=st.sampled_from(["", "cat", "CAT", "(on)", "0042", "nothing"]),
    score=st.sampled_from(["margin", "win", "lose", "clip"]),
    low=st.sampled_from([None, 0.2]),
    high=st.sampled_from([None, 0.7]),
    sort=st.sampled_from(sorted(SORTS)),
)


def score_of(row: IndexRow, name: str) -> float:
    return {
        "margin": row.margin,
        "win": float(np.mean(row.win_identity)),
        "lose": float(np.mean(row.lose_identity)),
        "clip": abs(row.win_clip_t - row.lose_clip_t),
    }[name]


def is_wanted(row: IndexRow, wanted: Wanted) -> bool:
    score = score_of(row, wanted.score)
    text = wanted.text.lower()
    return (
        (not wanted.subject or wanted.subject in row.subject_ids)
        and (not wanted.class_name or wanted.class_name in row.class_names)
        and wanted.source in ("", row.source)
        and wanted.mode in ("", row.mode)
        and wanted.split in ("", row.split)
        and wanted.num_subjects in (None, row.num_subjects)
        and (not text or text in row.prompt.lower() or text in row.pair_id)
        and (wanted.low is None or score >= wanted.low)
        and (wanted.high is None or score <= wanted.high)
    )


@given(wanteds)
def test_what_is_selected_is_what_the_plain_way_selects(wanted: Wanted) -> None:
    expected = [row for row in ROWS if is_wanted(row, wanted)]
    if wanted.sort != "id":
        sign = -1 if wanted.sort.startswith("-") else 1
        expected.sort(key=lambda row: sign * score_of(row, wanted.sort.removeprefix("-")))
    found = COLUMNS.rows(COLUMNS.select(wanted))
    assert {row.pair_id for row in found} == {row.pair_id for row in expected}
    scores = [score_of(row, wanted.sort.removeprefix("-")) for row in found] if (
        wanted.sort != "id"
    ) else [row.offset for row in found]  # fmt: skip
    assert scores == sorted(scores, reverse=wanted.sort.startswith("-"))


def test_rows_come_back_as_they_were() -> None:
    assert COLUMNS.rows(range(len(ROWS))) == ROWS
    assert list(LazyRows(COLUMNS)) == ROWS and LazyRows(COLUMNS)[3:5] == ROWS[3:5]
    assert LazyRows(COLUMNS)[-1] == ROWS[-1]
    assert COLUMNS.find("0042") == 42 and COLUMNS.find("none") is None


def test_a_row_that_has_a_class_twice_counts_once() -> None:
    twice = dataclasses.replace(ROWS[0], class_names=("x", "x"), subject_ids=("a", "b"))
    columns = PairColumns.of(to_parquet([twice], IndexRow), "index")
    assert columns.classes.counts == {"x": 1}


def test_no_rows_at_all() -> None:
    columns = PairColumns.of(to_parquet([], IndexRow), "index")
    assert len(columns) == 0 and len(columns.select(Wanted(subject="a", sort="-win"))) == 0
    assert columns.mode.counts == {}


def test_a_damaged_index_is_named() -> None:
    with pytest.raises(UserError, match="index.parquet: not a readable Parquet"):
        PairColumns.of(b"PAR1 no", "index.parquet")
