"""Several subjects at once: a folder or a zip, with a folder of pictures each, becomes drafts that
are looked at and saved together."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.wiring import vocabulary
from focusdpo.pipeline.subjects.archives import (
    LARGEST_CARD,
    MOST_SUBJECTS,
    Archive,
    ArchivedSubject,
)
from focusdpo.pipeline.subjects.folders import CARD, SubjectCard, class_name_of, parse_card
from focusdpo.studio.drafts import Draft, Drafts, shown_name
from focusdpo.studio.guard import body, pieces
from focusdpo.studio.pages.upload_page import LICENCES, as_json, draft_id
from focusdpo.studio.shared import Studio
from focusdpo.studio.views import render, studio_of

LARGEST_ARCHIVE = 500 * 2**20


def page(request: Request) -> Response:
    """All subjects that are not saved yet."""
    studio = studio_of(request)
    _, classes = vocabulary(studio.run.family)
    return render(
        request,
        "several.html.j2",
        drafts=[
            (draft, [as_json(draft, picture) for picture in draft.pictures])
            for draft in studio.drafts.list()[:MOST_SUBJECTS]
        ],
        classes=sorted(classes or ()),
        licences=LICENCES,
        megabytes=LARGEST_ARCHIVE // 2**20,
    )


async def begin(request: Request) -> Response:
    """A folder's draft: `name` is the folder's, the body its subject.yaml, or empty."""
    studio, draft = studio_of(request), draft_id(request)
    name = shown_name(request.query_params.get("name", ""))
    card = parse_card(await body(request, LARGEST_CARD, CARD), f"{name}/{CARD}")
    made = await run_in_threadpool(_begin, studio, draft, name, card)
    return JSONResponse({"name": made.name, "class_name": made.class_name})


async def archive(request: Request) -> Response:
    """A zip as the body of the request; its name in `name`. What cannot be used is told by name,
    and the others are taken."""
    studio = studio_of(request)
    name = shown_name(request.query_params.get("name", ""))
    incoming = await run_in_threadpool(studio.drafts.incoming)
    refusal = f"{name}: larger than {LARGEST_ARCHIVE // 2**20} MiB; split it"
    try:
        with incoming.open("wb") as sink:
            async for piece in pieces(request, LARGEST_ARCHIVE, refusal):
                sink.write(piece)
        taken, messages = await run_in_threadpool(_take, studio, incoming, name)
    finally:
        incoming.unlink(missing_ok=True)
    return JSONResponse({"drafts": taken, "messages": messages}, 201)


def _take(studio: Studio, path: Path, shown: str) -> tuple[int, list[str]]:
    """How many subjects were taken from a zip, and what is to be known of it."""
    taken, messages = 0, []
    with Archive(path, shown) as archive:
        messages += [f"{shown}: {note}" for note in archive.notes]
        for subject in archive.subjects:
            messages += [f"{shown_name(subject.name)}: {note}" for note in subject.notes]
            taken += _take_one(studio, archive, subject, messages)
    return taken, messages


def _take_one(
    studio: Studio, archive: Archive, subject: ArchivedSubject, messages: list[str]
) -> bool:
    drafts, most, name = studio.drafts, studio.run.ingest.max_references, shown_name(subject.name)
    id = Drafts.new_id()
    try:
        _begin(studio, id, name, archive.card(subject))
    except UserError as error:
        messages.append(str(error))
        _begin(studio, id, name, SubjectCard())
    if len(subject.pictures) > most:
        messages.append(f"{name}: {len(subject.pictures)} pictures, the first {most} are used")
    for picture, mask in list(subject.pictures.items())[:most]:
        incoming = drafts.incoming()
        try:
            incoming.write_bytes(archive.read(picture))
            kept = drafts.add(id, picture.name, incoming, studio.run, studio.store())
            if mask is not None:
                incoming.write_bytes(archive.read(mask))
                drafts.draw_as(id, kept.id, incoming, mask.name, studio.run)
        except UserError as error:
            messages.append(f"{name}: {error}")
        finally:
            incoming.unlink(missing_ok=True)
    if drafts.get(id).pictures:
        return True
    drafts.discard(id)
    messages.append(f"{name}: left out, it has no picture that can be used")
    return False


def _begin(studio: Studio, id: str, name: str, card: SubjectCard) -> Draft:
    """A draft with what a folder's name and card say."""
    _, classes = vocabulary(studio.run.family)
    word = card.class_name or _class_of(name, classes)
    origin = {key: getattr(card, key) for key in ("licence", "source", "consent")}
    return studio.drafts.fill_in(
        id, {"name": suggested(name), "class_name": word, **origin}, card.person
    )


def _class_of(name: str, classes: Collection[str] | None) -> str:
    try:
        return class_name_of(Path(name), SubjectCard(), classes)
    except UserError:
        return ""


def suggested(name: str) -> str:
    """The name of a subject that a folder's name is nearest to; "" where nothing is left of it."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).lstrip("-_").rstrip("-")[:64]


def routes() -> list[BaseRoute]:
    several = "/add-subject/several"
    return [
        Route(several, page),
        Route(f"{several}/zip", archive, methods=["POST"]),
        Route("/add-subject/{draft}/begin", begin, methods=["POST"]),
    ]
