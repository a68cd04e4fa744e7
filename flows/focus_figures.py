"""Figures of `focus-maps`: one pair's maps over noise levels, and the premise over many pairs.

Drawn with matplotlib's Agg, without its global state; the same numbers give the same bytes.
Shapes: S noise levels, R subjects, N target tokens on a grid of h x w.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Okabe and Ito's colours, told apart by the colour-blind.
REFERENCE_COLOURS = ("#E69F00", "#56B4E9", "#009E73")
SEVERAL = "#555555"
STRUCTURE = "#D55E00"
BRANCHES = (("win", "WINNER"), ("lose", "LOSER"))
PHASES = (("start", "base"), ("end", "with adapter"))
CELL = 0.95
"""Inches of a map's side."""
KEY = (
    "Outlines: where each subject stands (m_r).   M_prior (grey): what "
    "was repainted, the region that the loss is about.   M': the tokens that match each reference "
    "best, in its colour; dark grey where two claim one.\n"
    "A: share of M' that lies on its own subject.   M_s (red) = M_prior without M': high weight.   "
    "M_d (bright: much local detail) is on once A reaches tau = {tau:g}.   W: weight of the loss "
    "per token, mean 1 unless the settings say otherwise."
)


def new_figure(width: float, height: float) -> Any:
    """A figure with an Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any) -> bytes:
    """The figure's bytes, without the version and time that matplotlib would add."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def maps_figure(
    arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any], features: str, tau: float
) -> bytes:
    """Rows are maps, columns noise levels, winner left and loser right. `arrays` are named as
    `model.focus_report` names them, with `win_noisy` and `lose_noisy` (S, H, W, 3)."""
    phases = [one for one in PHASES if f"{one[0]}.win.matched" in arrays]
    num = len(arrays["sigmas"])
    rows = 2 + 4 * len(phases)
    width, height = (2 * num + 0.5) * CELL + 1.9, 3.35 + rows * CELL * 1.15
    figure = new_figure(width, height)
    left, right = 1.45 / width, 1 - 0.45 / width
    figure.text(left, 1 - 0.22 / height, _title(info, features), fontsize=11, va="top")
    head = figure.add_gridspec(
        *(1, 2 + len(info["class_names"])),
        **{"left": left, "right": left + (2 + len(info["class_names"])) * 1.35 / width},
        **{"top": 1 - 0.8 / height, "bottom": 1 - 1.95 / height, "wspace": 0.12},
    )
    _draw_pictures(figure, head, arrays, info)
    body = figure.add_gridspec(
        *(rows, 2 * num + 1),
        **{"left": left, "right": right, "top": 1 - 2.55 / height, "bottom": 0.75 / height},
        **{"wspace": 0.06, "hspace": 0.2, "width_ratios": [1] * num + [0.4] + [1] * num},
    )
    top = max(float(arrays[f"{p}.{b}.weight"].max()) for p, _ in phases for b, _ in BRANCHES)
    for half, (branch, words) in enumerate(BRANCHES):
        sheet = _Sheet(figure, body, arrays, half * (num + 1), branch, first=half == 0)
        sheet.draw_input(words)
        for at, (phase, when) in enumerate(phases):
            sheet.draw_phase(2 + 4 * at, phase, when, top)
    figure.text(left, 0.16 / height, KEY.format(tau=tau), fontsize=9, color="#333333")
    return png(figure)


def _title(info: Mapping[str, Any], features: str) -> str:
    return (
        f"Focus maps of pair {info['pair']} ({info['source']}): “{info['prompt']}”\n"
        f"features: {features}; noise falls from left to right"
    )


def _draw_pictures(
    figure: Any, grid: Any, arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any]
) -> None:
    """Winner, loser and references; a reference's frame has its colour."""
    shown = [("win", "winner", "#000000"), ("lose", "loser", "#000000")]
    shown += [
        (f"ref{i}", f"reference {i + 1}: {word}", REFERENCE_COLOURS[i % len(REFERENCE_COLOURS)])
        for i, word in enumerate(info["class_names"])
    ]
    for column, (name, words, colour) in enumerate(shown):
        axes = _bare(figure.add_subplot(grid[0, column]), colour, 2.5)
        axes.imshow(arrays[name], interpolation="nearest")
        axes.set_title(words, fontsize=8.5, color=colour if column > 1 else "black", pad=3)


def _bare(axes: Any, colour: str = "#999999", width: float = 0.6) -> Any:
    """No ticks; a thin frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color(colour)
        side.set_linewidth(width)
    return axes


class _Sheet:
    """One branch's half of the figure."""

    def __init__(
        self,
        figure: Any,
        grid: Any,
        arrays: Mapping[str, NDArray[Any]],
        column: int,
        branch: str,
        *,
        first: bool,
    ) -> None:
        self._figure, self._grid, self._arrays = figure, grid, arrays
        self._column, self._branch, self._first = column, branch, first
        self._shape = tuple(int(n) for n in arrays["grid"])
        self._subjects_Rhw = arrays["subjects"].reshape(-1, *self._shape) > 0.5

    def draw_input(self, words: str) -> None:
        """What the model is shown, and M_prior."""
        arrays = self._arrays
        for at, sigma in enumerate(arrays["sigmas"]):
            axes = self._axes(0, at, "x_t, decoded")
            axes.imshow(arrays[f"{self._branch}_noisy"][at], interpolation="nearest")
            axes.set_title(f"σ {sigma:.2f}", fontsize=9, pad=3)
            if at == 0:
                axes.text(
                    *(0, 1.36, f"{words}  →  denoising"),
                    **{"transform": axes.transAxes, "fontsize": 11, "weight": "bold"},
                )
            self._map(self._axes(1, at, "M_prior"), arrays["prior"], "Greys", 2.5)

    def draw_phase(self, row: int, phase: str, when: str, top: float) -> None:
        """M', M_s, M_d and W, as the base or with the adapter."""
        own = {
            name: self._arrays[f"{phase}.{self._branch}.{name}"]
            for name in ("matches", "structure", "alignment", "gate", "weight")
        }
        for at in range(len(self._arrays["sigmas"])):
            axes = self._axes(row, at, f"M'\n{when}")
            axes.imshow(self._claims(own["matches"][at]), interpolation="nearest")
            self._outline(axes, "black")
            axes.set_title(f"A {own['alignment'][at]:.2f}", fontsize=8, pad=2)
            structure = self._axes(row + 1, at, f"M_s\n{when}")
            self._map(structure, own["structure"][at], _one_colour(STRUCTURE), 1.0)
            detail = self._axes(row + 2, at, f"M_d\n{when}")
            if own["gate"][at] > 0:
                self._map(detail, self._arrays["detail"], "cividis", 1.0)
            else:
                detail.set_facecolor("#EEEEEE")
                detail.text(0.5, 0.5, "off", ha="center", va="center", fontsize=8, color="#888888")
            weight = self._axes(row + 3, at, f"W\n{when}")
            image = self._map(weight, own["weight"][at], "viridis", top)
            if not self._first and at == len(self._arrays["sigmas"]) - 1:
                self._scale(weight, image)

    def _axes(self, row: int, at: int, label: str) -> Any:
        axes = _bare(self._figure.add_subplot(self._grid[row, self._column + at]))
        if self._first and at == 0:
            axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9.5, labelpad=8)
        return axes

    def _map(self, axes: Any, values_N: NDArray[Any], colours: Any, high: float) -> Any:
        values = values_N.reshape(self._shape)
        image = axes.imshow(values, cmap=colours, vmin=0, vmax=high, interpolation="nearest")
        self._outline(axes)
        return image

    def _scale(self, axes: Any, image: Any) -> None:
        """A colour bar right of the last W."""
        place = axes.get_position()
        width = 0.09 / self._figure.get_figwidth()
        bar = self._figure.add_axes((place.x1 + width, place.y0, width, place.height))
        self._figure.colorbar(image, cax=bar)
        bar.tick_params(labelsize=6, length=2)

    def _claims(self, matches_RN: NDArray[Any]) -> NDArray[np.float64]:
        """M'_r by colour, (h, w, 3)."""
        from matplotlib.colors import to_rgb

        claimed_Rhw = matches_RN.reshape(-1, *self._shape) > 0.5
        picture = np.ones((*self._shape, 3))
        for at, claimed_hw in enumerate(claimed_Rhw):
            picture[claimed_hw] = to_rgb(REFERENCE_COLOURS[at % len(REFERENCE_COLOURS)])
        picture[claimed_Rhw.sum(0) > 1] = to_rgb(SEVERAL)
        return picture

    def _outline(self, axes: Any, one_colour: str | None = None) -> None:
        """The border of each subject's tokens, in its reference's colour or `one_colour`."""
        for at, inside_hw in enumerate(self._subjects_Rhw):
            colour = one_colour or REFERENCE_COLOURS[at % len(REFERENCE_COLOURS)]
            for (x0, y0), (x1, y1) in _edges(inside_hw):
                axes.plot((x0, x1), (y0, y1), color=colour, linewidth=1.7, clip_on=False)
        axes.set_xlim(-0.5, self._shape[1] - 0.5)
        axes.set_ylim(self._shape[0] - 0.5, -0.5)


def _edges(
    inside_hw: NDArray[np.bool_],
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Borders between inside and outside, in the coordinates of imshow."""
    padded = np.pad(inside_hw, 1)
    found = [
        ((x - 0.5, y - 0.5), (x + 0.5, y - 0.5))
        for y, x in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    ]
    found += [
        ((x - 0.5, y - 0.5), (x - 0.5, y + 0.5))
        for y, x in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    ]
    return found


def _one_colour(colour: str) -> Any:
    """From white to a colour."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("one", ["white", colour])


def clean(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Numbers of a record, None as NaN."""
    return np.array([np.nan if value is None else value for value in values], np.float64)
