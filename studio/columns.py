"""The pairs of a version as columns, so that 100 000 of them are filtered and sorted in
milliseconds. Shapes: N pairs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.data_schemas.tables import arrow_table

Rows = NDArray[np.int64]
SORTS = {
    "id": "id",
    "margin": "margin, narrowest first",
    "-margin": "margin, widest first",
    "win": "winner's identity, lowest first",
    "-win": "winner's identity, highest first",
    "lose": "loser's identity, lowest first",
    "-lose": "loser's identity, highest first",
    "-clip": "CLIP-T apart, most first",
}
SCORES = {
    "margin": "margin",
    "win": "winner's identity",
    "lose": "loser's identity",
    "clip": "CLIP-T apart",
}


@dataclass(frozen=True)
class Wanted:
    """Which pairs, and in which order. Empty: any."""

    subject: str = ""
    class_name: str = ""
    source: str = ""
    mode: str = ""
    split: str = ""
    num_subjects: int | None = None
    text: str = ""
    """Part of the prompt, as it is stored or as pages show it, or of the id."""
    score: str = "margin"
    low: float | None = None
    high: float | None = None
    sort: str = "id"

    def __post_init__(self) -> None:
        if self.sort not in SORTS:
            raise UserError(f"sort '{self.sort}': expected one of {', '.join(SORTS)}")
        if self.score not in SCORES:
            raise UserError(f"score '{self.score}': expected one of {', '.join(SCORES)}")

    @property
    def narrows(self) -> bool:
        """Whether it leaves any pair out."""
        return dataclasses.replace(self, sort="id", score="margin") != Wanted()


class Codes:
    """A column of few different values, as numbers."""

    def __init__(self, column: Any) -> None:
        coded = column.combine_chunks().dictionary_encode()
        self.names: list[str] = coded.dictionary.to_pylist()
        self.values: NDArray[np.int64] = numbers(coded.indices).astype(np.int64)
        self._code = {name: code for code, name in enumerate(self.names)}

    def are(self, name: str) -> NDArray[np.bool_]:
        """Where the column has a value."""
        equal: NDArray[np.bool_] = self.values == self._code.get(name, -1)
        return equal

    @functools.cached_property
    def counts(self) -> Mapping[str, int]:
        """How often each is there, by name."""
        return self._named(self.values)

    def _named(self, values: NDArray[np.int64]) -> Mapping[str, int]:
        counts = np.bincount(values, minlength=len(self.names))
        return {name: int(counts[code]) for name, code in sorted(self._code.items())}


class ListCodes(Codes):
    """A column of lists of such values."""

    def __init__(self, column: Any) -> None:
        lists = column.combine_chunks()
        super().__init__(_chunked(lists.flatten()))
        lengths = np.diff(numbers(lists.offsets))
        self._rows = np.repeat(np.arange(len(lists)), lengths)
        self._num = len(lists)

    def are(self, name: str) -> NDArray[np.bool_]:
        """Which rows have the value among theirs."""
        rows = np.zeros(self._num, np.bool_)
        rows[self._rows[super().are(name)]] = True
        return rows

    @functools.cached_property
    def counts(self) -> Mapping[str, int]:
        """How many rows have each; a row counts once."""
        num = max(1, len(self.names))
        return self._named(np.unique(self._rows * num + self.values) % num)


NUMBERS = {"double": np.float64, "int64": np.int64, "int32": np.int32}


def numbers(column: Any) -> NDArray[Any]:
    """A column or array of numbers without nulls, as numpy sees its bytes. Arrow's own `to_numpy`
    imports pandas, which costs a first page half a second."""
    array = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    dtype, data = NUMBERS[str(array.type)], array.buffers()[1]
    if not len(array) or data is None:
        return np.empty(0, dtype)
    return np.frombuffer(data, dtype)[array.offset : array.offset + len(array)]


def _chunked(array: Any) -> Any:
    import pyarrow as pa

    return pa.chunked_array([array])


class PairColumns:
    """The index of a version."""

    def __init__(self, table: Any) -> None:
        self.table = table
        self.margin: NDArray[np.float64] = numbers(table["margin"])
        self.subjects = ListCodes(table["subject_ids"])
        self.classes = ListCodes(table["class_names"])
        self.source, self.mode = Codes(table["source"]), Codes(table["mode"])
        self.split = Codes(table["split"])
        self.num_subjects: NDArray[np.int64] = numbers(table["num_subjects"])
        self.win = _means(table["win_identity"])
        self.lose = _means(table["lose_identity"])
        self.clip: NDArray[np.float64] = np.abs(
            numbers(table["win_clip_t"]) - numbers(table["lose_clip_t"])
        )
        self.select = functools.lru_cache(maxsize=32)(self._select)

    @classmethod
    def of(cls, data: bytes, where: str) -> PairColumns:
        """From index.parquet's bytes. UserError for what is no index."""
        import pyarrow as pa

        try:
            table = arrow_table(data)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{where}: not a readable Parquet table ({error})") from error
        missing = {f.name for f in dataclasses.fields(IndexRow)} - set(table.column_names)
        if missing:
            raise UserError(
                f"{where}: no columns {', '.join(sorted(missing))}; build the dataset again"
            )
        return cls(table)

    def __len__(self) -> int:
        return len(self.margin)

    @functools.cached_property
    def _place(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.table["pair_id"].to_pylist())}

    def find(self, pair_id: str) -> int | None:
        """Where a pair stands."""
        return self._place.get(pair_id)

    def row(self, at: int) -> IndexRow:
        """A pair's record."""
        return self.rows([at])[0]

    def rows(self, places: Sequence[int] | Rows) -> list[IndexRow]:
        """Records of a few pairs."""
        records: list[dict[str, Any]] = self.table.take(_indices(places)).to_pylist()
        lists = ("subject_ids", "class_names", "win_identity", "lose_identity")
        return [
            IndexRow(**{**record, **{name: tuple(record[name]) for name in lists}})
            for record in records
        ]

    def _select(self, wanted: Wanted) -> Rows:
        """Places of the pairs that are wanted, in the order asked for."""
        kept = np.ones(len(self), np.bool_)
        for name, column in (
            (wanted.subject, self.subjects),
            (wanted.class_name, self.classes),
            (wanted.source, self.source),
            (wanted.mode, self.mode),
            (wanted.split, self.split),
        ):
            if name:
                kept &= column.are(name)
        if wanted.num_subjects is not None:
            kept &= self.num_subjects == wanted.num_subjects
        values = self.scores(wanted.score)
        if wanted.low is not None:
            kept &= values >= wanted.low
        if wanted.high is not None:
            kept &= values <= wanted.high
        if wanted.text:
            kept &= self._with(wanted.text)
        return self._sorted(np.flatnonzero(kept), wanted.sort)

    def scores(self, name: str) -> NDArray[np.float64]:
        """(N,) of a score of `SCORES`."""
        values: NDArray[np.float64] = getattr(self, name)
        return values

    def _with(self, text: str) -> NDArray[np.bool_]:
        import pyarrow as pa
        import pyarrow.compute as pc

        def has(column: Any) -> NDArray[np.bool_]:
            matches = pc.match_substring(column, text, ignore_case=True)
            return np.array(matches.to_pylist(), np.bool_)

        coded = self._prompts
        named = has(pa.array(coded.names, pa.string()))[coded.values]
        return np.asarray(named | has(self.table["pair_id"]), np.bool_)

    @functools.cached_property
    def _prompts(self) -> Codes:
        return Codes(self.table["prompt"])

    def _sorted(self, places: Rows, sort: str) -> Rows:
        if sort == "id":  # as the index is written
            return places
        values = self.scores(sort.removeprefix("-"))[places]
        order = np.argsort(-values if sort.startswith("-") else values, kind="stable")
        return places[order]


class LazyRows(Sequence[IndexRow]):
    """All records of a version, made when they are asked for."""

    def __init__(self, columns: PairColumns) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return self._columns.rows(range(*at.indices(len(self))))
        return self._columns.row(range(len(self))[at])

    def __iter__(self) -> Iterator[IndexRow]:
        return iter(self._columns.rows(range(len(self))))


def _indices(places: Sequence[int] | Rows) -> Any:
    import pyarrow as pa

    whole = np.ascontiguousarray(places, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(whole), [None, pa.py_buffer(whole)])


def _means(column: Any) -> NDArray[np.float64]:
    """(N,) means of lists; NaN of an empty one."""
    lists = column.combine_chunks()
    lengths = np.diff(numbers(lists.offsets))
    rows = np.repeat(np.arange(len(lists)), lengths)
    sums = np.bincount(rows, numbers(lists.flatten()), minlength=len(lists))
    return np.divide(sums, lengths, out=np.full(len(lists), np.nan), where=lengths > 0)
