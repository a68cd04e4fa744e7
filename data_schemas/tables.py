"""Frozen records to Parquet bytes and back: typed, nested, exact, and the same bytes every time.

A record type is a dataclass whose fields are str, int, float, bool, bytes, Literal, tuples,
dict[str, X], other records, or one of these | None. pyarrow is imported on first use.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from focusdpo.data_schemas.errors import UserError

R = TypeVar("R")

Encode = Callable[[Any], Any]
Decode = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """How one annotation lies in Arrow: its type, and the way there and back."""

    arrow: Any
    nullable: bool
    encode: Encode
    decode: Decode


def to_parquet(records: Sequence[R], record_type: type[R]) -> bytes:
    """Parquet bytes of the records; equal records give equal bytes (one pyarrow version)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = _record(cast(type, record_type))
    rows = [column.encode(record) for record in records]
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(column.arrow)))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_page_checksum=True)
    return sink.getvalue()


def arrow_table(data: bytes, columns: Sequence[str] | None = None) -> Any:
    """Parquet bytes as an Arrow table; checksums are verified where pages have them.

    Raises pyarrow.ArrowException or OSError for bytes that are damaged. Read by this thread alone:
    a process that ends while Arrow's threads still start is aborted, or hangs
    (github.com/apache/arrow, issues 34314 and 50482).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    return file.read(columns=columns, use_threads=False)


def from_parquet(data: bytes, record_type: type[R], where: str = "table") -> list[R]:
    """The records in Parquet bytes; `where` names the file in errors.

    A field with a default may be missing: the table is from before there was one. Raises UserError
    for bytes that are no Parquet or are damaged, and for any other schema than the record type's.
    """
    import pyarrow as pa

    column = _record(cast(type, record_type))
    try:
        table = arrow_table(data)
        there = set(table.schema.names)
        expected = pa.schema([f for f in column.arrow if f.name in there | _required(record_type)])
        _check_schema(table.schema, expected, record_type.__name__, where)
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not a readable Parquet table ({_first_line(error)})") from error
    try:
        return [column.decode(row) for row in rows]
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _required(record_type: type[Any]) -> set[str]:
    """Fields without a default."""
    missing = dataclasses.MISSING
    return {
        field.name
        for field in dataclasses.fields(record_type)
        if field.default is missing and field.default_factory is missing
    }


def _check_schema(schema: Any, expected: Any, name: str, where: str) -> None:
    if schema.equals(expected):
        return
    lines = []
    for field in expected:
        index = schema.get_field_index(field.name)
        if index < 0:
            lines.append(f"field '{field.name}' is missing")
        elif not schema.field(index).equals(field):
            lines.append(f"field '{field.name}' is {schema.field(index).type}, not {field.type}")
    lines += [f"field '{name}' is unknown" for name in schema.names if name not in expected.names]
    what = "; ".join(lines) or "its fields stand in another order"
    raise UserError(
        f"{where}: not a table of {name}: {what}. It was written by another version of focusdpo; "
        "build it again, or read it with the version that wrote it."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@functools.cache
def _record(record_type: type) -> Column:
    """A dataclass as an Arrow struct."""
    import pyarrow as pa

    hints = typing.get_type_hints(record_type)
    columns = {field.name: _column(hints[field.name]) for field in dataclasses.fields(record_type)}
    fields = [pa.field(name, c.arrow, nullable=c.nullable) for name, c in columns.items()]
    encoders = [(name, c.encode) for name, c in columns.items()]
    decoders = [(name, c.decode) for name, c in columns.items()]
    return Column(
        pa.struct(fields),
        False,
        lambda record: {name: encode(getattr(record, name)) for name, encode in encoders},
        lambda row: record_type(
            **{name: decode(row[name]) for name, decode in decoders if name in row}
        ),
    )


def _column(hint: Any) -> Column:
    """The column of an annotation; TypeError for one that has none (a mistake of ours)."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _optional(hint, args)
    if origin is Literal:
        return _literal(args)
    if origin is tuple:
        return _tuple(hint, args)
    if origin is dict and args[0] is str:
        return _mapping(_column(args[1]))
    if dataclasses.is_dataclass(hint):
        return _record(cast(type, hint))
    return _scalar(hint)


def _scalar(hint: Any) -> Column:
    import pyarrow as pa

    arrow = {
        str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(),
        bytes: pa.binary(),
    }.get(hint)  # fmt: skip
    if arrow is None:
        raise TypeError(f"no column for {hint!r}")
    return Column(arrow, False, _same, _same)


def _optional(hint: Any, args: tuple[Any, ...]) -> Column:
    inner = [arg for arg in args if arg is not type(None)]
    if len(inner) != 1 or len(args) != 2:
        raise TypeError(f"no column for {hint!r}: only X | None")
    column = _column(inner[0])
    return Column(
        column.arrow,
        True,
        lambda value: None if value is None else column.encode(value),
        lambda value: None if value is None else column.decode(value),
    )


def _literal(choices: tuple[Any, ...]) -> Column:
    import pyarrow as pa

    if not all(isinstance(choice, str) for choice in choices):
        raise TypeError(f"no column for Literal{list(choices)}: only strings")

    def check(value: str) -> str:
        if value not in choices:
            raise UserError(f"'{value}' is none of {', '.join(sorted(choices))}")
        return value

    return Column(pa.string(), False, check, check)


def _tuple(hint: Any, args: tuple[Any, ...]) -> Column:
    import pyarrow as pa

    if len(set(args) - {Ellipsis}) != 1:
        raise TypeError(f"no column for {hint!r}: one type of item only")
    item = _column(args[0])
    length = None if Ellipsis in args else len(args)

    def encode(values: tuple[Any, ...]) -> list[Any]:
        if length is not None and len(values) != length:
            raise ValueError(f"{values!r} has {len(values)} items, expected {length}")
        return [item.encode(value) for value in values]

    return Column(
        pa.list_(pa.field("item", item.arrow, nullable=item.nullable)),
        False,
        encode,
        lambda values: tuple(item.decode(value) for value in values),
    )


def _mapping(item: Column) -> Column:
    import pyarrow as pa

    return Column(
        pa.map_(pa.string(), pa.field("value", item.arrow, nullable=item.nullable)),
        False,
        # Sorted, because equal dicts must give equal bytes.
        lambda values: [(key, item.encode(values[key])) for key in sorted(values)],
        lambda pairs: {key: item.decode(value) for key, value in pairs},
    )


def _same(value: Any) -> Any:
    return value
