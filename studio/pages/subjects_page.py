"""Subjects: the gallery, and one subject at length."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.subjects import Origin
from focusdpo.flows.build import sources
from focusdpo.flows.build.outcome import told
from focusdpo.flows.wiring import vocabulary
from focusdpo.pipeline.subjects import ingest
from focusdpo.pipeline.subjects.folders import NAME
from focusdpo.pipeline.subjects.near_duplicates import DuplicateConfig, near
from focusdpo.pipeline.subjects.registered_folders import cut_outs
from focusdpo.store.keys import image_key
from focusdpo.studio.columns import Wanted
from focusdpo.studio.drafts import clean
from focusdpo.studio.pages.upload_page import LICENCES
from focusdpo.studio.shared import Studio
from focusdpo.studio.version_reading import Dataset
from focusdpo.studio.views import NavItem, absent, page_of, render, studio_of, text_of

NAV = (NavItem("Subjects", "/subjects"),)
PAGE = 36
SHOWN_PAIRS = 12
SHOWN_SETS = 30
MOST_HASHED, MOST_ALIKE = 300, 60
"""New references that a page hashes unasked, and pairs of nearly equal ones that it shows."""
STATES = {
    "new": "registered, not built yet",
    "changed": "changed since the last build",
    "removed": "taken out; in the last build still",
    "built": "in the dataset",
}


@dataclass(frozen=True)
class Member:
    """A subject, registered or built."""

    id: str
    class_name: str
    licence: str
    references: int
    artefact: str
    state: str
    pairs: int
    added: str = ""
    changed: str = ""

    @property
    def pictures(self) -> list[tuple[str, str]]:
        """Keys of its pictures and their masks."""
        return [
            (
                image_key(ingest.STAGE, self.artefact, f"ref{at}.png"),
                image_key(ingest.STAGE, self.artefact, f"refmask{at}.png"),
            )
            for at in range(self.references)
        ]


def members(studio: Studio) -> dict[str, Member]:
    """All subjects, by id: those of the registry, and those that only the version still has."""
    dataset, registry = studio.dataset(), studio.registry()
    built: Mapping[str, Mapping[str, Any]] = {} if dataset is None else dataset.subjects
    counts = {} if dataset is None else dataset.pairs_by_subject
    everyone = {
        name: _member(subject, "built" if registry is None else "removed", counts.get(name, 0))
        for name, subject in built.items()
    }
    for name, entry in ({} if registry is None else registry.entries).items():
        had = built.get(name)
        state = "new" if had is None else "built" if had["digest"] == entry.digest else "changed"
        everyone[name] = _member(
            asdict(entry), state, counts.get(name, 0), added=entry.added, changed=entry.changed
        )
    return dict(sorted(everyone.items()))


def usable(studio: Studio) -> dict[str, Member]:
    """The subjects of the next version that files may be named after: a stranger's root may hold
    any name."""
    return {
        name: member
        for name, member in members(studio).items()
        if member.state != "removed" and NAME.fullmatch(name)
    }


def _member(
    values: Mapping[str, Any], state: str, pairs: int, added: str = "", changed: str = ""
) -> Member:
    names = ("id", "class_name", "licence", "references", "artefact")
    fields = {name: values[name] for name in names}
    return Member(**fields, state=state, pairs=pairs, added=added, changed=changed)


def gallery(request: Request) -> Response:
    """A picture of each, with its mask."""
    everyone = members(studio_of(request))
    text, state = text_of(request, "text").casefold(), text_of(request, "state")
    chosen = [
        member
        for member in everyone.values()
        if (not text or text in member.id.casefold() or text in member.class_name.casefold())
        and state in ("", member.state)
    ]
    page = page_of(request, len(chosen), PAGE)
    studio = studio_of(request)
    all_of_them = bool(text_of(request, "alike"))
    alike, not_looked = references_alike(studio, everyone.values(), all_of_them=all_of_them)
    latest = studio.latest()
    states = {name: sum(member.state == name for member in everyone.values()) for name in STATES}
    return render(
        request,
        "subjects.html.j2",
        chosen=chosen[page.start : page.stop],
        page=page,
        total=len(everyone),
        text=text_of(request, "text"),
        state=state,
        states={name: count for name, count in states.items() if count},
        words=STATES,
        alike=alike,
        not_looked=not_looked,
        told=[] if latest is None else told(studio.needed_store(), latest),
        most=MOST_ALIKE,
    )


@dataclass(frozen=True)
class Alike:
    """Two references that are nearly one picture: of a subject, or of two."""

    subjects: tuple[str, str]
    pictures: tuple[str, str]

    @property
    def within(self) -> bool:
        return self.subjects[0] == self.subjects[1]


def references_alike(
    studio: Studio, everyone: Iterable[Member], *, all_of_them: bool
) -> tuple[list[Alike], int]:
    """References of the next version that are nearly one, and how many pictures were not looked at:
    a page hashes `MOST_HASHED` new ones, unless all of them are asked for."""
    owners = [
        (member.id, key)
        for member in everyone
        if member.state != "removed"
        for key, _ in member.pictures
    ]
    left = studio.not_hashed(key for _, key in owners)
    if left > MOST_HASHED and not all_of_them:
        return [], left
    dataset = studio.dataset()
    bits = (DuplicateConfig() if dataset is None else dataset.duplicates).bits
    hashed = [
        (owner, value) for owner in owners if (value := studio.picture_hash(owner[1])) is not None
    ]
    alike = []
    for i, j in near([value for _, value in hashed], bits):
        (a, first), (b, second) = hashed[i][0], hashed[j][0]
        alike.append(Alike((a, b), (first, second)))
    return alike, 0


def subject(request: Request) -> Response:
    """One subject: pictures, masks, sets it stands in, pairs, rejects."""
    studio = studio_of(request)
    name = request.path_params["subject"]
    member = members(studio).get(name)
    if member is None:
        raise absent(f"no subject '{name}' is registered here or in the newest version")
    return _shown(request, member)


def _shown(request: Request, member: Member, *, said: str = "", status: int = 200) -> Response:
    studio = studio_of(request)
    dataset = studio.dataset()
    _, classes = vocabulary(studio.run.family)
    return render(
        request,
        "subject.html.j2",
        status,
        one=member,
        words=STATES,
        said=said,
        origin=_origin(studio, member),
        classes=sorted(classes or ()),
        licences=LICENCES,
        **(_yields(dataset, member.id) if dataset is not None else _NOTHING),
    )


def _origin(studio: Studio, member: Member) -> Origin | str:
    """What is told of where its pictures come from; what is wrong, where that cannot be read."""
    try:
        return ingest.origin_of(studio.needed_store(), member.artefact)
    except UserError as error:
        return str(error)


async def describe(request: Request) -> Response:
    """Another class or licence; the pictures stay."""
    form = await request.form(max_files=0, max_fields=10, max_part_size=4096)
    class_name, chosen, written = (
        " ".join(str(form.get(name, "")).split())
        for name in ("class_name", "licence_choice", "licence")
    )

    def change() -> Response:
        studio, member = studio_of(request), _member_of(request)
        try:
            licence = clean("licence", written or chosen)
            sources.describe(
                studio.run, studio.config.root, member.id, clean("class_name", class_name), licence
            )
        except UserError as error:
            message = re.sub("^class_name ", "Class: ", str(error))
            return _shown(request, member, said=message, status=400)
        return _back_to(member.id)

    return await run_in_threadpool(change)


def take_up(request: Request) -> Response:
    """A draft of the subject: its pictures and masks may be changed there."""
    studio, member = studio_of(request), _member_of(request)
    store = studio.needed_store()
    origin = ingest.origin_of(store, member.artefact)
    texts = {"name": member.id, "class_name": member.class_name, "licence": member.licence}
    draft = studio.drafts.take_up(
        {**texts, "source": origin.source, "consent": origin.consent},
        *(origin.person, cut_outs(store, member.pictures), studio.run, store),
    )
    return RedirectResponse(f"/add-subject/{draft.id}", 303)


def remove(request: Request) -> Response:
    """Out of the next version, as `focusdpo subjects remove` does; versions that are built stay."""
    studio, member = studio_of(request), _member_of(request)
    try:
        sources.remove(studio.config.root, [member.id])
    except UserError as error:
        return _shown(request, member, said=str(error), status=400)
    return RedirectResponse("/subjects", 303)


def _back_to(name: str) -> Response:
    return RedirectResponse(f"/subjects/{urllib.parse.quote(name)}", 303)


def _member_of(request: Request) -> Member:
    """The subject of an address that may be changed; 404 for one that is not in the next
    version."""
    member = usable(studio_of(request)).get(request.path_params["subject"])
    if member is None:
        raise absent("no subject of this name is registered")
    return member


_NOTHING: dict[str, Any] = {
    "dataset": None,
    "rows": [],
    "num_pairs": 0,
    "sets": [],
    "num_sets": 0,
    "rejects": {},
}


def _yields(dataset: Dataset, name: str) -> dict[str, Any]:
    places = dataset.pairs.select(Wanted(subject=name, sort="-margin"))
    spread = np.linspace(0, len(places) - 1, min(SHOWN_PAIRS, len(places))).round().astype(int)
    partitions = dataset.partitions
    sets = partitions.with_subject(name)
    return {
        "dataset": dataset,
        "rows": dataset.pairs.rows(places[spread]),
        "num_pairs": len(places),
        "sets": [
            (partitions.names[at], partitions.subject_ids[at], int(partitions.pairs[at]))
            for at in sets[:SHOWN_SETS]
        ],
        "num_sets": len(sets),
        "rejects": partitions.reject_counts(sets),
    }


def routes() -> list[BaseRoute]:
    address = "/subjects/{subject}"
    return [
        Route("/subjects", gallery),
        Route(address, subject),
        Route(f"{address}/describe", describe, methods=["POST"]),
        Route(f"{address}/take-up", take_up, methods=["POST"]),
        Route(f"{address}/remove", remove, methods=["POST"]),
    ]
