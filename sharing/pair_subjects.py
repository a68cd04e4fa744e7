"""Who is shown in imported pairs: the subjects of all rows, with every reference of theirs."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import numpy as np

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.subjects import Subject
from focusdpo.pipeline.subjects.folders import NAME, known_classes
from focusdpo.pipeline.subjects.ingest import Cutout, FindSubject, IngestConfig, put_subject
from focusdpo.sharing.pair_pictures import read_reference
from focusdpo.sharing.pair_tables import TableRow
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import digest


class Gallery:
    """Subject -> its references, each once."""

    def __init__(
        self, config: IngestConfig, known: Collection[str] | None, find: FindSubject | None
    ) -> None:
        """`known`: the words that the generator was taught; None accepts any. `find` is asked where
        a reference has no mask and no uniform background."""
        self._config, self._known, self._find = config, known, find
        self._pictures: dict[str, dict[str, Cutout]] = {}
        self._class_names: dict[str, str] = {}
        self._licences: dict[str, str] = {}

    def take(self, row: TableRow) -> list[tuple[str, int]]:
        """Subject and number of its reference, for each of a row's. UserError names the row."""
        words = self._words(row)
        taken = []
        for subject, word in zip(row.record.subjects, words, strict=True):
            find = partial(self._find, class_name=word) if self._find else None
            image, mask = read_reference(row, subject, self._config, find)
            look = digest(np.where(mask[..., None], image, 255).tobytes() + mask.tobytes())
            name = subject.subject_id or f"subject-{look[:12]}"
            if not NAME.fullmatch(name):
                raise UserError(
                    f"{row.where}: subject '{name}': a name has letters, digits, '-' and '_' only"
                )
            if self._class_names.get(name, word) != word:
                raise UserError(
                    f"{row.where}: subject '{name}' is a {word} here and a "
                    f"{self._class_names[name]} in a row before"
                )
            taken.append((name, look, (image, mask), word, subject.licence))
        if len({name for name, *_ in taken}) < len(taken):
            raise UserError(f"{row.where}: two of its subjects have the same reference")
        places = []
        for name, look, cutout, word, licence in taken:
            pictures = self._pictures.setdefault(name, {})
            pictures.setdefault(look, cutout)
            self._class_names[name] = word
            self._licences[name] = self._licences.get(name) or licence
            places.append((name, list(pictures).index(look)))
        return places

    def _words(self, row: TableRow) -> list[str]:
        """The class words of a row's subjects: told, or the known ones in its prompt's order."""
        class_names = [subject.class_name for subject in row.record.subjects]
        if None in class_names:
            plain = "".join(sign if sign.isalnum() else " " for sign in row.record.prompt.lower())
            text = f" {' '.join(plain.split())} "
            known = [word for word in self._known or () if f" {word} " in text]
            guesses = sorted(known, key=lambda word: text.index(f" {word} "))
            if len(guesses) != len(class_names):
                raise UserError(
                    f"{row.where}: class_name: not told, and the prompt names {guesses or 'none'} "
                    f"for {len(class_names)} references; add the words, one per reference"
                )
            class_names = [word or guess for word, guess in zip(class_names, guesses, strict=True)]
        words = [str(word) for word in class_names]
        for word in words:
            if self._known is not None and word not in self._known:
                raise UserError(
                    f"{row.where}: class_name: the generator does not know '{word}'"
                    f"{known_classes(word, self._known)}; `object` stands for anything"
                )
        return words

    def store(self, store: Store, licence: str) -> dict[str, Subject]:
        """All of them, stored; `licence` is that of those for which no row tells one."""
        return {
            name: put_subject(
                store,
                id=name,
                class_name=self._class_names[name],
                pictures=list(pictures.values()),
                licence=self._licences[name] or licence,
            )
            for name, pictures in sorted(self._pictures.items())
        }
