"""Pictures of the report: small encoded images, mask overlays, heat maps, and the focus maps of one
pair over noise levels, as training left them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.images import XMP, mark_png
from focusdpo.reports.view import FocusGrid, FocusRow, Picture

PIXEL_ART = 128
"""Images up to this side are kept as PNG and enlarged with hard pixels."""
LARGEST = 320
"""Larger images are shrunk to this side and stored as JPEG, so that a report stays small."""

Array = NDArray[np.uint8]
Mask = NDArray[np.bool_]
PRIOR = (214, 51, 108)
_STOPS = np.array(
    [(18, 20, 60), (40, 60, 120), (60, 105, 140), (75, 150, 140), (120, 190, 115), (200, 220, 90),
     (253, 246, 178)], np.float32,
)  # fmt: skip
"""Dark blue to pale yellow, evenly, and the same to the colour-blind."""


def picture(
    image: NDArray[np.uint8] | Image.Image,
    alt: str,
    largest: int = LARGEST,
    *,
    painted: bool = False,
) -> Picture:
    """Encodes an RGB image (H, W, 3) or a grey one (H, W), of at most `largest` pixels a side; one
    that a model `painted` says so, as IPTC's DigitalSourceType in XMP."""
    pil = image if isinstance(image, Image.Image) else Image.fromarray(image)
    pil = pil.convert("RGB")
    out = io.BytesIO()
    if max(pil.size) <= PIXEL_ART:
        pil.save(out, "PNG", optimize=True)
        return _made(mark_png(out.getvalue(), painted), "image/png", pil, alt)
    if max(pil.size) > largest:
        pil.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    marks = {"xmp": XMP} if painted else {}
    pil.save(out, "JPEG", quality=85, optimize=True, **marks)
    return _made(out.getvalue(), "image/jpeg", pil, alt)


def _made(data: bytes, mime: str, pil: Image.Image, alt: str) -> Picture:
    return Picture(data=data, mime=mime, width=pil.width, height=pil.height, alt=alt)


def overlay(image: Array, mask: NDArray[Any], alt: str) -> Picture:
    """`focused`, encoded; mask (H, W), true or > 127 inside."""
    return picture(focused(image, mask if mask.dtype == np.bool_ else mask > 127), alt)


def heat_map(values: NDArray[Any], alt: str, *, low: float, high: float) -> Picture:
    """A map (h, w), one pixel per token, coloured from low (dark) to high (bright)."""
    return picture(heat(values.astype(np.float32), low, high), alt)


def focused(image: Array, mask: Mask) -> Array:
    """What lies outside the mask faded, the mask's border drawn."""
    inside = resized(mask, image.shape[:2])
    faded = 0.35 * image.mean(axis=2, keepdims=True) + 0.65 * 235.0
    out = np.where(inside[..., None], image, faded).astype(np.uint8)
    out[border(inside, max(1, max(image.shape[:2]) // 200))] = PRIOR
    return out


def resized(mask: Mask, shape: tuple[int, ...]) -> Mask:
    """The mask in another size, by nearest pixels."""
    if mask.shape == shape[:2]:
        return mask
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    larger = grey.resize((shape[1], shape[0]), Image.Resampling.NEAREST)
    return np.asarray(larger) > 127


def border(inside: Mask, width: int = 1) -> Mask:
    """Pixels inside with one outside within `width` steps."""
    core = inside
    for _ in range(width):
        padded = np.pad(core, 1, mode="edge")
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


def heat(values: NDArray[np.float32], low: float, high: float) -> Array:
    """(h, w) numbers as colours (h, w, 3)."""
    span = high - low if high > low else 1.0
    at = np.clip((np.nan_to_num(values) - low) / span, 0, 1) * (len(_STOPS) - 1)
    left = np.minimum(at.astype(int), len(_STOPS) - 2)
    share = (at - left)[..., None]
    mixed = _STOPS[left] * (1 - share) + _STOPS[left + 1] * share
    return mixed.round().astype(np.uint8)


def data_uri(value: Picture) -> str:
    """The picture as a data URI."""
    return f"data:{value.mime};base64,{base64.b64encode(value.data).decode('ascii')}"


_WORDS = (
    "The maps are the winner's, from features of the forward pass that training runs anyway. "
    "M_s is M_prior without M'."
)


def read_focus(path: Path) -> FocusGrid | None:
    """The maps of one pair, at the end of training, on the winner."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            info = json.loads((file.metadata() or {}).get("info", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); train again") from error
    return focus_grid(arrays, info)


def focus_grid(arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any]) -> FocusGrid | None:
    """Arrays as `model.focus_report` names them, S noise levels on an h x w grid of N tokens."""
    names = [str(name) for name in info.get("class_names", [])]
    sigmas = tuple(float(s) for s in arrays["sigmas"])
    grid = tuple(int(n) for n in arrays["grid"])
    rows: list[FocusRow] = []
    for phase, when in (("start", "before training"), ("end", "after training")):
        if f"{phase}.win.matched" in arrays:
            rows += _focus_rows(arrays, f"{phase}.win", when, grid, first=not rows)
    if not rows:
        return None
    references = sorted(name for name in arrays if name.startswith("ref") and name[3:].isdigit())
    words = [names[i] if i < len(names) else "" for i in range(len(references))]
    prompt = str(info.get("prompt", ""))
    return FocusGrid(
        explain=f"Pair {info.get('pair', '')}: \u201c{prompt}\u201d. {_WORDS}",
        sigmas=sigmas,
        context=(
            picture(arrays["win"], "winner", painted=True),
            picture(arrays["lose"], "loser", painted=True),
            *(
                picture(arrays[r], f"reference: {w}")
                for r, w in zip(references, words, strict=True)
            ),
        ),
        rows=tuple(rows),
    )


def _focus_rows(
    arrays: Mapping[str, NDArray[Any]],
    prefix: str,
    words: str,
    grid: tuple[int, ...],
    *,
    first: bool,
) -> list[FocusRow]:
    sigmas = arrays["sigmas"]
    weight = arrays[f"{prefix}.weight"]
    top = float(np.nanmax(weight)) if weight.size else 1.0
    still = [
        ("M_prior", "where the subjects stand", arrays["prior"], 1.0),
        ("M_d", "local detail of the winner's subjects", arrays["detail"], 1.0),
    ]
    moving = [
        ("M'", f"best matches of the references, {words}", arrays[f"{prefix}.matched"], 1.0),
        ("M_s", f"left to learn, {words}", arrays[f"{prefix}.structure"], 1.0),
        ("W", f"weight of the loss, {words}", weight, top),
    ]
    alignment = arrays.get(f"{prefix}.alignment")
    rows = []
    for symbol, explain, values, high in [*(still if first else []), *moving]:
        maps_SN = np.broadcast_to(values, (len(sigmas), values.shape[-1]))
        notes: tuple[str, ...] = ()
        if symbol == "M'" and alignment is not None:
            notes = tuple(f"A {a:.2f}" for a in alignment)
        rows.append(
            FocusRow(
                symbol=symbol,
                explain=explain,
                scale=f"0 to {high:.3g}",
                maps=tuple(
                    heat_map(
                        map_N.reshape(grid),
                        f"{symbol} at sigma {sigma:.2f}, {words}: mean {np.nanmean(map_N):.2f}",
                        low=0.0,
                        high=high,
                    )
                    for map_N, sigma in zip(maps_SN, sigmas, strict=True)
                ),
                notes=notes,
            )
        )
    return rows
