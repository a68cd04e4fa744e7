"""The files that tell an ablation: page, Markdown, curves, pictures, and the record itself.

Scenes are taken at even distances from the evaluation's order, so nobody picks.

Importing this module imports neither torch nor Prefect nor matplotlib.
"""

from __future__ import annotations

import io
import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from focusdpo.data_schemas.ablations import BASE, Ablation, Arm, to_json
from focusdpo.data_schemas.images import encode_png, mark_png
from focusdpo.evaluation.folder import EvaluationFolder
from focusdpo.reports import ablation_tables as tables
from focusdpo.reports.ablation_verdict import (
    Finding,
    Lookup,
    find,
    interval_of,
    settings_text,
    title_of,
)
from focusdpo.reports.metric_texts import KeyFigure, key_figure, metric_info, seconds_text
from focusdpo.reports.render import page
from focusdpo.reports.thumbnails import picture
from focusdpo.reports.view import Fact, Line, LineChart, Picture, Role, facts
from focusdpo.store.local import make_folder, write_whole

SERIES: tuple[Role, ...] = tuple(role for role in get_args(Role) if role.startswith("series"))
COLOURS = (
    "#8a6d3b", "#d1730f", "#b23a48", "#0b7a75", "#5b4bb5", "#07598c", "#7a7a7a", "#a8559b",
)  # fmt: skip
"""Of `series0` and so on; the page's are in `ablation.css`."""


def curve_charts(ablation: Ablation, *, deciding: bool) -> list[LineChart]:
    """A chart per metric that was looked at, the deciding ones or the others; a line per
    objective, always in the same colour."""
    labels = {arm.objective: arm.label for arm in ablation.arms}
    objectives = list(dict.fromkeys([*labels, *(p.objective for p in ablation.curves)]))
    drawn = [name for name in objectives if any(p.objective == name for p in ablation.curves)]
    charts = []
    for metric in dict.fromkeys(point.metric for point in ablation.curves):
        if (metric in ablation.deciding) != deciding:
            continue
        lines = []
        for place, name in enumerate(drawn):
            points = sorted(
                (p.step, p.value)
                for p in ablation.curves
                if p.objective == name and p.metric == metric and math.isfinite(p.value)
            )
            if points:
                steps, values = zip(*points, strict=True)
                role = SERIES[place % len(SERIES)]
                lines.append(Line(name=labels.get(name, name), x=steps, y=values, role=role))
        title = metric_info(metric).title
        charts.append(
            LineChart(
                title=f"{title}: difference to the base",
                explain="",
                x_label="training step",
                lines=tuple(lines),
                level=0.0,
                level_label="base",
            )
        )
    return [chart for chart in charts if chart.lines]


def curves_svg(charts: list[LineChart]) -> bytes:
    """The charts side by side under one legend; the same bytes for the same curves."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings = {"svg.hashsalt": "focusdpo", "font.size": 9, "svg.fonttype": "path"}
    with rc_context(settings):
        figure = Figure(figsize=(4.2 * len(charts), 4.0), layout="constrained")
        axes = figure.subplots(1, len(charts), squeeze=False)[0]
        for axis, chart in zip(axes, charts, strict=True):
            axis.axhline(0, color="#5f5a52", linewidth=0.8, linestyle="--")
            for line in chart.lines:
                colour = COLOURS[SERIES.index(line.role)]
                axis.plot(line.x, line.y, color=colour, label=_plain(line.name), marker=".")
            axis.set_title(_plain(chart.title), fontsize=10)
            axis.set_xlabel(chart.x_label)
            axis.spines[["top", "right"]].set_visible(False)
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _plain(text: str) -> str:
    """No mathtext: a dollar sign is a dollar sign. A leading underscore would hide a label."""
    return text.replace("$", r"\$").lstrip("_") or "?"


COLUMNS = 8
"""Scenes shown."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SceneColumn:
    """A scene: its prompt and its subjects' first references."""

    id: str
    prompt: str
    references: tuple[tuple[str, Pixels], ...]
    """(class name, picture)."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What is shown: `painted[arm][scene]` is (H, W, 3)."""

    scenes: tuple[SceneColumn, ...]
    arms: tuple[Arm, ...]
    painted: tuple[tuple[Pixels, ...], ...]
    source: str
    """What the trained arms were trained on."""
    of: int
    """Scenes there are."""


def read_grid(folder: Path, look: Lookup, columns: int = COLUMNS) -> Grid | None:
    """The base and the arms of the main source on some scenes; None where no pictures were kept.

    UserError when the record names pictures that are not there.
    """
    kept = look.ablation.pictures
    source = next(iter(look.sources), "")
    arms = tuple(a for a in look.ablation.arms if a.name in kept and a.source in ("", source))
    if BASE not in kept:
        return None
    # The base's evaluation, <evaluation>/images/base, tells which scenes there are.
    evaluation = EvaluationFolder((folder / kept[BASE]).parent.parent)
    prompts = evaluation.prompts
    names = evenly(list(prompts), columns)
    scenes = tuple(
        SceneColumn(name, prompts[name], _references(evaluation, name)) for name in names
    )
    left = EvaluationFolder(folder)
    painted = tuple(
        tuple(left.picture(f"{kept[arm.name]}/{name}-0.png") for name in names) for arm in arms
    )
    return Grid(scenes, arms, painted, source, len(prompts)) if scenes else None


def evenly(items: Sequence[str], count: int) -> list[str]:
    """`count` items in their order, from the middles of equal stretches."""
    count = min(count, len(items))
    return [items[(2 * at + 1) * len(items) // (2 * count)] for at in range(count)]


def _references(evaluation: EvaluationFolder, scene: str) -> tuple[tuple[str, Pixels], ...]:
    """A scene's subjects are named after it: the first 8 digits of its id, place, class."""
    return tuple(
        (subject.class_name, evaluation.picture(subject.pictures[0]))
        for name, subject in evaluation.subjects.items()
        if name.startswith(f"{scene[:8]}-") and subject.pictures
    )


def reference_tile(scene: SceneColumn, height: int, width: int) -> Image.Image:
    """A scene's references in one tile: one fills it, more share it as quarters."""
    tile = Image.new("RGB", (width, height), "white")
    rows = math.ceil(math.sqrt(max(1, len(scene.references))))
    size = (width // rows, height // rows)
    for at, (_, pixels) in enumerate(scene.references):
        image = _scaled(pixels, size)
        tile.paste(image, (at % rows * size[0], at // rows * size[1]))
    return tile


def _scaled(pixels: Pixels, size: tuple[int, int]) -> Image.Image:
    """Hard pixels when enlarged, smooth when shrunk."""
    image = Image.fromarray(pixels)
    if image.size == size:
        return image
    enlarged = size[0] >= image.width
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return image.resize(size, how)


LABELS, GAP, LINE = 170, 4, 17
"""Pixels: width of the labels, between tiles, height of a line of text."""


def labelled_sheet(grid: Grid, scale: int = 2) -> Image.Image:
    """The grid with its labels: references first, then a row per arm."""
    height, width = (scale * side for side in grid.painted[0][0].shape[:2])
    size = (
        LABELS + len(grid.scenes) * (width + GAP),
        GAP + (1 + len(grid.arms)) * (height + GAP),
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    labels = ["references", *(arm.label for arm in grid.arms)]
    for row, label in enumerate(labels):
        top = GAP + row * (height + GAP)
        _write(draw, label, top + height // 2)
        for at, scene in enumerate(grid.scenes):
            if row == 0:
                tile = reference_tile(scene, height, width)
            else:
                tile = _scaled(grid.painted[row - 1][at], (width, height))
            sheet.paste(tile, (LABELS + at * (width + GAP), top))
    return sheet


def _write(draw: ImageDraw.ImageDraw, text: str, middle: int) -> None:
    """Words in lines as wide as the labels' column, about the row's middle."""
    font = ImageFont.load_default(14)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font=font) <= LABELS - 16:
            lines[-1] = longer
        else:
            lines.append(word)
    top = middle - len(lines) * LINE // 2
    for number, line in enumerate(lines):
        draw.text((8, top + number * LINE), line, fill="black", font=font)


TITLE = "FocusDPO ablation"


@dataclass(frozen=True, slots=True)
class GalleryRow:
    """One arm's pictures, or the references."""

    label: str
    best: bool
    pictures: tuple[Picture, ...]


def render(ablation: Ablation, grid: Grid | None) -> str:
    """The page. Text from the record passes jinja2's autoescape."""
    look = Lookup(ablation)
    finding = find(look)
    trials = Counter(point.objective for point in ablation.search).values()
    return page(
        "ablation.html.j2",
        styles=("report.css", "ablation.css"),
        title=TITLE,
        a=ablation,
        level=f"{100 * ablation.level:.4g}\N{NARROW NO-BREAK SPACE}%",
        software=package_version("focusdpo"),
        finding=finding,
        figures=_key_figures(look, finding),
        facts=_facts(ablation),
        protocol=tables.protocol_text(ablation),
        main=tables.main_tables(look, tables.MAIN),
        more=tables.main_tables(look, tables.rest(look)),
        rivals=tables.rival_tables(look, finding),
        contrasts=tables.contrast_table(look),
        groups=tables.group_tables(look),
        charts=curve_charts(ablation, deciding=True),
        more_charts=curve_charts(ablation, deciding=False),
        search=tables.search_table(look),
        trials=max(trials) if len(set(trials)) == 1 else 0,  # where all had the same number
        readings=tables.reading_table(look),
        agreement=tables.agreement_table(look),
        arms=[(title_of(arm), settings_text(arm.settings)) for arm in ablation.arms],
        grid=grid,
        gallery=_gallery(grid, look) if grid else [],
    )


def _key_figures(look: Lookup, finding: Finding) -> list[KeyFigure]:
    """The chosen arm's differences to the base, large."""
    figures = []
    for metric in finding.metrics:
        contrast, info = look.contrast(look.ablation.best, BASE, metric), metric_info(metric)
        if contrast is not None:
            title, interval = f"{info.title}, to the base", interval_of(contrast)
            verdict = look.verdict(contrast)
            figures.append(key_figure(title, interval, info.unit, verdict, look.ablation.level))
    return figures


def _facts(ablation: Ablation) -> tuple[Fact, ...]:
    workers = f"of the last start; workers: {ablation.workers or 'one per core'}"
    return facts(
        ("protocol", ablation.protocol),
        ("dataset version", ablation.dataset_version),
        *((f"training pairs, {source}", count) for source, count in ablation.pairs.items()),
        ("trained arms", sum(arm.name != BASE for arm in ablation.arms)),
        ("training seeds", len(ablation.seeds), ", ".join(map(str, ablation.seeds))),
        ("budget of a training", f"{ablation.steps} steps of {ablation.batch_pairs} pairs"),
        ("held-out scenes", ablation.scenes),
        ("validation scenes", ablation.validation_scenes),
        ("computation", seconds_text(ablation.seconds), "over all processes"),
        ("time on the clock", seconds_text(ablation.wall_seconds), workers),
        *((name.replace("_gib", " in GiB"), value) for name, value in ablation.machine.items()),
        ("focusdpo", package_version("focusdpo")),
    )


def _gallery(grid: Grid, look: Lookup) -> list[GalleryRow]:
    height, width = grid.painted[0][0].shape[:2]
    references = tuple(
        picture(
            reference_tile(scene, 2 * height, 2 * width),
            f"references: {', '.join(name for name, _ in scene.references)}",
        )
        for scene in grid.scenes
    )
    rows = [GalleryRow("references", False, references)]
    for arm, painted in zip(grid.arms, grid.painted, strict=True):
        pictures = tuple(
            picture(pixels, f"{arm.label}: {scene.prompt}", painted=True)
            for pixels, scene in zip(painted, grid.scenes, strict=True)
        )
        rows.append(GalleryRow(arm.label, arm.name == look.ablation.best, pictures))
    return rows


RECORD, PAGE, MARKDOWN = "ablation.json", "ablation.html", "ablation.md"
CURVES, PICTURES = "curves.svg", "pictures.png"

log = logging.getLogger(__name__)


def write_ablation_report(folder: Path, ablation: Ablation) -> Path:
    """Write all of them into `folder`, in which the record's pictures lie; the page's path.

    Curves and pictures only where the record has some. UserError when a picture is missing or the
    folder cannot be written.
    """
    grid = read_grid(folder, Lookup(ablation))
    page = render(ablation, grid).encode()
    make_folder(folder)
    write_whole(folder / RECORD, to_json(ablation).encode())
    text = tables.markdown(ablation)
    charts = curve_charts(ablation, deciding=True)
    if charts:
        write_whole(folder / CURVES, curves_svg(charts))
        text += f"\n![Validation metrics along each training]({CURVES})\n"
    if grid is not None:
        write_whole(folder / PICTURES, mark_png(encode_png(np.asarray(labelled_sheet(grid)))))
        text += f"\n![References of held-out scenes, below them each arm's pictures]({PICTURES})\n"
    write_whole(folder / MARKDOWN, text.encode())
    write_whole(folder / PAGE, page)
    log.info("report of the ablation: %s", folder / PAGE)
    return folder / PAGE


def publish(folder: Path, docs: Path) -> list[Path]:
    """Copy what belongs into a repository's documentation (Markdown, curves, pictures) to `docs`;
    where they are now. UserError when they cannot be written."""
    files = [folder / name for name in (MARKDOWN, CURVES, PICTURES) if (folder / name).is_file()]
    make_folder(docs)
    for file in files:
        write_whole(docs / file.name, file.read_bytes())
    return [docs / file.name for file in files]
