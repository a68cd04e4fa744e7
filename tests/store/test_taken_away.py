"""A root whose folder is taken away while it is written: told so, and no part of it comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from focusdpo.data_schemas.errors import TakenAway
from focusdpo.store.local import LocalFiles

TOLD = "root: was taken away; run the same command again"


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    made = LocalFiles(tmp_path / "root")
    made.write("stages/first", b"whole")
    return made


def test_between_two_files(files: LocalFiles, tmp_path: Path) -> None:
    (tmp_path / "root").rename(tmp_path / "taken")
    for path in ("stages/second", "stages/new/third", "dataset.json"):
        with pytest.raises(TakenAway, match=TOLD):
            files.write(path, b"{}")
        assert not (tmp_path / "root").exists()
    again = LocalFiles(tmp_path / "root")
    again.write("dataset.json", b"{}")
    assert again.read("dataset.json") == b"{}", "who begins anew may make it"


@pytest.mark.parametrize("path", ["stages/new/file", "file"])
def test_in_the_middle_of_a_file(files: LocalFiles, tmp_path: Path, path: str) -> None:
    with pytest.raises(TakenAway, match=TOLD), files.create(path) as sink:
        sink.write(b"half")
        (tmp_path / "root").rename(tmp_path / "taken")
    assert not (tmp_path / "root").exists()
    assert not list((tmp_path / "taken").rglob("file"))


def test_no_lock_brings_it_back(files: LocalFiles, tmp_path: Path) -> None:
    tag = files.swap("lease", b"mine", None)
    (tmp_path / "root").rename(tmp_path / "taken")
    with pytest.raises(TakenAway, match=TOLD):
        files.swap("lease", b"again", tag)
    with pytest.raises(TakenAway, match=TOLD):
        files.remove("lease", tag)
    assert not (tmp_path / "root").exists()


def test_what_a_writer_misses_elsewhere_is_its_own(files: LocalFiles, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.create("other"):
        (tmp_path / "nowhere").read_bytes()
