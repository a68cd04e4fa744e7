"""Subjects that are being added: pictures and masks on disk until they are saved or given up.

<folder>/<draft>/draft.json     what was typed, and what is known of each picture
                 <n>.upload     a picture's bytes as they came
                 <n>.view.png   what the page shows
                 <n>.found.png  the mask that `subjects add` would find
                 <n>.mask.png   the mask as it was drawn; absent where nobody drew

No name that a visitor gives becomes part of a path: drafts and pictures have numbers of our own.
Masks are in pixels of the view, which is the picture, made smaller where it is large.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import (
    Picture,
    decode_mask,
    encode_png,
    read_picture,
)
from focusdpo.flows.build import sources
from focusdpo.flows.config import GenerateRun
from focusdpo.flows.wiring import resident_parts
from focusdpo.pipeline.subjects.cutouts import StoredMasks, find_subject
from focusdpo.pipeline.subjects.folders import CARD, SubjectCard
from focusdpo.pipeline.subjects.folders import NAME as SUBJECT_NAME
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import BESIDE, digests_in, require_whole, sealed, unsealed
from focusdpo.store.local import write_whole
from focusdpo.studio.pictures import Array, Mask, rescaled, view_of, with_alpha

log = logging.getLogger(__name__)

POCKET_SIDE = 96
"""Side of the pictures that the pocket segmenter reads."""
ANY = "object"


def found_mask(
    picture: Picture, run: GenerateRun, class_name: str, store: Store | None
) -> tuple[Mask, str]:
    """The mask of `view_of(picture)` that `subjects add` would find, and a note or "".

    As there, the segmenter is asked only where it belongs to the suite and the class is known.
    """
    finder = None
    if run.suite != "pocket" and store is not None and class_name:
        masks = StoredMasks(store, resident_parts(run.family).segmenter)
        finder = functools.partial(masks, class_name=class_name)
    _, alpha, note = find_subject(picture, run.ingest.size, run.ingest.tolerance, finder)
    height, width = view_of(picture).shape[:2]
    return rescaled(alpha > 127, (height, width)), note


class Instances:
    """What the suite's segmenter finds in a view; asked once per view and class."""

    MOST = 8

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Any, list[Mask]] = {}

    def of(self, view: Array, name: str, run: GenerateRun, class_name: str) -> list[Mask]:
        """All of them. `name` tells views apart."""
        with self._lock:
            key = (name, view.shape, class_name)
            if key not in self._known:
                while len(self._known) >= self.MOST:
                    del self._known[next(iter(self._known))]
                self._known[key] = _instances(view, run, class_name)
            return self._known[key]


def _instances(view: Array, run: GenerateRun, class_name: str) -> list[Mask]:
    words = tuple(dict.fromkeys([class_name or ANY, ANY]))
    segmenter = resident_parts(run.family).segmenter
    height, width = view.shape[:2]
    if run.suite != "pocket":
        (detections,) = segmenter.segment([view], [words])
        return [detection.mask for detection in detections]
    # The pocket segmenter reads small squares: white is put around, and taken away again.
    side = max(height, width)
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = view
    small = Image.fromarray(square).resize((POCKET_SIDE, POCKET_SIDE), Image.Resampling.BOX)
    (detections,) = segmenter.segment([np.array(small)], [words])
    masks = [rescaled(detection.mask, (side, side)) for detection in detections]
    return [mask[top : top + height, left : left + width] for mask in masks]


LONGEST_SHOWN = 80


def shown_name(name: str) -> str:
    """A file's name as it can be shown: no control or direction marks, not too long."""
    clean = "".join(
        sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for sign in unicodedata.normalize("NFC", name[:1000])
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


DRAFT = "draft.json"
FILES = ("upload", "view.png", "found.png", "mask.png")
"""Endings of a picture's files."""
ID = re.compile(r"[0-9a-f]{16}")
PICTURE_ID = re.compile(r"p\d+")
LONGEST = {"name": 64, "class_name": 60, "licence": 200, "source": 200, "consent": 300}
"""Texts of a subject, and how long they may be."""
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
    mask_note: str = ""
    """What its owner should know of the mask that was found."""

    @property
    def told(self) -> list[str]:
        """All that is to be known of it. Of the mask that was found, nothing once another is
        drawn."""
        return [*self.notes, *([self.mask_note] if self.mask_note and not self.drawn else [])]


@dataclass(frozen=True)
class Draft:
    """A subject to be."""

    id: str
    name: str = ""
    class_name: str = ""
    licence: str = ""
    source: str = ""
    person: bool = False
    consent: str = ""
    pictures: list[DraftPicture] = field(default_factory=list)
    again: bool = False
    """Whether it is a registered subject, taken up again."""

    def picture(self, id: str) -> DraftPicture:
        for picture in self.pictures:
            if picture.id == id:
                return picture
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
        return self._read(id)[0]

    def _read(self, id: str) -> tuple[Draft, dict[str, Any]]:
        """A draft, and what is stored of it. UserError for a damaged one."""
        file = self._place(id) / DRAFT
        try:
            values = unsealed(file.read_bytes())
            record = {BESIDE: values.pop(BESIDE, {})}
            pictures = [DraftPicture(**picture) for picture in values.pop("pictures")]
            draft = Draft(**values, pictures=pictures)
        except FileNotFoundError:
            return Draft(id), {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file}: damaged ({error}); remove {file.parent}") from error
        for picture in pictures:
            if not PICTURE_ID.fullmatch(picture.id):
                raise UserError(f"{file}: no picture can be called {picture.id[:80]!r}")
        return draft, record

    def _whole(self, id: str, name: str) -> Path:
        """A file of a draft. UserError when it is not what was written."""
        again = "take this picture out and bring it again"
        require_whole(self._place(id), self._read(id)[1], again, [name])
        return self._place(id) / name

    def list(self) -> list[Draft]:
        """Drafts with at least one picture, the one touched last first."""
        if not self._folder.is_dir():
            return []
        places = [place for place in self._folder.iterdir() if ID.fullmatch(place.name)]
        places.sort(key=lambda place: place.stat().st_mtime, reverse=True)
        return [draft for place in places if (draft := self._legible(place.name)).pictures]

    def _legible(self, id: str) -> Draft:
        """A damaged draft costs its own row, not the page."""
        try:
            return self.get(id)
        except UserError as error:
            log.warning("%s", error)
            return Draft(id)

    def fill_in(self, id: str, texts: Mapping[str, str], person: bool | None = None) -> Draft:
        """Keep what was typed: texts of the fields in LONGEST, and whether it is a person; what is
        not given stays. UserError for what is too long or no text."""
        with self._changing(id) as draft:
            kept: dict[str, Any] = {key: clean(key, value) for key, value in texts.items()}
            is_person = draft.person if person is None else person
            return self._put(replace(draft, **kept, person=is_person))

    def take_up(
        self, texts: Mapping[str, str], person: bool, pictures: Sequence[Image.Image],
        run: GenerateRun, store: Store,
    ) -> Draft:  # fmt: skip
        """A draft of a registered subject, from what is told of it and its references."""
        id = self.new_id()
        self.fill_in(id, texts, person)
        for at, picture in enumerate(pictures, 1):
            incoming = self.incoming()
            picture.save(incoming, format="PNG")
            self.add(id, f"reference {at}", incoming, run, store)
        with self._changing(id) as draft:
            return self._put(replace(draft, again=True))

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
            number = 1 + max((int(taken.id[1:]) for taken in draft.pictures), default=-1)
            mask, note = found_mask(picture, run, draft.class_name, store)
            place = self._place(id)
            taken = DraftPicture(
                id=f"p{number}",
                name=name,
                width=picture.image.shape[1],
                height=picture.image.shape[0],
                notes=list(picture.notes),
                mask_note=note,
            )
            write_whole(place / f"{taken.id}.view.png", encode_png(view_of(picture)))
            write_whole(place / f"{taken.id}.found.png", encode_png(mask))
            shutil.move(upload, place / f"{taken.id}.upload")
            self._put(replace(draft, pictures=[*draft.pictures, taken]))
            return taken

    def remove(self, id: str, picture: str) -> Draft:
        """Leave a picture out."""
        with self._changing(id) as draft:
            gone = draft.picture(picture)
            for suffix in FILES:
                (self._place(id) / f"{gone.id}.{suffix}").unlink(missing_ok=True)
            left = [picture for picture in draft.pictures if picture.id != gone.id]
            return self._put(replace(draft, pictures=left))

    def file(self, id: str, picture: str, what: str) -> Path:
        """A file of a picture: view, found or mask (found, where nobody drew)."""
        drawn = self.get(id).picture(picture)
        name = "found" if what == "mask" and not drawn.drawn else what
        return self._whole(id, f"{drawn.id}.{name}.png")

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
                wanted = decode_mask(self._whole(id, f"{old.id}.found.png").read_bytes()).shape
                if mask.shape != wanted:
                    raise UserError(
                        f"{old.name}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels, the "
                        f"picture {wanted[1]} x {wanted[0]}; load the page again"
                    )
                if not mask.any():
                    raise UserError(f"{old.name}: nothing is marked; paint over the subject first")
                write_whole(file, encode_png(mask))
            new = replace(old, drawn=mask is not None)
            pictures = [new if taken.id == old.id else taken for taken in draft.pictures]
            return self._put(replace(draft, pictures=pictures))

    def draw_as(self, id: str, picture: str, file: Path, shown: str, run: GenerateRun) -> Draft:
        """Keep the mask that another picture is, white where the subject is, or cut out."""
        taken = self.get(id).picture(picture)
        drawn = read_named(file, shown_name(shown), run)
        if drawn.image.shape[:2] != (taken.height, taken.width):
            raise UserError(
                f"{shown_name(shown)}: a mask of {drawn.image.shape[1]} x {drawn.image.shape[0]} "
                f"pixels for a picture of {taken.width} x {taken.height}, {taken.name}"
            )
        light = drawn.image.max(axis=2)
        light = light if drawn.alpha is None else np.minimum(light, drawn.alpha)
        view = decode_mask((self._place(id) / f"{taken.id}.found.png").read_bytes())
        height, width = view.shape
        return self.draw(id, picture, rescaled(light > 127, (height, width)))

    def save(self, id: str, run: GenerateRun, root: str, *, again: bool) -> sources.Done:
        """Register the subject, just as `focusdpo subjects add` (or update) does with a folder of
        these pictures; the draft is then gone. UserError, and the draft stays, when it cannot."""
        with self._changing(id) as draft:
            _check_whole(draft)
            with tempfile.TemporaryDirectory(dir=self._folder) as temporary:
                folder = Path(temporary) / draft.name
                folder.mkdir()
                card = {key: getattr(draft, key) for key in SubjectCard.model_fields}
                text = yaml.safe_dump({key: value for key, value in card.items() if value})
                (folder / CARD).write_text(text, encoding="utf-8")
                names = {}
                for at, picture in enumerate(draft.pictures, 1):
                    file = folder / f"{at:02d}.png"
                    names[str(file)] = picture.name
                    self._export(draft, picture, file, run)
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
        for place in self._folder.iterdir() if self._folder.is_dir() else ():
            if time.time() - place.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(place, ignore_errors=True)

    def incoming(self) -> Path:
        """A new file's path, for bytes that are still coming."""
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix="incoming-", dir=self._folder)
        os.close(handle)
        return Path(name)

    def _export(self, draft: Draft, shown: DraftPicture, file: Path, run: GenerateRun) -> None:
        upload = self._whole(draft.id, f"{shown.id}.upload")
        if not shown.drawn:
            shutil.copyfile(upload, file)
            return
        picture = read_named(upload, shown.name, run)
        with_alpha(picture, self.mask(draft.id, shown.id)).save(file, format="PNG")

    @contextmanager
    def _changing(self, id: str) -> Iterator[Draft]:
        with self._lock:
            self._place(id).mkdir(parents=True, exist_ok=True)
            yield self.get(id)

    def _put(self, draft: Draft) -> Draft:
        place = self._place(draft.id)
        names = [f"{picture.id}.{suffix}" for picture in draft.pictures for suffix in FILES]
        write_whole(place / DRAFT, sealed({**asdict(draft), BESIDE: digests_in(place, names)}))
        return draft

    def _place(self, id: str) -> Path:
        if not ID.fullmatch(id):
            raise UserError("no such draft; begin again at Add a subject")
        return self._folder / id


def clean(key: str, value: str) -> str:
    """A field of a subject as it is kept. UserError for what is too long or no text."""
    label = "Class" if key == "class_name" else key.capitalize()
    kept = " ".join(value.split())
    if len(kept) > LONGEST[key]:
        raise UserError(f"{label}: {len(kept)} characters; expected at most {LONGEST[key]}")
    if not kept.isprintable():
        raise UserError(f"{label}: holds control characters; expected plain text")
    return kept


def _check_whole(draft: Draft) -> None:
    if not SUBJECT_NAME.fullmatch(draft.name):
        raise UserError(
            f"Name: got '{draft.name}'; expected letters, digits, '-' and '_', as in mug-blue"
        )
    if not draft.pictures:
        raise UserError(f"{draft.name}: no picture yet; bring at least one")


IN_WORDS = (
    (r"^.*?: none of 1 subjects is usable\. ", ""),
    (r"^1 of 1 subject cannot be used, so none was registered: [^:]*: ", ""),
    (
        r"^.*: the generator does not know the class (.*); write a known class_name into .*$",
        r"Class: the models do not know \1; choose one of the list, or write object",
    ),
    (
        r"^.*: a person, and no consent; .*$",
        "Consent: the pictures show a person; write who consented, to what and when",
    ),
    (r"^.*: its name has no letters; .*$", "Class: the name has no letters; write a class"),
    (
        r"^subject ('.*') is registered already; .*$",
        r"Name: \1 is registered already; tick “Replace a registered subject of this name”, or "
        "choose another name",
    ),
    (
        r"^subject ('.*') is not registered(.*); new ones come with .*$",
        r"Name: \1 is not registered\2; untick “Replace a registered subject of this name”",
    ),
    (
        r"^.*: no dataset here; .*$",
        "Name: nothing is registered yet; untick “Replace a registered subject of this name”",
    ),
    (
        r"^subjects ('.*' and '.*') \(registered\) have the same name but for case .*$",
        r"Name: \1, which is registered, are the same but for case and separators; choose another",
    ),
)
"""What `subjects add` says, and how the page says it: by its own fields."""


def _in_words(message: str, names: dict[str, str], folder: Path, draft: Draft) -> str:
    """An error of `subjects add` with the visitor's names and fields in place of ours."""
    for pattern, words in IN_WORDS:
        message = re.sub(pattern, words, message, flags=re.DOTALL)
    for path, name in names.items():
        message = message.replace(path, name)
    return message.replace(str(folder), draft.name).replace(str(folder.parent), draft.name)
