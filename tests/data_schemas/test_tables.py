"""Records survive Parquet exactly, for every record type, and damage is always noticed."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from focusdpo.data_schemas.candidates import Described, Disrupted, Instance, Sampled, Scored
from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.pairs import Pair, Reject
from focusdpo.data_schemas.runs import Artefact, EvalRow
from focusdpo.data_schemas.scenes import Scene
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.data_schemas.subjects import Subject
from focusdpo.data_schemas.tables import from_parquet, to_parquet

RECORDS = [
    Subject, Scene, Sampled, Disrupted, Instance, Described, Scored, Pair, Reject, Artefact,
    EvalRow, IndexRow,
]  # fmt: skip


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """All values of an annotation that a record may use."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return st.one_of(*(st.none() if a is type(None) else values_of(a) for a in args))
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple and Ellipsis in args:
        return st.lists(values_of(args[0]), max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, args))
    if origin is dict:
        return st.dictionaries(st.text(max_size=8), values_of(args[1]), max_size=4)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(
            hint, **{f.name: values_of(hints[f.name]) for f in dataclasses.fields(hint)}
        )
    return {
        str: st.text(max_size=12),
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False),
        bool: st.booleans(),
        bytes: st.binary(max_size=12),
    }[hint]


@pytest.mark.parametrize("record_type", RECORDS, ids=lambda r: r.__name__)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_round_trip_is_exact_and_bytes_depend_on_values_alone(record_type: type, data: Any) -> None:
    records = data.draw(st.lists(values_of(record_type), max_size=5))
    written = to_parquet(records, record_type)
    assert from_parquet(written, record_type) == records
    assert to_parquet([dataclasses.replace(r) for r in records], record_type) == written


def test_nan_and_infinity_survive() -> None:
    row = EvalRow(
        protocol="p", metric="m", group="g", model="b", mean=math.nan, low=-math.inf,
        high=math.inf, scenes=0,
    )  # fmt: skip
    (back,) = from_parquet(to_parquet([row], EvalRow), EvalRow)
    assert math.isnan(back.mean)
    assert (back.low, back.high) == (-math.inf, math.inf)


def test_order_of_a_dict_does_not_show_in_the_bytes() -> None:
    def artefact(files: dict[str, str]) -> Artefact:
        return Artefact(
            stage="s", key="k", partition="p", inputs=(), count=0, seconds=0.0, files=files
        )

    one, two = artefact({"a": "1", "b": "2"}), artefact({"b": "2", "a": "1"})
    assert to_parquet([one], Artefact) == to_parquet([two], Artefact)


@dataclass(frozen=True, slots=True, kw_only=True)
class Old:
    scene_id: str
    candidate_id: int
    note: str


def test_a_table_of_another_schema_is_refused_with_its_differences() -> None:
    data = to_parquet([Old(scene_id="s", candidate_id=3, note="n")], Old)
    with pytest.raises(UserError) as error:
        from_parquet(data, Reject, "stages/pair/x.tar")
    message = str(error.value)
    assert "stages/pair/x.tar" in message
    assert "field 'candidate_id' is int64, not string" in message
    assert "field 'reason' is missing" in message
    assert "field 'note' is unknown" in message


@dataclass(frozen=True, slots=True, kw_only=True)
class Newer(Old):
    shade: float = 0.5


def test_a_table_from_before_a_field_with_a_default_is_read() -> None:
    data = to_parquet([Old(scene_id="s", candidate_id=3, note="n")], Old)
    assert from_parquet(data, Newer) == [Newer(scene_id="s", candidate_id=3, note="n", shade=0.5)]
    with pytest.raises(UserError, match="field 'shade' is unknown"):
        from_parquet(to_parquet(from_parquet(data, Newer), Newer), Old)


def test_a_value_outside_its_literal_is_refused() -> None:
    bad = Reject(scene_id="s", candidate_id="c", source="disrupt", reason="mood", detail="")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'mood' is none of"):
        to_parquet([bad], Reject)


def sample_table() -> bytes:
    rows = [
        Reject(scene_id=f"s{i}", candidate_id=f"c{i}", source="rank", reason="surplus", detail="d")
        for i in range(20)
    ]
    return to_parquet(rows, Reject)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, len(sample_table()) - 1))
def test_a_truncated_table_is_refused(cut: int) -> None:
    with pytest.raises(UserError, match="here"):
        from_parquet(sample_table()[:cut], Reject, "here")


@settings(max_examples=100, deadline=None)
@given(at=st.integers(4, len(sample_table()) - 5), bit=st.integers(0, 7))
@example(at=551, bit=7)  # a field's name that is no UTF-8
def test_a_flipped_bit_never_raises_anything_else(at: int, bit: int) -> None:
    """What bytes the page checksums do not cover, the store's hash does (test_artefacts)."""
    damaged = bytearray(sample_table())
    damaged[at] ^= 1 << bit
    try:
        from_parquet(bytes(damaged), Reject, "here")
    except UserError as error:
        assert "here" in str(error)


def test_reading_starts_no_threads_of_arrow() -> None:
    """A process that ends while they still start may be aborted after all its work is done."""
    code = (
        "import pathlib\n"
        "from focusdpo.data_schemas.subjects import Reference\n"
        "from focusdpo.data_schemas.tables import from_parquet, to_parquet\n"
        "data = to_parquet([Reference(image='a', mask='b')] * 3, Reference)\n"
        "before = len(list(pathlib.Path('/proc/self/task').iterdir()))\n"
        "from_parquet(data, Reference)\n"
        "print(len(list(pathlib.Path('/proc/self/task').iterdir())) - before)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert ended.stdout.strip() == "0"
