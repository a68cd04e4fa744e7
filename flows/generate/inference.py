"""Painting from Python, in five lines; `focusdpo generate` does the same with the same code.

from focusdpo.flows.generate.inference import Generator
generator = Generator("pocket", adapter="runs/one/adapter")
subjects = [("rex.png", "dinosaur"), ("tom.png", "cat")]
pictures = generator("a dinosaur and a cat on snow", subjects, seeds=[0, 1])
pictures[0].save("out.png")

A painted picture tells how it was made, in the PNG's text chunks. Every field of `About` is a chunk
`focusdpo:<field>`: words as they are, everything else as JSON. No time and no host is in it, so
that the same order gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo
from pydantic import Field, ValidationError

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import (
    DECODE_ERRORS,
    Picture,
    check_size,
    contact_sheet,
    is_marked,
    mark_png,
    read_picture,
)
from focusdpo.data_schemas.prompts import MOST_SUBJECTS, caption, plural
from focusdpo.data_schemas.strict import StrictModel
from focusdpo.flows.config import GenerateRun
from focusdpo.flows.settings import parse_overrides, resolve
from focusdpo.flows.wiring import build_part, fingerprint_of, vocabulary
from focusdpo.pipeline.parts import Image, Mask, ReferenceImage
from focusdpo.pipeline.subjects.cutouts import cut_out
from focusdpo.pipeline.subjects.folders import known_classes
from focusdpo.sharing.marks import MarkConfig, marked
from focusdpo.store.local import make_folder, write_whole
from focusdpo.store.outputs import address_of, local
from focusdpo.store.provenance import ADAPTER_FOLDER, packages, require_kind

Subject = tuple[str | Path, str]
"""A picture's file and what it shows, as a word."""
MAX_PROMPT = 2000
"""Characters; text encoders read far fewer."""
MAX_SEED = 2**31 - 1

log = logging.getLogger(__name__)


PREFIX = "focusdpo:"


class ReferenceUsed(StrictModel):
    """A picture that the generator was shown."""

    file: str = Field(description="as it was given")
    sha256: str = Field(description="of the file's bytes")


class About(StrictModel):
    """All that decides a picture's pixels."""

    version: str = Field(description="of focusdpo")
    prompt: str
    class_names: tuple[str, ...]
    references: tuple[ReferenceUsed, ...]
    seeds: tuple[int, ...] = Field(description="one per picture of the sheet")
    columns: int = Field(1, ge=1, description="of the sheet")
    adapter: str | None = Field(None, description="folder, as it was given")
    adapter_digest: str | None = Field(None, description="sha256 of its weights")
    preset: str = Field(description="shipped preset or YAML file, as it was given")
    settings: dict[str, Any] = Field(description="resolved: models, sampling, reading of pictures")
    fingerprint: str = Field(description="of the base's weights and settings")

    def as_made(self) -> dict[str, Any]:
        """What two pictures must share to be the same; where files lay does not matter."""
        values = self.model_dump(mode="json", exclude={"adapter", "preset"})
        values["references"] = [reference.sha256 for reference in self.references]
        return values


@dataclass(frozen=True, eq=False)
class Painted:
    """One picture, or a sheet of several."""

    image: PillowImage.Image
    about: About
    marks: MarkConfig = MarkConfig()

    def png(self) -> bytes:
        """The file's bytes before it is signed: same picture, same bytes."""
        info = PngInfo()
        for name, value in self.about.model_dump(mode="json").items():
            if value is not None:
                text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
                info.add_text(f"{PREFIX}{name}", text)
        sink = io.BytesIO()
        self.image.save(sink, format="PNG", pnginfo=info)
        return mark_png(sink.getvalue(), self.marks.synthetic)

    def save(self, path: str | Path) -> Path:
        """Write the PNG, signed where there is a certificate; it appears whole. UserError when it
        cannot be signed or written."""
        path = Path(path)
        make_folder(path.parent)
        write_whole(path, marked(self.png(), self.marks))
        return path


def sheet(pictures: Sequence[Painted], columns: int | None = None) -> Painted:
    """Pictures of one order in rows; a single one stays as it is."""
    if len(pictures) == 1:
        return pictures[0]
    columns = min(columns or 8, len(pictures))
    arrays = [np.asarray(picture.image, dtype=np.uint8) for picture in pictures]
    seeds = tuple(seed for picture in pictures for seed in picture.about.seeds)
    about = pictures[0].about.model_copy(update={"seeds": seeds, "columns": columns})
    return Painted(contact_sheet(arrays, columns=columns), about, pictures[0].marks)


def read_about(path: str | Path) -> About:
    """What a PNG tells of itself. UserError when it is none, or not from `focusdpo generate`."""
    try:
        with PillowImage.open(path, formats=("PNG",)) as image:
            check_size(path, image.size)
            image.load()
            text = dict(getattr(image, "text", {}))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (*DECODE_ERRORS, PillowImage.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable PNG ({error})") from error
    fields = {
        name.removeprefix(PREFIX): value for name, value in text.items() if name.startswith(PREFIX)
    }
    if not fields:
        raise UserError(f"{path}: tells nothing of its making; it is not from `focusdpo generate`")
    words = {
        name for name, field in About.model_fields.items() if field.annotation in (str, str | None)
    }
    try:
        return About.model_validate(
            {name: value if name in words else json.loads(value) for name, value in fields.items()}
        )
    except (ValidationError, ValueError) as error:
        raise UserError(
            f"{path}: what it tells of its making cannot be read; it is damaged or from another "
            "version of focusdpo"
        ) from error


class Generator:
    """A backbone with or without an adapter. Models are loaded when the first picture is painted,
    and stay for the process's life."""

    def __init__(
        self,
        preset: str | GenerateRun = "pocket",
        adapter: str | Path | None = None,
        *,
        settings: Sequence[str] = (),
    ) -> None:
        """`preset` is a shipped one, a YAML file, or settings that are resolved; `adapter` a folder
        that `train` or `export adapter` wrote, or the address of one that `train` sent; `settings`
        change single ones, as in `["models.backbone.steps=8"]`. UserError without an adapter."""
        if not isinstance(preset, GenerateRun):
            preset = resolve(GenerateRun, {"preset": preset, **parse_overrides(settings)})
        self.run = preset
        self.adapter = None if adapter is None else address_of(adapter)
        self._folder = None if adapter is None else str(local(adapter))
        self.adapter_digest = None if self._folder is None else adapter_digest(self._folder)
        self.backgrounds, self.classes = vocabulary(self.run.family)

    def __call__(
        self, prompt: str | None, references: Sequence[Subject], seeds: Sequence[int] = (0,)
    ) -> list[Painted]:
        """One picture per seed, each painted by itself, so that it depends on nothing else. Without
        a prompt: the subjects on the suite's first background. UserError for bad input."""
        about = self.about(prompt, references, seeds)
        for word in unsaid(about.prompt, about.class_names):
            log.warning("%s", not_in_prompt(word, about.prompt))
        shown = tuple(self.read(file, word) for file, word in references)
        generator = build_part(self.run.family, "generator", adapter=self._folder)
        made = []
        for seed in seeds:
            (pixels,) = generator.generate([about.prompt], [shown], [seed])
            picture_about = about.model_copy(update={"seeds": (seed,)})
            made.append(Painted(PillowImage.fromarray(pixels), picture_about, self.run.marks))
        return made

    def about(
        self, prompt: str | None, references: Sequence[Subject], seeds: Sequence[int]
    ) -> About:
        """What the pictures of an order will tell. Loads no model. UserError for bad input."""
        words = tuple(word for _, word in references)
        self.check(words, seeds)
        if prompt is None:
            prompt = caption(words, self.backgrounds[0])
        return About(
            version=packages().get("focusdpo", ""),
            prompt=check_prompt(prompt),
            class_names=words,
            references=tuple(
                ReferenceUsed(file=str(file), sha256=file_digest(file)) for file, _ in references
            ),
            seeds=tuple(seeds),
            adapter=self.adapter,
            adapter_digest=self.adapter_digest,
            preset=self.run.preset,
            settings=self.run.model_dump(mode="json", exclude={"preset", "marks"}),
            fingerprint=fingerprint_of(self.run.family, "generator"),
        )

    def read(self, file: str | Path, word: str) -> ReferenceImage:
        """A picture file as build-dataset would ingest it."""
        config = self.run.ingest

        def find(image: Image) -> Mask | None:
            (detections,) = build_part(self.run.family, "segmenter").segment([image], [(word,)])
            return detections[0].mask if detections else None

        finder = None if self.run.family == "pocket" else find
        image, mask, _ = cut_out(self.picture(file), config.size, config.tolerance, finder, file)
        return ReferenceImage(image=image, mask=mask)

    def picture(self, file: str | Path) -> Picture:
        """A picture file, decoded within the limits. Loads no model."""
        config = self.run.ingest
        return read_picture(file, min_side=config.min_side, max_pixels=config.max_pixels)

    def check(self, words: Sequence[str], seeds: Sequence[int]) -> None:
        """UserError for words that the generator was not taught, too many subjects, bad seeds."""
        if not 1 <= len(words) <= MOST_SUBJECTS:
            raise UserError(
                f"{len(words)} references: a scene has 1 to at most {MOST_SUBJECTS} subjects"
            )
        for word in words:
            check_word(word, self.classes)
        bad = [seed for seed in seeds if not 0 <= seed <= MAX_SEED]
        if bad or not seeds:
            raise UserError(f"seeds {list(seeds)}: give at least one, each from 0 to {MAX_SEED}")


def again(
    picture: str | Path, references: Sequence[str | Path] = (), adapter: str | Path | None = None
) -> Painted:
    """Paint a picture of `focusdpo generate` once more from what it tells: the same bytes.

    Files that have moved are given as `references`, in order, and `adapter`. UserError for one that
    is missing or not what it was, and when the models are others than then.
    """
    about = read_about(picture)
    files = [str(file) for file in references] or [file.file for file in about.references]
    if len(files) != len(about.references):
        raise UserError(
            f"{picture}: was made from {len(about.references)} references; give as many"
        )
    run = resolve(GenerateRun, {**about.settings, "preset": "pocket"})
    marks = MarkConfig(synthetic=is_marked(Path(picture).read_bytes()))
    where = about.adapter if adapter is None else adapter
    if adapter is not None and about.adapter_digest is None:
        raise UserError(f"{picture}: was made without an adapter; leave --adapter out")
    generator = Generator(run, where)
    subjects = list(zip(files, about.class_names, strict=True))
    now = generator.about(about.prompt, subjects, about.seeds)
    for before, reference in zip(about.references, now.references, strict=True):
        if before.sha256 != reference.sha256:
            raise UserError(f"{reference.file}: not the picture that {picture} was made from")
    if now.adapter_digest != about.adapter_digest:
        raise UserError(f"{where}: not the adapter that {picture} was made with")
    if now.fingerprint != about.fingerprint:
        raise UserError(f"{picture}: was made by other models than the settings name here")
    if now.version != about.version:
        log.warning("%s: made by focusdpo %s, this is %s", picture, about.version, now.version)
    made = sheet(generator(about.prompt, subjects, about.seeds), about.columns)
    return Painted(made.image, about, marks)


def unsaid(prompt: str, words: Sequence[str]) -> list[str]:
    """The words of subjects that a prompt says neither in the singular nor in the plural. `object`
    stands for anything, and scripts without spaces hold a word anywhere."""
    text = f" {' '.join(re.findall(_WORD, prompt.lower()))} "

    def is_said(word: str) -> bool:
        if not word.isascii():
            return word.lower() in prompt.lower()
        forms = (" ".join(re.findall(_WORD, form.lower())) for form in (word, plural(word)))
        return any(f" {form} " in text for form in forms)

    return [word for word in dict.fromkeys(words) if word != "object" and not is_said(word)]


_WORD = r"[\w'-]+"


def not_in_prompt(word: str, prompt: str) -> str:
    """What to say of an `unsaid` word."""
    return (
        f"the {word} is not in the prompt '{prompt}', so it may not be painted: name every subject "
        "by its word"
    )


def check_word(word: str, classes: frozenset[str] | None) -> None:
    """UserError with near words for one that the generator was not taught."""
    if classes is None:
        check_prompt(word)
    elif word not in classes:
        raise UserError(
            f"--class-name {word}: the generator does not know it{known_classes(word, classes)}; "
            "`object` stands for anything"
        )


def check_prompt(prompt: str) -> str:
    """The prompt; UserError for an empty or overlong one and for control characters."""
    if not prompt.strip():
        raise UserError("the prompt is empty; say what is to be seen")
    if len(prompt) > MAX_PROMPT:
        raise UserError(f"the prompt has {len(prompt)} characters, at most {MAX_PROMPT} are taken")
    for at, sign in enumerate(prompt):
        if unicodedata.category(sign) in {"Cc", "Cs"}:
            raise UserError(
                f"the prompt's character {at + 1} is U+{ord(sign):04X}, a control character; "
                "write it on one line, as plain text"
            )
    return prompt


def adapter_digest(folder: str | Path) -> str:
    """sha256 of an adapter's weights. UserError when there are none."""
    require_kind(Path(folder), ADAPTER_FOLDER)
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{folder}: holds no adapter (*.safetensors); give a folder that train wrote"
        )
    return hashlib.sha256("".join(file_digest(file) for file in files).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes. UserError when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{path}: {what}") from error
