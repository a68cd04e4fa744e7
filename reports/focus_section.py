"""Focus maps of one pair over noise levels, as training left them, for section 3 of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focusdpo.data_schemas.errors import UserError
from focusdpo.reports.thumbnails import heat_map, picture
from focusdpo.reports.view import FocusGrid, FocusRow

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
    """Arrays as `model.focus_levels` names them, S noise levels on an h x w grid of N tokens."""
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
    return FocusGrid(
        explain=f"Pair {info.get('pair', '')}: \u201c{info.get('prompt', '')}\u201d. {_WORDS}",
        sigmas=sigmas,
        context=(
            picture(arrays["win"], "winner"),
            picture(arrays["lose"], "loser"),
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
