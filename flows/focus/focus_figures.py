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
    `model.focus_levels` names them, with `win_noisy` and `lose_noisy` (S, H, W, 3)."""
    phases = [phase_of for phase_of in PHASES if f"{phase_of[0]}.win.matched" in arrays]
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
    prompt = str(info["prompt"])
    return (
        f"Focus maps of pair {info['pair']} ({info['source']}): “{prompt}”\n"
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
        arrays = {
            name: self._arrays[f"{phase}.{self._branch}.{name}"]
            for name in ("matches", "structure", "alignment", "gate", "weight")
        }
        for at in range(len(self._arrays["sigmas"])):
            axes = self._axes(row, at, f"M'\n{when}")
            axes.imshow(self._claims(arrays["matches"][at]), interpolation="nearest")
            self._outline(axes, "black")
            axes.set_title(f"A {arrays['alignment'][at]:.2f}", fontsize=8, pad=2)
            structure = self._axes(row + 1, at, f"M_s\n{when}")
            self._map(structure, arrays["structure"][at], _one_colour(STRUCTURE), 1.0)
            detail = self._axes(row + 2, at, f"M_d\n{when}")
            if arrays["gate"][at] > 0:
                self._map(detail, self._arrays["detail"], "cividis", 1.0)
            else:
                detail.set_facecolor("#EEEEEE")
                detail.text(0.5, 0.5, "off", ha="center", va="center", fontsize=8, color="#888888")
            weight = self._axes(row + 3, at, f"W\n{when}")
            image = self._map(weight, arrays["weight"][at], "viridis", top)
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
    edges = [
        ((x - 0.5, y - 0.5), (x + 0.5, y - 0.5))
        for y, x in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    ]
    edges += [
        ((x - 0.5, y - 0.5), (x - 0.5, y + 0.5))
        for y, x in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    ]
    return edges


def _one_colour(colour: str) -> Any:
    """From white to a colour."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("one", ["white", colour])


def clean(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Numbers of a record, None as NaN."""
    return np.array([np.nan if value is None else value for value in values], np.float64)


COLOURS = {"winner": "#0072B2", "loser": "#D55E00"}
SUBJECT_COLOURS = ("#E69F00", "#009E73", "#CC79A7")
STYLES = {"base": "-", "adapter": "--"}
MARKERS = {"base": "o", "adapter": "s"}
NUMBERED = 16
"""Tables of more blocks than this have colours without numbers."""

GAP = 0.95
"""Inches between a table and the next below."""

Row = Mapping[str, Any]


def premise_figure(premise: Mapping[str, Any]) -> bytes:
    """Curves of the configured features above, tables of A by block and noise below; with an
    adapter also what it changed. `premise` is what premise.json holds."""
    phases = list(dict.fromkeys(row["phase"] for row in premise["table"]))
    kinds = list(dict.fromkeys(row["kind"] for row in premise["table"]))
    blocks = list(dict.fromkeys(row["blocks"] for row in premise["table"]))
    side = max(1.6, (0.3 if len(blocks) <= NUMBERED else 0.12) * len(blocks))
    height = 5.5 + (side + GAP) * len(phases)
    figure = new_figure(15, height)
    figure.text(0.045, 1 - 0.2 / height, _premise_title(premise), fontsize=12, va="top")
    curves = figure.add_gridspec(
        *(1, 4),
        **{"left": 0.045, "right": 0.985, "top": 1 - 1.35 / height},
        **{"bottom": 1 - 4.55 / height, "wspace": 0.24},
    )
    _draw_curves(figure, curves, premise)
    figure.text(0.045, 1 - 5.12 / height, _table_words(premise), fontsize=9.5, va="top")
    tables = figure.add_gridspec(
        *(len(phases), len(kinds)),
        **{"left": 0.075, "right": 0.94, "top": 1 - 5.85 / height, "bottom": 0.5 / height},
        **{"hspace": GAP / side, "wspace": 0.07},
    )
    for row, phase in enumerate(phases):
        for column, kind in enumerate(kinds):
            axes = figure.add_subplot(tables[row, column])
            _draw_table(axes, premise, phase, kind, named=column == 0)
            if column == len(kinds) - 1:
                _scale(figure, axes)
    return png(figure)


def _premise_title(premise: Mapping[str, Any]) -> str:
    row = premise["configured"][0]
    subjects = ", ".join(f"{n} with {r}" for r, n in premise["pairs"]["by_subjects"].items())
    level = 100 * premise["settings"]["premise"]["level"]
    high, low = premise["sigmas"][0], premise["sigmas"][-1]
    branches = "; ".join(
        f"{r['branch']}s {r['alignment']['mean'][0]:.2f} -> {r['alignment']['mean'][-1]:.2f} "
        f"({r['rise']:+.2f} [{r['rise_low']:+.2f}, {r['rise_high']:+.2f}])"
        for r in premise["configured"]
        if r["phase"] == "base"
    )
    return (
        "Does the method's premise hold: are references found on their subjects as noise falls?\n"
        f"Configured features ({row['kind']} at {row['blocks']}), base, A from sigma {high:g} to "
        f"{low:g}: {branches}.\n"
        f"{len(premise['pairs']['ids'])} pairs of split {premise['split']} (by subjects: "
        f"{subjects}); bands and brackets are {level:g} % bootstrap intervals of the mean over "
        "pairs."
    )


def _table_words(premise: Mapping[str, Any]) -> str:
    rise, low = premise["best"]["rise"], premise["best"]["low_noise"]
    top = low["alignment"]["mean"][-1]
    return (
        "Tables: A of single blocks, in the order of the pass (black frame: configured). Base, "
        f"winners: largest rise with {rise['kind']} at {rise['blocks']} ({rise['rise']:+.2f}), "
        f"largest A at low noise with {low['kind']} at {low['blocks']} ({top:.2f})."
    )


ALONE = "all pairs show one subject alone,\nso there is no other reference"


def _draw_curves(figure: Any, grid: Any, premise: Mapping[str, Any]) -> None:
    rows = premise["configured"]
    lines = [(_name(row, rows), row, COLOURS[row["branch"]]) for row in rows]
    wanted = [r for r in premise["by_subjects"] if (r["phase"], r["branch"]) == ("base", "winner")]
    groups = [
        (f"{r['subjects']} subject{'s' * (r['subjects'] > 1)}", r, SUBJECT_COLOURS[i % 3])
        for i, r in enumerate(wanted)
    ]
    panels = (
        ("alignment", {"chance": ":"}, "A: share of matches on their own subject", lines),
        (
            "structure_share",
            {"structure_chance": ":", "structure_floor": "-."},
            "|M_s| / |M_prior|: what is left to learn",
            lines,
        ),
        ("alignment", {"chance": ":"}, "A of the base on winners, by subjects", groups),
        (
            "confusion",
            {"confusion_chance": ":"},
            "Subject tokens nearer another's reference",
            lines,
        ),
    )
    for column, (metric, levels, title, shown) in enumerate(panels):
        axes = figure.add_subplot(grid[0, column])
        for words, row, colour in shown:
            _line(axes, premise["sigmas"], row, metric, words, colour)
        axes.set_title(title, fontsize=10)
        if not any(row[metric]["pairs"] for _, row, _ in shown):
            axes.text(
                *(0.5, 0.5, f"nothing to show:\n{ALONE if metric == 'confusion' else 'no pairs'}"),
                **{"ha": "center", "va": "center", "transform": axes.transAxes, "fontsize": 9},
            )
            axes.set_axis_off()
            continue
        for name, style in levels.items():
            _level(axes, premise["sigmas"], name, style, shown)
        axes.set_xlabel("noise level σ (denoising goes right)", fontsize=9)
        axes.set_xlim(1, 0)
        axes.set_ylim(0, 1)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7.5, framealpha=0.85, loc="best")


def _name(row: Row, rows: Sequence[Row]) -> str:
    alone = len({other["phase"] for other in rows}) == 1
    return row["branch"] if alone else f"{row['branch']}, {row['phase']}"


def _line(
    axes: Any, sigmas: Sequence[float], row: Row, metric: str, words: str, colour: str
) -> None:
    """A mean over pairs with its band."""
    band = row[metric]
    if not band["pairs"]:
        return
    phase = row["phase"]
    axes.fill_between(
        *(sigmas, clean(band["low"]), clean(band["high"])),
        **{"color": colour, "alpha": 0.18 if phase == "base" else 0.08, "linewidth": 0},
    )
    axes.plot(
        *(sigmas, clean(band["mean"])),
        **{"color": colour, "linestyle": STYLES[phase], "marker": MARKERS[phase]},
        **{"markersize": 3.5, "linewidth": 1.6, "label": words},
    )


def _level(
    axes: Any,
    sigmas: Sequence[float],
    name: str,
    style: str,
    shown: Sequence[tuple[str, Row, str]],
) -> None:
    """What to compare with: one line, or one per colour where lines differ."""
    levels: dict[tuple[float | None, ...], str] = {}
    for _, row, colour in shown:
        if row[name][0] is not None:
            levels.setdefault(tuple(row[name]), colour)
    words = "M' exactly the subjects" if name == "structure_floor" else "random tokens"
    for at, (value, colour) in enumerate(levels.items()):
        axes.plot(
            sigmas,
            clean(value),
            color=colour if len(levels) > 1 else "#555555",
            linestyle=style,
            linewidth=1.4,
            label=words if at == 0 else None,
        )


def _draw_table(
    axes: Any, premise: Mapping[str, Any], phase: str, kind: str, *, named: bool
) -> None:
    """A by block and sigma on winners: of the base, or what the adapter adds to it."""
    base = _means(premise, "base", kind)
    values, colours, low, high = base, "viridis", 0.0, 1.0
    if phase != "base":
        values = _means(premise, phase, kind) - base
        high = max(0.05, float(np.abs(_all_changes(premise, phase)).max()))
        colours, low = "RdBu_r", -high
    axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
    blocks = [row["blocks"] for row in _places(premise, "base", kind)]
    words = blocks if named else [""] * len(blocks)
    axes.set_yticks(range(len(blocks)), words, fontsize=8 if len(blocks) <= NUMBERED else 5)
    axes.set_xticks(range(len(premise["sigmas"])), [f"{s:g}" for s in premise["sigmas"]])
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("σ", fontsize=9)
    chosen = premise["configured"][0]
    for at, block in enumerate(blocks):
        if kind == chosen["kind"] and block in chosen["blocks"].split("+"):
            axes.axhspan(at - 0.47, at + 0.47, fill=False, edgecolor="black", linewidth=2)
    what = "A of the base, winners" if phase == "base" else "change of A by the adapter"
    axes.set_title(f"{kind}: {what}", fontsize=10)
    if len(blocks) <= NUMBERED:
        _write_numbers(axes, values, low, high, signed=phase != "base")


def _scale(figure: Any, axes: Any) -> None:
    """A colour bar right of a table."""
    place = axes.get_position()
    bar = figure.add_axes((place.x1 + 0.012, place.y0, 0.01, place.height))
    figure.colorbar(axes.images[0], cax=bar).ax.tick_params(labelsize=7)


def _places(premise: Mapping[str, Any], phase: str, kind: str) -> list[Row]:
    wanted = (phase, "winner", kind)
    return [r for r in premise["table"] if (r["phase"], r["branch"], r["kind"]) == wanted]


def _means(premise: Mapping[str, Any], phase: str, kind: str) -> NDArray[np.float64]:
    """A by block and sigma."""
    return np.stack([clean(row["alignment"]["mean"]) for row in _places(premise, phase, kind)])


def _all_changes(premise: Mapping[str, Any], phase: str) -> NDArray[np.float64]:
    """Of every kind, so that all tables share a scale."""
    kinds = dict.fromkeys(row["kind"] for row in premise["table"])
    return np.stack(
        [_means(premise, phase, kind) - _means(premise, "base", kind) for kind in kinds]
    )


def _write_numbers(
    axes: Any, values: NDArray[np.float64], low: float, high: float, *, signed: bool
) -> None:
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            unit = (value - low) / (high - low)
            dark = abs(unit - 0.5) > 0.35 if signed else unit < 0.55
            axes.text(
                *(x, y, f"{round(value, 2) + 0.0:{'+' if signed else ''}.2f}"),
                **{"ha": "center", "va": "center", "fontsize": 7.5},
                **{"color": "white" if dark else "black"},
            )
