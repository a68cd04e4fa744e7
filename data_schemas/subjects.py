"""A subject: what a team brings."""

from __future__ import annotations

from dataclasses import dataclass

ImageKey = str
"""Where an image lies in a store: "<stage>/<artefact key>/<member>.png"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One picture of a subject and the mask of the subject in it."""

    image: ImageKey
    """RGB on white outside the mask."""
    mask: ImageKey
    """Single channel, 0 or 255, same size as the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a subject's pictures come from, and whether it may be used."""

    source: str = ""
    person: bool = False
    consent: str = ""
    """Of a person: who consented, to what, and when."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A subject with at least one reference."""

    id: str
    """The folder's name: letters, digits, "-" and "_"."""
    class_name: str
    """The word that a prompt uses for it."""
    references: tuple[Reference, ...]
    licence: str
    digest: str
    """Content hash of class name, images and masks; a new digest is a changed subject."""
