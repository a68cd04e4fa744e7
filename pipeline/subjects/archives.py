"""Subjects in a zip: a folder of pictures each, as `folders` reads them.

Nothing is unpacked: members are read one by one, within limits that do not trust what the archive
says of itself.
"""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.subjects.folders import (
    LIKE_A_CARD,
    UNSEEN,
    SubjectCard,
    is_picture,
    listed,
    masks_among,
    parse_card,
)

MOST_MEMBERS = 5000
MOST_SUBJECTS = 200
LARGEST_MEMBER = 50 * 2**20
LARGEST_WHOLE = 2 * 2**30
"""Bytes of all members that are read, unpacked."""
LARGEST_CARD = 64 * 1024
PIECE = 2**20


@dataclass(frozen=True)
class ArchivedSubject:
    """A folder of pictures in the archive."""

    name: str
    """The folder's, as it is: it may be none that a subject can have."""
    pictures: dict[PurePosixPath, PurePosixPath | None]
    """Picture -> its mask, or None; by name."""
    card: PurePosixPath | None
    notes: list[str]
    """What is ignored."""


class Archive:
    """A zip of subjects, open for reading."""

    def __init__(self, path: Path, shown: str) -> None:
        """UserError, which calls the file `shown`, when it is no zip, holds too much, or a member
        leads out of it, is a link or needs a password."""
        self._shown = shown
        self._left = LARGEST_WHOLE
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise UserError(f"{shown}: not a zip that can be read ({error})") from error
        try:
            self._members = {_name(info, shown): info for info in self._zip.infolist()}
            if len(self._zip.infolist()) > MOST_MEMBERS:
                raise UserError(f"{shown}: holds more than {MOST_MEMBERS} files; split it")
            self.notes: list[str] = []
            """What is ignored beside subjects."""
            self.subjects = list(self._subjects())
            if not self.subjects:
                raise UserError(
                    f"{shown}: holds no picture; expected a folder of pictures per subject"
                )
            if len(self.subjects) > MOST_SUBJECTS:
                raise UserError(f"{shown}: holds more than {MOST_SUBJECTS} subjects; split it")
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._zip.close()

    def card(self, subject: ArchivedSubject) -> SubjectCard:
        """What its card says, nothing when there is none. UserError when it is not readable."""
        if subject.card is None:
            return SubjectCard()
        return parse_card(self.read(subject.card, LARGEST_CARD), f"{self._shown}: {subject.card}")

    def read(self, name: PurePosixPath, most: int = LARGEST_MEMBER) -> bytes:
        """A member's bytes. UserError when it is damaged, or there are more than the limits."""
        where = f"{self._shown}: {name}"
        data = bytearray()
        try:
            with self._zip.open(self._members[name]) as member:
                while piece := member.read(PIECE):
                    data += piece
                    self._left -= len(piece)
                    if len(data) > most:
                        raise UserError(f"{where}: larger than {most} bytes")
                    if self._left < 0:
                        raise UserError(
                            f"{self._shown}: more than {LARGEST_WHOLE / 2**30:.3g} GiB unpacked; "
                            "split it"
                        )
        except UserError:
            raise
        except (
            *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError),
            *(NotImplementedError, RuntimeError, ValueError),
        ) as error:
            raise UserError(f"{where}: damaged, or packed in a way not known ({error})") from error
        return bytes(data)

    def _subjects(self) -> Iterator[ArchivedSubject]:
        by_folder: dict[PurePosixPath, list[PurePosixPath]] = {}
        for name, info in sorted(self._members.items()):
            hidden = any(part.startswith((".", "__")) for part in name.parts)
            if not info.is_dir() and not hidden and name.name.lower() not in UNSEEN:
                by_folder.setdefault(name.parent, []).append(name)
        full = {
            folder: [path for path in names if is_picture(path)]
            for folder, names in by_folder.items()
        }
        full = {folder: pictures for folder, pictures in full.items() if pictures}
        for folder, pictures in full.items():
            names = by_folder[folder]
            within = sum(folder in other.parents for other in full)
            if within > 1 or (within and not folder.name):
                strays = listed([picture.name for picture in pictures])
                self.notes.append(
                    f"{strays}: ignored, beside the subjects' folders; each subject has a folder of"
                    " its own"
                )
                continue
            masks = masks_among(pictures)
            mask_of = {picture: mask for mask, picture in masks.items()}
            cards = [name for name in names if LIKE_A_CARD.fullmatch(name.name)]
            other = [name.name for name in names if name not in pictures and name not in cards]
            yield ArchivedSubject(
                # pictures beside no folder are one subject, named as the archive
                name=folder.name or Path(self._shown).stem,
                pictures={
                    picture: mask_of.get(picture) for picture in pictures if picture not in masks
                },
                card=cards[0] if cards else None,
                notes=[f"{listed(other)}: ignored, no picture"] if other else [],
            )


def _name(info: zipfile.ZipInfo, shown: str) -> PurePosixPath:
    name = PurePosixPath(info.filename)
    if name.is_absolute() or ".." in name.parts or set("\\\0:") & set(info.filename):
        raise UserError(
            f"{shown}: a file in it is called {info.filename[:80]!r}, which leads out of its "
            "folder; nothing was taken from it"
        )
    if stat.S_ISLNK(info.external_attr >> 16):
        raise UserError(f"{shown}: {info.filename[:80]!r} is a link; pack the file itself")
    if info.flag_bits & 1:
        raise UserError(f"{shown}: needs a password; pack it without")
    return name
