"""`focusdpo generate`: reference pictures and a prompt -> a PNG that tells how it was made."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import read_picture
from focusdpo.data_schemas.scenes import candidate_seed
from focusdpo.flows.machine import packages
from focusdpo.flows.models_config import Family
from focusdpo.flows.preview import contact_sheet
from focusdpo.flows.wiring import build_part, vocabulary
from focusdpo.pipeline.compose import TEMPLATES
from focusdpo.pipeline.cutout import cut_out
from focusdpo.pipeline.ingest import IngestConfig
from focusdpo.pipeline.parts import Image, Mask, ReferenceImage


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to paint."""

    references: tuple[Path, ...]
    class_names: tuple[str, ...]
    prompt: str | None
    seed: int
    count: int
    adapter: str | None
    family: Family
    ingest: IngestConfig
    """How the references are read."""


def paint(request: Request, out: Path) -> dict[str, Any]:
    """Paint and write `out`; what its metadata say. UserError for bad input."""
    backgrounds, classes = vocabulary(request.family)
    _check(request, classes)
    prompt = request.prompt or TEMPLATES[len(request.references)].format(
        *request.class_names, background=backgrounds[0]
    )
    pictures = tuple(
        read_reference(path, word, request)
        for path, word in zip(request.references, request.class_names, strict=True)
    )
    seeds = [request.seed]
    seeds += [candidate_seed(request.seed, index) for index in range(1, request.count)]
    generator = build_part(request.family, "generator", adapter=request.adapter)
    painted = generator.generate([prompt] * len(seeds), [pictures] * len(seeds), seeds)
    about = {
        "prompt": prompt,
        "class_names": list(request.class_names),
        "references": [str(path) for path in request.references],
        "seeds": seeds,
        "adapter": request.adapter,
        "models": _model_names(request.family),
        "fingerprint": generator.fingerprint,
        "version": packages().get("focusdpo", ""),
    }
    columns = min(8, len(painted))
    image = (
        PillowImage.fromarray(painted[0])
        if len(painted) == 1
        else contact_sheet(painted, columns=columns)
    )
    _save(image, out, about)
    return about


def read_reference(path: Path, class_name: str, request: Request) -> ReferenceImage:
    """A picture file as build-dataset would ingest it."""
    config = request.ingest
    picture = read_picture(path, min_side=config.min_side, max_pixels=config.max_pixels)

    def find(image: Image) -> Mask | None:
        (found,) = build_part(request.family, "segmenter").segment([image], [(class_name,)])
        return found[0].mask if found else None

    finder = None if request.family == "pocket" else find
    image, mask, _ = cut_out(picture, config.size, config.tolerance, finder)
    if not mask.any():
        raise UserError(f"{path}: nothing is visible (alpha is 0 everywhere)")
    return ReferenceImage(image=image, mask=mask)


def _model_names(family: Family) -> str:
    return family if isinstance(family, str) else family.backbone.kind


def _check(request: Request, classes: frozenset[str] | None) -> None:
    pictures, words = len(request.references), len(request.class_names)
    if pictures != words:
        raise UserError(
            f"{pictures} --reference and {words} --class-name: give one class name per reference"
        )
    if pictures > max(TEMPLATES):
        raise UserError(f"{pictures} references: a scene has at most {max(TEMPLATES)} subjects")
    for word in request.class_names:
        if classes is not None and word not in classes:
            near = difflib.get_close_matches(word, classes, n=3, cutoff=0.5)
            hint = f"; near: {', '.join(near)}" if near else ""
            raise UserError(
                f"--class-name {word}: the generator does not know it{hint}; `object` stands for "
                "anything"
            )


def _save(image: PillowImage.Image, out: Path, about: dict[str, Any]) -> None:
    info = PngInfo()
    for name, value in about.items():
        if value is not None:
            info.add_text(f"focusdpo:{name}", str(value))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        image.save(out, format="PNG", pnginfo=info)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
