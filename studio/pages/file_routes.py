"""Addresses of pictures, and of style, scripts and icon from the package itself. Each names content
by digest, so a browser asks once and keeps it."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources

import numpy as np
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.shards import IndexRow, SampleImages
from focusdpo.reports.thumbnails import focused
from focusdpo.store.artefacts import Store
from focusdpo.store.keys import KEY, MEMBER, STAGE
from focusdpo.studio import pictures
from focusdpo.studio.pictures import Encoded
from focusdpo.studio.version_reading import Dataset
from focusdpo.studio.views import absent, studio_of

FOREVER = "max-age=31536000, immutable"
SIDE = 160
"""Pixels of a thumbnail's picture."""
LARGEST = 2048
NUMBERED = re.compile(r"(mask|ref|refmask)([0-9]{1,2})")
MOST_MASKS = 8
SIDES = ("win", "lose")
KINDS = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def answer(tag: str, picture: Encoded | None) -> Response:
    """The picture, or that the browser's copy is right."""
    headers = {"etag": f'"{tag}"', "cache-control": f"private, {FOREVER}"}
    if picture is None:
        return Response(status_code=304, headers=headers)
    return Response(picture.data, media_type=picture.mime, headers=headers)


def kept_picture(
    request: Request, tag: str, key: tuple[object, ...], make: Callable[[], Encoded]
) -> Response:
    """The picture of a tag, made where it is not kept; not for a browser that has it."""
    if request.headers.get("if-none-match", "") == f'"{tag}"':
        return answer(tag, None)
    return answer(tag, studio_of(request).kept.get(key, make))


def thumbnail(request: Request) -> Response:
    """Winner and loser of a pair, side by side and small."""
    dataset, row = _pair(request)
    key = (row.pair_id, row.digest, "small")

    def make() -> Encoded:
        return pictures.side_by_side(*dataset.win_and_lose(row), SIDE)

    return kept_picture(request, "-".join(key), key, make)


def pair_picture(request: Request) -> Response:
    """A picture of a pair's sample: win, lose, prior, difference, complexity, mask0, ref0, ..."""
    dataset, row = _pair(request)
    what = request.path_params["what"]
    key = (row.pair_id, row.digest, what)

    def make() -> Encoded:
        if what in SIDES:
            return pictures.encode(dataset.win_and_lose(row)[SIDES.index(what)], LARGEST)
        image = _drawn(dataset.sample(row.pair_id).images, what)
        if image is None:
            raise absent(f"pair {row.pair_id} has no picture '{what}'")
        return pictures.encode(image, LARGEST)

    return kept_picture(request, "-".join(key), key, make)


def _drawn(images: SampleImages, what: str) -> pictures.Array | None:
    if what == "prior":
        return focused(images.win, images.prior)
    if what == "difference":
        return pictures.difference(images.win, images.lose)
    if what == "complexity":
        return pictures.heat(images.complexity, 0.0, 1.0)
    if what == "masks":
        return pictures.outlined(images.win, images.masks, pictures.COLOURS)
    match = NUMBERED.fullmatch(what)
    if match is None or int(match[2]) >= len(images.masks):
        return None
    at = int(match[2])
    if match[1] == "mask":
        return pictures.outlined(images.win, [images.masks[at]], pictures.COLOURS[at:])
    if match[1] == "refmask":
        masks = [images.reference_masks[at]]
        return pictures.outlined(images.references[at], masks, pictures.COLOURS[at:])
    return images.references[at]


def _pair(request: Request) -> tuple[Dataset, IndexRow]:
    dataset, row = studio_of(request).pair_row(request.path_params["pair"])
    if row.digest != request.path_params["digest"]:
        raise absent(f"version {dataset.id} has no pair '{row.pair_id}' of these pictures")
    return dataset, row


def stored(request: Request) -> Response:
    """A picture of the store, with masks drawn in when asked: ?mask=KEY&prior=KEY&side=..."""
    store = studio_of(request).needed_store()
    key = "/".join(request.path_params[name] for name in ("stage", "key", "member"))
    masks = request.query_params.getlist("mask")
    prior = request.query_params.get("prior", "")
    side = _side(request.query_params)
    if len(masks) > MOST_MASKS or not all(map(_is_key, [key, *filter(None, [*masks, prior])])):
        raise absent("no such picture")
    parts = (key, *masks, prior, side)
    tag = re.sub(r"[^A-Za-z0-9]", "-", "~".join(map(str, parts)))[-400:]

    def make() -> Encoded:
        return pictures.encode(_with_masks(store, key, masks, prior), side)

    try:
        return kept_picture(request, tag, parts, make)
    except UserError as error:
        raise absent(str(error)) from error


def _with_masks(store: Store, key: str, masks: list[str], prior: str) -> pictures.Array:
    image = store.image(key)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    if prior:
        image = focused(image, store.mask(prior))
    drawn = [(store.mask(mask), at) for at, mask in enumerate(masks) if mask]
    return pictures.outlined(
        image,
        [mask for mask, _ in drawn],
        [pictures.COLOURS[at % len(pictures.COLOURS)] for _, at in drawn],
    )


def _is_key(key: str) -> bool:
    parts = key.split("/")
    return len(parts) == 3 and all(
        form.fullmatch(part) for form, part in zip((STAGE, KEY, MEMBER), parts, strict=True)
    )


def _side(query: QueryParams) -> int:
    text = query.get("side", str(LARGEST))
    if not text.isdecimal() or not 16 <= int(text) <= LARGEST:
        raise absent(f"side: expected 16 to {LARGEST}")
    return int(text)


def static(request: Request) -> Response:
    """A file of the package's folder `static`; addresses carry the files' hash."""
    name = request.path_params["name"]
    known = {file.name: file for file in (resources.files("focusdpo.studio") / "static").iterdir()}
    suffix = name.rpartition(".")[2]
    if name not in known or suffix not in KINDS:
        raise absent(f"no file '{name}'")
    headers = {"cache-control": f"public, {FOREVER}"}
    return Response(known[name].read_bytes(), media_type=KINDS[suffix], headers=headers)


def routes() -> list[BaseRoute]:
    return [
        Route("/static/{name}", static),
        Route("/thumbnails/{pair}/{digest}", thumbnail),
        Route("/pair-pictures/{pair}/{digest}/{what}", pair_picture),
        Route("/pictures/{stage}/{key}/{member}", stored),
    ]
