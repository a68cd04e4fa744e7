"""Add a subject: pictures by drag and drop, points for its mask, the register."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import PICTURE_FORMATS, decode_png, encode_png
from focusdpo.flows.models_config import Family
from focusdpo.flows.wiring import resident_parts, takes_points, vocabulary
from focusdpo.pipeline.parts import Image, Labels, Mask, Points
from focusdpo.studio.drafts import ID, LONGEST, Draft, DraftPicture, Drafts, shown_name
from focusdpo.studio.guard import body, json_body, pieces, text
from focusdpo.studio.pictures import drawn_mask
from focusdpo.studio.views import NavItem, absent, render, studio_of

MOST_POINTS = 32
BELONGS = 1


@dataclass(frozen=True)
class Prompt:
    """At least one point belongs to the subject."""

    points: Points
    """In pixels of the view, inside of it."""
    labels: Labels


def read_prompt(values: dict[str, Any], size: tuple[int, int]) -> Prompt:
    """{"points": [[x, y], ...], "labels": [1, 0, ...]} for a view of `size` (rows, columns).
    UserError names the field that is wrong."""
    points, labels = values.get("points"), values.get("labels")
    if not isinstance(points, list) or not 1 <= len(points) <= MOST_POINTS:
        raise UserError(f"points: expected a list of 1 to {MOST_POINTS} places [x, y]")
    if not isinstance(labels, list) or len(labels) != len(points):
        raise UserError(f"labels: expected a list of {len(points)}, one for each point")
    for at, point in enumerate(points):
        if not _is_inside(point, size):
            raise UserError(
                f"points[{at}]: expected [x, y] inside the picture, x from 0 to {size[1] - 1} and "
                f"y from 0 to {size[0] - 1}"
            )
    for at, label in enumerate(labels):
        if type(label) is not int or label not in (0, BELONGS):
            raise UserError(f"labels[{at}]: expected {BELONGS} (belongs) or 0 (does not)")
    if BELONGS not in labels:
        raise UserError("labels: expected at least one point that belongs to the subject")
    return Prompt(np.array(points, np.float64), np.array(labels, np.int64))


def _is_inside(point: Any, size: tuple[int, int]) -> bool:
    if not isinstance(point, list) or len(point) != 2:
        return False
    return all(
        # To Python a bool is an int, and JSON may say NaN or Infinity: these are not in between.
        type(place) in (int, float) and 0 <= place <= most - 1
        for place, most in zip(point, (size[1], size[0]), strict=True)
    )


def mask_at(
    prompt: Prompt, view: Image, family: Family, instances: Callable[[], Sequence[Mask]]
) -> Mask:
    """The mask of all points together: what the segmenter makes of them where it takes points,
    else whole `instances`. UserError where nothing is marked."""
    segmenter = resident_parts(family).point_segmenter
    if segmenter is None:
        return whole_instances(prompt, instances(), view.shape[:2])
    mask = segmenter.segment_points(view, prompt.points, prompt.labels)
    if not mask.any():
        raise UserError("the segmenter marks nothing for these points; move them or use the brush")
    return mask


def whole_instances(prompt: Prompt, instances: Sequence[Mask], size: tuple[int, int]) -> Mask:
    """The smallest instance at each point that belongs, without those at the points that do not.
    UserError for a point at which there is none, and where nothing is left."""
    mask = np.zeros(size, bool)
    places = prompt.points.astype(int).tolist()
    # What does not belong comes last, in whichever order it was pointed at.
    for label, (x, y) in sorted(
        zip(prompt.labels, places, strict=True), key=lambda instance: -instance[0]
    ):
        there = [instance for instance in instances if instance[y, x]]
        if not there:
            raise UserError(f"the segmenter sees no subject at {x}, {y}; use the brush")
        smallest = min(there, key=lambda instance: int(instance.sum()))
        mask = mask | smallest if label == BELONGS else mask & ~smallest
    if not mask.any():
        raise UserError(
            "nothing is left: this segmenter knows whole subjects alone, and each was pointed at "
            "as not belonging too; use the eraser"
        )
    return mask


NAV = (NavItem("Add a subject", "/add-subject"),)
LARGEST_PICTURE = 50 * 1024 * 1024
LARGEST_MASK = 4 * 1024 * 1024
LICENCES = {
    "own pictures, all rights reserved": "my own, all rights reserved",
    "own pictures, free to use": "my own, free to use",
    "CC0-1.0": "CC0 1.0, public domain",
    "CC-BY-4.0": "CC BY 4.0",
    "CC-BY-SA-4.0": "CC BY-SA 4.0",
    "CC-BY-NC-4.0": "CC BY-NC 4.0, not for commerce",
    "MIT": "MIT",
}
"""What is stored, and what the choice says; another one is written in words."""
FILES = re.compile(r"view|mask|found")


def begin(request: Request) -> Response:
    """A new draft's page; drafts that were not saved are offered there."""
    return RedirectResponse(f"/add-subject/{Drafts.new_id()}", 303)


def page(request: Request) -> Response:
    """One draft."""
    studio = studio_of(request)
    draft = studio.drafts.get(draft_id(request))
    _, classes = vocabulary(studio.run.family)
    return render(
        request,
        "add_subject.html.j2",
        draft=draft,
        others=[other for other in studio.drafts.list() if other.id != draft.id],
        classes=sorted(classes or ()),
        megabytes=LARGEST_PICTURE // 2**20,
        most=studio.run.ingest.max_references,
        told=[as_json(draft, picture) for picture in draft.pictures],
        licences=LICENCES,
        formats={kind: f"image/{kind.lower()}" for kind in PICTURE_FORMATS},
    )


def editor(request: Request) -> Response:
    """The mask of one picture."""
    studio = studio_of(request)
    draft = studio.drafts.get(draft_id(request))
    picture = _picture(draft, request)
    return render(
        request,
        "mask.html.j2",
        draft=draft,
        picture=as_json(draft, picture),
        takes_points=takes_points(studio.run.family),
        most_points=MOST_POINTS,
    )


def file(request: Request) -> Response:
    """A picture's view or mask."""
    studio = studio_of(request)
    what = request.path_params["what"]
    if not FILES.fullmatch(what):
        raise absent("no such file")
    draft = studio.drafts.get(draft_id(request))
    picture = _picture(draft, request)
    return FileResponse(studio.drafts.file(draft.id, picture.id, what), media_type="image/png")


async def upload(request: Request) -> Response:
    """A picture as the body of the request; its name in `name`. Refused as soon as it is known to
    be too large."""
    studio = studio_of(request)
    draft = draft_id(request)
    name = shown_name(request.query_params.get("name", ""))
    incoming = await run_in_threadpool(studio.drafts.incoming)
    try:
        await _receive(request, incoming, name)
        store = await run_in_threadpool(studio_of(request).store)
        picture = await run_in_threadpool(
            studio.drafts.add, draft, name, incoming, studio.run, store
        )
    finally:
        incoming.unlink(missing_ok=True)
    return JSONResponse(as_json(studio.drafts.get(draft), picture), 201)


async def mask_file(request: Request) -> Response:
    """A picture that is the mask of another one."""
    studio = studio_of(request)
    name = shown_name(request.query_params.get("name", ""))
    incoming = await run_in_threadpool(studio.drafts.incoming)
    try:
        await _receive(request, incoming, name)
        await run_in_threadpool(
            studio.drafts.draw_as,
            *(draft_id(request), request.path_params["picture"], incoming, name, studio.run),
        )
    finally:
        incoming.unlink(missing_ok=True)
    return JSONResponse({})


def remove(request: Request) -> Response:
    """Leave a picture out."""
    studio_of(request).drafts.remove(draft_id(request), request.path_params["picture"])
    return JSONResponse({})


async def fill_in(request: Request) -> Response:
    """Keep what was typed."""
    studio, values = studio_of(request), await json_body(request)
    draft = await run_in_threadpool(studio.drafts.fill_in, draft_id(request), *_typed(values))
    return JSONResponse({"name": draft.name, "class_name": draft.class_name})


def _typed(values: Mapping[str, Any]) -> tuple[dict[str, str], bool | None]:
    """The texts of a subject that a request holds, and whether it shows a person. UserError names
    what is none."""
    person = values.get("person")
    if person is not None and not isinstance(person, bool):
        raise UserError("person: expected true or false")
    return {key: text(values, key) for key in LONGEST if key in values}, person


async def save(request: Request) -> Response:
    """Into the register, as `focusdpo subjects add` does."""
    studio, values = studio_of(request), await json_body(request)
    draft = draft_id(request)
    await run_in_threadpool(studio.drafts.fill_in, draft, *_typed(values))
    root = studio.config.root

    def register() -> Any:
        done = studio.drafts.save(draft, studio.run, root, again=values.get("replace") is True)
        studio_of(request).store(create=True)
        studio_of(request).forget()
        return done

    done = await run_in_threadpool(register)
    names = [*done.changed.changed, *done.changed.unchanged]
    return JSONResponse(
        {
            "subject": names[0],
            "unchanged": bool(done.changed.unchanged),
            "subjects": len(done.changed.registry.entries),
            "notes": done.notes,
        }
    )


def discard(request: Request) -> Response:
    """Give a draft up."""
    studio_of(request).drafts.discard(draft_id(request))
    return JSONResponse({})


async def draw(request: Request) -> Response:
    """Keep a drawn mask (PNG, white on black); an empty body goes back to the one found."""
    studio = studio_of(request)
    data = await body(request, LARGEST_MASK, "the mask")
    mask = drawn_mask(data) if data else None
    await run_in_threadpool(
        studio.drafts.draw, draft_id(request), request.path_params["picture"], mask
    )
    return JSONResponse({})


async def click(request: Request) -> Response:
    """The mask (PNG) of what all points together tell."""
    studio, values = studio_of(request), await json_body(request)

    def find() -> bytes:
        draft = studio.drafts.get(draft_id(request))
        picture = _picture(draft, request)
        view = decode_png(
            studio.drafts.file(draft.id, picture.id, "view").read_bytes(), picture.name
        )
        prompt = read_prompt(values, view.shape[:2])
        instances = functools.partial(
            studio.instances.of, view, f"{draft.id}/{picture.id}", studio.run, draft.class_name
        )
        try:
            return encode_png(mask_at(prompt, view, studio.run.family, instances))
        except UserError as error:
            raise UserError(f"{picture.name}: {error}") from error

    return Response(await run_in_threadpool(find), media_type="image/png")


async def _receive(request: Request, target: Path, name: str) -> None:
    most = LARGEST_PICTURE // 2**20
    refusal = f"{name}: larger than {most} MiB; scale it down, 2000 pixels a side are plenty"
    with target.open("wb") as sink:
        async for piece in pieces(request, LARGEST_PICTURE, refusal):
            sink.write(piece)


def draft_id(request: Request) -> str:
    """The draft that an address names; 404 for what cannot be one."""
    id: str = request.path_params["draft"]
    if not ID.fullmatch(id):
        raise absent("no such draft; begin again at Add a subject")
    return id


def _picture(draft: Draft, request: Request) -> DraftPicture:
    try:
        return draft.picture(request.path_params["picture"])
    except UserError as error:
        raise absent(str(error)) from error


def as_json(draft: Draft, picture: DraftPicture) -> dict[str, Any]:
    """A picture for the page, with its addresses."""
    where = f"/add-subject/{draft.id}/{picture.id}"
    addresses = {"view": f"{where}/view.png", "mask": f"{where}/mask.png", "edit": where}
    return asdict(picture) | {"notes": picture.told} | addresses


def routes() -> list[BaseRoute]:
    draft = "/add-subject/{draft}"
    picture = f"{draft}/{{picture}}"
    return [
        Route("/add-subject", begin),
        Route(draft, page),
        Route(f"{draft}/pictures", upload, methods=["POST"]),
        Route(f"{draft}/note", fill_in, methods=["POST"]),
        Route(f"{draft}/save", save, methods=["POST"]),
        Route(f"{draft}/discard", discard, methods=["POST"]),
        Route(picture, editor),
        Route(f"{picture}/remove", remove, methods=["POST"]),
        Route(f"{picture}/mask-file", mask_file, methods=["POST"]),
        Route(f"{picture}/draw", draw, methods=["POST"]),
        Route(f"{picture}/click", click, methods=["POST"]),
        Route(f"{picture}/{{what}}.png", file),
    ]
