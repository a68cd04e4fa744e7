"""Shards are written and read about as fast as by tarfile and webdataset alone."""

from __future__ import annotations

import tarfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.storage import IoBench, figures
from focusdpo.store import tars


def test_the_figures_are_measured_in_one_run(tmp_path: Path) -> None:
    found = figures(tmp_path, IoBench(samples=24, picture_bytes=4000, shards=2, repeats=3))
    assert [one.unit for one in found] == ["MiB/s", "", "MiB/s", ""]
    assert all(one.value > 0 for one in found)
    assert [one.limit for one in found] == [None, 1.25, None, 1 / 0.9]


@given(
    name=st.text("ab/.-_Z09", min_size=1, max_size=120),
    size=st.integers(0, 8**11 - 1) | st.just(8**11),
)
def test_headers_are_tarfiles_own(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    try:
        want: bytes | str = info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    except ValueError as error:
        want = str(error)
    try:
        got: bytes | str = tars.header(name, size)
    except ValueError as error:
        got = str(error)
    assert got == want
