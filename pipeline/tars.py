"""Plain tar files whose bytes depend on their members alone, and whose members can be found by
offset: no times, no owners, USTAR headers."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from focusdpo.data_schemas.errors import UserError

BLOCK = tarfile.BLOCKSIZE
RECORD = tarfile.RECORDSIZE
Span = tuple[int, int]
"""Offset and size in bytes."""


def append(sink: BinaryIO, name: str, data: bytes) -> int:
    """Write one member, header and padding included; the number of bytes written."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o444
    header = info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    padding = -len(data) % BLOCK
    sink.write(header)
    sink.write(data)
    sink.write(bytes(padding))
    return len(header) + len(data) + padding


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
        if start + info.size > len(data):
            raise UserError(f"{where}: truncated inside member '{info.name}'")
        yield info.name, data[start : start + info.size]
        offset = start + info.size + (-info.size % BLOCK)


def first_size(data: bytes, where: str) -> int:
    """Size of the first member of the tar that `data` begins; UserError when it begins none."""
    try:
        return tarfile.TarInfo.frombuf(data[:BLOCK], "ascii", "strict").size
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not a tar file ({error})") from error
