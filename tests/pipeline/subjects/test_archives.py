"""A zip of subjects: what it holds is read as a folder's; nothing leads out of it or grows without
bound."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.subjects import archives
from focusdpo.pipeline.subjects.archives import Archive


def packed(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return path


def test_folders_masks_and_cards_as_in_a_folder(tmp_path: Path) -> None:
    members = {
        "root/tom/00.jpg": b"j", "root/tom/00_mask.png": b"m",
        "root/tom/subject.yaml": b"licence: MIT",
        "root/rex/a.PNG": b"p", "root/rex/film.mp4": b"f", "root/.DS_Store": b"x",
        "__MACOSX/root/tom/._00.jpg": b"x", "root/tom/Thumbs.db": b"x", "root/empty/": b"",
        "root/words/readme.txt": b"w",
    }  # fmt: skip
    with Archive(packed(tmp_path / "x", **members), "mine.zip") as archive:
        rex, tom = archive.subjects
        assert (rex.name, [one.name for one in rex.pictures]) == ("rex", ["a.PNG"])
        assert rex.notes == ["film.mp4: ignored, no picture"] and not tom.notes
        ((picture, mask),) = tom.pictures.items()
        assert mask is not None and archive.read(picture) == b"j" and archive.read(mask) == b"m"
        assert archive.card(tom).licence == "MIT" and archive.card(rex).licence == ""
    with Archive(packed(tmp_path / "y", **{"1.png": b"p"}), "my-cat.zip") as archive:
        assert [one.name for one in archive.subjects] == ["my-cat"]


@pytest.mark.parametrize("root", ["", "root/"])
def test_a_picture_beside_subjects_is_no_subject(tmp_path: Path, root: str) -> None:
    members = {"stray.jpg": b"j", "tom/0.png": b"p", "rex/0.png": b"p"}
    path = packed(tmp_path / "x", **{f"{root}{name}": data for name, data in members.items()})
    with Archive(path, "mine.zip") as archive:
        assert [one.name for one in archive.subjects] == ["rex", "tom"]
        (note,) = archive.notes
        assert note.startswith("stray.jpg: ignored, beside the subjects' folders")


@pytest.mark.parametrize(
    "name", ["../out.png", "tom/../../out.png", "/etc/out.png", "tom\\..\\out.png", "c:out.png"]
)
def test_a_member_that_leads_out_costs_the_whole_archive(tmp_path: Path, name: str) -> None:
    path = packed(tmp_path / "x.zip", **{"tom/0.png": b"p", name: b"p"})
    with pytest.raises(UserError, match=r"x\.zip: a file in it is called .* leads out"):
        Archive(path, "x.zip")


def test_links_passwords_and_what_is_no_zip_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("tom/0.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as made:
        made.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        Archive(tmp_path / "link.zip", "link.zip")
    locked = bytearray(packed(tmp_path / "locked.zip", **{"tom/0.png": b"p"}).read_bytes())
    for at in (locked.index(b"PK\x03\x04") + 6, locked.index(b"PK\x01\x02") + 8):
        locked[at] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(UserError, match="needs a password"):
        Archive(tmp_path / "locked.zip", "locked.zip")
    for data in (b"", b"PK\x03\x04" + bytes(200), b"\x89PNG"):
        (tmp_path / "none.zip").write_bytes(data)
        with pytest.raises(UserError, match=r"none\.zip: not a zip"):
            Archive(tmp_path / "none.zip", "none.zip")
    with pytest.raises(UserError, match="holds no picture"):
        Archive(packed(tmp_path / "text.zip", **{"a/b.txt": b"x"}), "text.zip")


def test_what_unpacks_to_more_than_the_limits_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = packed(tmp_path / "bomb.zip", **{"a/0.png": bytes(60 * 2**20), "a/1.png": b"x"})
    assert bomb.stat().st_size < 100_000
    with Archive(bomb, "bomb.zip") as archive:
        first, second = archive.subjects[0].pictures
        with pytest.raises(UserError, match=r"^bomb\.zip: a/0\.png: larger than"):
            archive.read(first)
        assert archive.read(second) == b"x"
    monkeypatch.setattr(archives, "LARGEST_WHOLE", 2**20)
    with (
        Archive(bomb, "bomb.zip") as archive,
        pytest.raises(UserError, match=r"^bomb\.zip: more than 0.000977 GiB unpacked"),
    ):
        archive.read(first)
    monkeypatch.setattr(archives, "MOST_MEMBERS", 1)
    with pytest.raises(UserError, match="more than 1 files"):
        Archive(bomb, "bomb.zip")


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.zip", **{"tom/0.png": bytes(range(256)) * 40})
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)
    with Archive(path, "x.zip") as archive, pytest.raises(UserError, match=r"tom/0\.png: damaged"):
        archive.read(next(iter(archive.subjects[0].pictures)))
