"""Plain tar files whose bytes depend on their members alone, and whose members can be found by
offset: no times, no owners, USTAR headers."""

from __future__ import annotations

import functools
import io
import tarfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from focusdpo.data_schemas.errors import UserError

BLOCK = tarfile.BLOCKSIZE
RECORD = tarfile.RECORDSIZE
Span = tuple[int, int]
"""Offset and size in bytes."""


def member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, data and padding of one member."""
    return header(name, len(data)), data, bytes(-len(data) % BLOCK)


def header(name: str, size: int) -> bytes:
    """A member's header: what tarfile writes, several times as fast. All headers are one but for
    name, size and the sum of their bytes."""
    encoded = name.encode("ascii")
    if len(encoded) > 100 or size >= 8**11:
        return _slow_header(name, size)
    blank, total = _blank()
    digits = b"%011o" % size
    total += sum(encoded) + sum(digits)
    return b"".join(
        (encoded, bytes(100 - len(encoded)), blank[100:124], digits, blank[135:148])
        + (b"%06o\0 " % total, blank[156:])
    )


@functools.cache
def _blank() -> tuple[bytes, int]:
    """A header, and the sum of its bytes but for name and size; its own field counts as spaces."""
    made = bytearray(_slow_header("", 0))
    made[148:156] = b" " * 8
    return bytes(made), sum(made) - sum(made[124:135])


def _slow_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o444
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def append(sink: BinaryIO, name: str, data: bytes) -> int:
    """Write one member; the number of bytes written."""
    return sum(sink.write(piece) for piece in member(name, data))


def finish(sink: BinaryIO, written: int) -> int:
    """Write the end of a tar of `written` bytes; the number of bytes added."""
    end = 2 * BLOCK
    end += -(written + end) % RECORD
    sink.write(bytes(end))
    return end


def pack(named: Mapping[str, bytes]) -> tuple[bytes, dict[str, Span]]:
    """Members one after another in name order, with no end of tar, and where the data of each
    lies."""
    sink = io.BytesIO()
    spans: dict[str, Span] = {}
    written = 0
    for name in sorted(named):
        spans[name] = (written + BLOCK, len(named[name]))
        written += append(sink, name, named[name])
    return sink.getvalue(), spans


def members(data: bytes, where: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the members in `data`: a tar, or a run of members cut out of one.

    Raises UserError that names `where` for a damaged header or a truncated member.
    """
    offset = 0
    while offset < len(data):
        header = data[offset : offset + BLOCK]
        if not any(header):
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise UserError(f"{where}: damaged at byte {offset} ({error})") from error
        start = offset + BLOCK
        if info.size < 0:
            raise UserError(f"{where}: damaged at byte {offset} (a size below zero)")
        if start + info.size > len(data):
            raise UserError(f"{where}: truncated inside member '{info.name}'")
        yield info.name, data[start : start + info.size]
        offset = start + info.size + (-info.size % BLOCK)


def is_sound(data: bytes, where: str) -> bool:
    """Whether all bytes around the members' contents are those that `append` and `finish` write."""
    sink = io.BytesIO()
    try:
        written = sum(append(sink, name, content) for name, content in members(data, where))
    except UserError:
        return False
    finish(sink, written)
    return sink.getvalue() == data


def first_size(data: bytes, where: str) -> int:
    """Size of the first member of the tar that `data` begins; UserError when it begins none."""
    try:
        size = tarfile.TarInfo.frombuf(data[:BLOCK], "ascii", "strict").size
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not a tar file ({error})") from error
    if size < 0:
        raise UserError(f"{where}: not a tar file (a size below zero)")
    return size
