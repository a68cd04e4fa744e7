"""The figure of the premise: does alignment rise as noise falls, and for which features?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focusdpo.flows.focus_figures import clean, new_figure, png

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
    figure.text(0.045, 1 - 0.2 / height, _title(premise), fontsize=12, va="top")
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


def _title(premise: Mapping[str, Any]) -> str:
    row = premise["configured"][0]
    subjects = ", ".join(f"{n} with {r}" for r, n in premise["pairs"]["by_subjects"].items())
    level = 100 * premise["settings"]["premise"]["level"]
    high, low = premise["sigmas"][0], premise["sigmas"][-1]
    told = "; ".join(
        f"{r['branch']}s {r['alignment']['mean'][0]:.2f} -> {r['alignment']['mean'][-1]:.2f} "
        f"({r['rise']:+.2f} [{r['rise_low']:+.2f}, {r['rise_high']:+.2f}])"
        for r in premise["configured"]
        if r["phase"] == "base"
    )
    return (
        "Does the method's premise hold: are references found on their subjects as noise falls?\n"
        f"Configured features ({row['kind']} at {row['blocks']}), base, A from sigma {high:g} to "
        f"{low:g}: {told}.\n"
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
        for name, style in levels.items():
            _level(axes, premise["sigmas"], name, style, shown)
        axes.set_title(title, fontsize=10)
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
