"""Subjects that are being added: pictures and masks on disk until they are saved or given up.

<folder>/<draft>/draft.json     name, class, licence, and what is known of each picture
                 <n>.upload     a picture's bytes as they came
                 <n>.view.png   what the page shows
                 <n>.found.png  the mask that `subjects add` would find
                 <n>.mask.png   the mask as it was drawn; absent where nobody drew

No name that a visitor gives becomes part of a path: drafts and pictures have numbers of our own.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import (
    DECODE_ERRORS,
    Picture,
    decode_mask,
    encode_png,
    read_picture,
)
from focusdpo.flows.build import sources
from focusdpo.flows.config import GenerateRun
from focusdpo.pipeline.subjects.ingest import CARD
from focusdpo.pipeline.subjects.ingest import NAME as SUBJECT_NAME
from focusdpo.store.artefacts import Store
from focusdpo.studio.masks import Mask, found_mask, view_of, with_alpha

LONGEST_SHOWN = 80
LARGEST_SIDE = 2048
"""Of a drawn mask; a view is smaller."""


def shown_name(name: str) -> str:
    """A file's name as it can be shown: no control or direction marks, not too long."""
    clean = "".join(
        one if one.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for one in unicodedata.normalize("NFC", name[:1000])
    ).strip()
    if len(clean) > LONGEST_SHOWN:
        clean = f"{clean[: LONGEST_SHOWN - 20]}…{clean[-19:]}"
    return clean or "unnamed picture"


def read_named(file: Path, name: str, run: GenerateRun) -> Picture:
    """`read_picture`, whose errors call the picture by the visitor's name for it."""
    try:
        return read_picture(file, min_side=run.ingest.min_side, max_pixels=run.ingest.max_pixels)
    except UserError as error:
        raise UserError(str(error).replace(str(file), name)) from error


def drawn_mask(data: bytes) -> Mask:
    """A mask as a page's canvas sends it: PNG, white where the subject is."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if max(image.size) > LARGEST_SIDE:
                raise UserError("the mask is larger than any view; load the page again")
            return np.asarray(image.convert("RGB").getchannel(0)) > 127
    except UserError:
        raise
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise UserError("the mask did not arrive whole; try again") from error


ID = re.compile(r"[0-9a-f]{16}")
PICTURE_ID = re.compile(r"p\d+")
PICTURE = re.compile(r"p\d{1,3}")
LONGEST = {"name": 64, "class_name": 60, "licence": 200}
KEPT_SECONDS = 7 * 24 * 3600.0
"""A draft that nobody has touched for so long is taken away."""


@dataclass(frozen=True)
class DraftPicture:
    """A picture that was taken in."""

    id: str
    name: str
    """As the visitor's machine calls it, made fit to be shown."""
    width: int
    height: int
    notes: list[str]
    drawn: bool = False


@dataclass(frozen=True)
class Draft:
    """A subject to be."""

    id: str
    name: str = ""
    class_name: str = ""
    licence: str = ""
    pictures: list[DraftPicture] = field(default_factory=list)

    def picture(self, id: str) -> DraftPicture:
        for one in self.pictures:
            if one.id == id:
                return one
        raise UserError("this picture is no longer there; load the page again")


class Drafts:
    """All drafts of a studio. One change at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.RLock()

    @staticmethod
    def new_id() -> str:
        """A name for a draft, which is on disk from its first change on."""
        return secrets.token_hex(8)

    def get(self, id: str) -> Draft:
        """A draft; empty where nothing was stored under this name."""
        file = self._place(id) / "draft.json"
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Draft(id)
        pictures = [DraftPicture(**one) for one in values.pop("pictures")]
        for picture in pictures:
            if not PICTURE_ID.fullmatch(picture.id):
                raise UserError(f"{file}: no picture can be called {picture.id[:80]!r}")
        return Draft(**values, pictures=pictures)

    def list(self) -> list[Draft]:
        """Drafts with at least one picture, the one touched last first."""
        if not self._folder.is_dir():
            return []
        places = [one for one in self._folder.iterdir() if ID.fullmatch(one.name)]
        places.sort(key=lambda one: one.stat().st_mtime, reverse=True)
        return [draft for one in places if (draft := self.get(one.name)).pictures]

    def note(self, id: str, name: str, class_name: str, licence: str) -> Draft:
        """Keep what was typed. UserError for what is too long or no text."""
        with self._changing(id) as draft:
            values = {"name": name, "class_name": class_name, "licence": licence}
            clean = {key: _clean(key, value) for key, value in values.items()}
            return self._put(Draft(draft.id, **clean, pictures=draft.pictures))

    def add(
        self, id: str, shown: str, upload: Path, run: GenerateRun, store: Store | None
    ) -> DraftPicture:
        """Take a picture in; `upload` is moved. UserError names the picture by what the visitor
        calls it."""
        name = shown_name(shown)
        picture = read_named(upload, name, run)
        with self._changing(id) as draft:
            if len(draft.pictures) >= run.ingest.max_references:
                raise UserError(
                    f"{name}: {len(draft.pictures)} pictures are there, and no more are used of a "
                    "subject; remove one first"
                )
            number = 1 + max((int(one.id[1:]) for one in draft.pictures), default=-1)
            mask, note = found_mask(picture, run, draft.class_name, store)
            place = self._place(id)
            one = DraftPicture(
                id=f"p{number}",
                name=name,
                width=picture.image.shape[1],
                height=picture.image.shape[0],
                notes=[*picture.notes, *([note] if note else [])],
            )
            (place / f"{one.id}.view.png").write_bytes(encode_png(view_of(picture)))
            (place / f"{one.id}.found.png").write_bytes(encode_png(mask))
            shutil.move(upload, place / f"{one.id}.upload")
            self._put(replace(draft, pictures=[*draft.pictures, one]))
            return one

    def remove(self, id: str, picture: str) -> Draft:
        """Leave a picture out."""
        with self._changing(id) as draft:
            gone = draft.picture(picture)
            for suffix in ("upload", "view.png", "found.png", "mask.png"):
                (self._place(id) / f"{gone.id}.{suffix}").unlink(missing_ok=True)
            left = [one for one in draft.pictures if one.id != gone.id]
            return self._put(replace(draft, pictures=left))

    def file(self, id: str, picture: str, what: str) -> Path:
        """A file of a picture: view, found or mask (found, where nobody drew)."""
        one = self.get(id).picture(picture)
        name = "found" if what == "mask" and not one.drawn else what
        return self._place(id) / f"{one.id}.{name}.png"

    def mask(self, id: str, picture: str) -> Mask:
        return decode_mask(self.file(id, picture, "mask").read_bytes(), picture)

    def draw(self, id: str, picture: str, mask: Mask | None) -> Draft:
        """Keep a drawn mask; None goes back to the one that was found."""
        with self._changing(id) as draft:
            old = draft.picture(picture)
            file = self._place(id) / f"{old.id}.mask.png"
            if mask is None:
                file.unlink(missing_ok=True)
            else:
                wanted = decode_mask((self._place(id) / f"{old.id}.found.png").read_bytes()).shape
                if mask.shape != wanted:
                    raise UserError(
                        f"{old.name}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels, the "
                        f"picture {wanted[1]} x {wanted[0]}; load the page again"
                    )
                if not mask.any():
                    raise UserError(f"{old.name}: nothing is marked; paint over the subject first")
                file.write_bytes(encode_png(mask))
            new = replace(old, drawn=mask is not None)
            pictures = [new if one.id == old.id else one for one in draft.pictures]
            return self._put(replace(draft, pictures=pictures))

    def save(self, id: str, run: GenerateRun, root: str, *, again: bool) -> sources.Done:
        """Register the subject, just as `focusdpo subjects add` (or update) does with a folder of
        these pictures; the draft is then gone. UserError, and the draft stays, when it cannot."""
        with self._changing(id) as draft:
            _check_whole(draft)
            with tempfile.TemporaryDirectory(dir=self._folder) as temporary:
                folder = Path(temporary) / draft.name
                folder.mkdir()
                card = {"class_name": draft.class_name, "licence": draft.licence}
                text = yaml.safe_dump({key: value for key, value in card.items() if value})
                (folder / CARD).write_text(text, encoding="utf-8")
                names = {}
                for at, one in enumerate(draft.pictures, 1):
                    file = folder / f"{at:02d}.png"
                    names[str(file)] = one.name
                    self._export(draft, one, file, run)
                change = sources.update if again else sources.add
                try:
                    done = change(run, root, [folder])
                except UserError as error:
                    raise UserError(_in_words(str(error), names, folder, draft)) from error
            self.discard(id)
            return done

    def discard(self, id: str) -> None:
        """Forget a draft."""
        with self._lock:
            shutil.rmtree(self._place(id), ignore_errors=True)

    def clean(self) -> None:
        """Take away what nobody has touched for a week."""
        for one in self._folder.iterdir() if self._folder.is_dir() else ():
            if time.time() - one.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(one, ignore_errors=True)

    def incoming(self) -> Path:
        """A new file's path, for bytes that are still coming."""
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix="incoming-", dir=self._folder)
        os.close(handle)
        return Path(name)

    def _export(self, draft: Draft, one: DraftPicture, file: Path, run: GenerateRun) -> None:
        upload = self._place(draft.id) / f"{one.id}.upload"
        if not one.drawn:
            shutil.copyfile(upload, file)
            return
        picture = read_named(upload, one.name, run)
        with_alpha(picture, self.mask(draft.id, one.id)).save(file, format="PNG")

    @contextmanager
    def _changing(self, id: str) -> Iterator[Draft]:
        with self._lock:
            self._place(id).mkdir(parents=True, exist_ok=True)
            yield self.get(id)

    def _put(self, draft: Draft) -> Draft:
        file = self._place(draft.id) / "draft.json"
        part = file.with_suffix(".part")
        part.write_text(json.dumps(asdict(draft)), encoding="utf-8")
        part.replace(file)
        return draft

    def _place(self, id: str) -> Path:
        if not ID.fullmatch(id):
            raise UserError("no such draft; begin again at Add a subject")
        return self._folder / id


def _clean(key: str, value: str) -> str:
    said = {"name": "Name", "class_name": "Class", "licence": "Licence"}[key]
    clean = " ".join(value.split())
    if len(clean) > LONGEST[key]:
        raise UserError(f"{said}: {len(clean)} characters; expected at most {LONGEST[key]}")
    if not clean.isprintable():
        raise UserError(f"{said}: holds control characters; expected plain text")
    return clean


def _check_whole(draft: Draft) -> None:
    if not SUBJECT_NAME.fullmatch(draft.name):
        raise UserError(
            f"Name: got '{draft.name}'; expected letters, digits, '-' and '_', as in mug-blue"
        )
    if not draft.pictures:
        raise UserError(f"{draft.name}: no picture yet; bring at least one")


def _in_words(message: str, names: dict[str, str], folder: Path, draft: Draft) -> str:
    """An error of `subjects add` with the visitor's names in place of ours."""
    for path, name in names.items():
        message = message.replace(path, name)
    return message.replace(str(folder), draft.name)
