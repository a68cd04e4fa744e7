"""An ablation as one self-contained HTML page, in the report's look and under its policy."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version as package_version

from focusdpo.data_schemas.ablations import BASE, Ablation, Contrast
from focusdpo.flows.ablation import tables
from focusdpo.flows.ablation.figures import curve_charts
from focusdpo.flows.ablation.lookup import (
    Lookup,
    bounds_text,
    interval_of,
    settings_text,
    signed_text,
    title_of,
    unit_of,
)
from focusdpo.flows.ablation.markdown import protocol_text
from focusdpo.flows.ablation.pictures import Grid, reference_tile
from focusdpo.flows.ablation.verdict import Finding, find
from focusdpo.flows.reports.files import seconds_text
from focusdpo.flows.reports.images import picture
from focusdpo.flows.reports.metrics import KeyFigure, metric_info
from focusdpo.flows.reports.render import page
from focusdpo.flows.reports.view import Fact, Picture

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
        protocol=protocol_text(ablation),
        main=tables.main_tables(look, tables.MAIN),
        more=tables.main_tables(look, tables.rest(look)),
        rivals=tables.rival_lines(look, finding),
        contrasts=[tables.contrast_line(look, c) for c in _finite(ablation)],
        groups=tables.group_tables(look),
        charts=curve_charts(ablation, deciding=True),
        more_charts=curve_charts(ablation, deciding=False),
        search=tables.search_lines(look),
        trials=_trials(ablation),
        readings=tables.reading_table(look),
        agreement=tables.agreement_lines(look),
        arms=[(title_of(arm), settings_text(arm.settings)) for arm in ablation.arms],
        grid=grid,
        gallery=_gallery(grid, look) if grid else [],
    )


def _finite(ablation: Ablation) -> list[Contrast]:
    """The contrasts that have a number, over all scenes."""
    return [one for one in ablation.contrasts if one.group == "all" and math.isfinite(one.mean)]


def _trials(ablation: Ablation) -> int:
    """How many settings were tried for each objective; 0 when not the same number for all."""
    counts = set(Counter(point.objective for point in ablation.search).values())
    return counts.pop() if len(counts) == 1 else 0


def _key_figures(look: Lookup, finding: Finding) -> list[KeyFigure]:
    """The chosen arm's differences to the base, large."""
    figures = []
    best = look.ablation.best
    for metric in finding.metrics:
        contrast = look.contrast(best, BASE, metric)
        if contrast is not None:
            interval, unit = interval_of(contrast), unit_of(metric)
            figures.append(
                KeyFigure(
                    title=f"{metric_info(metric).title}, to the base",
                    value=signed_text(interval, unit),
                    interval=f"{100 * look.ablation.level:.4g} % {bounds_text(interval, unit)}",
                    verdict=look.verdict(contrast),
                )
            )
    return figures


def _facts(ablation: Ablation) -> list[Fact]:
    trained = sum(arm.name != BASE for arm in ablation.arms)
    seeds = ", ".join(str(seed) for seed in ablation.seeds)
    workers = ablation.workers or "one per core"
    return [
        Fact(label="protocol", value=ablation.protocol),
        Fact(label="dataset version", value=ablation.dataset_version),
        *(
            Fact(label=f"training pairs, {source}", value=str(count))
            for source, count in ablation.pairs.items()
        ),
        Fact(label="trained arms", value=str(trained)),
        Fact(label="training seeds", value=str(len(ablation.seeds)), note=seeds),
        Fact(
            label="budget of a training",
            value=f"{ablation.steps} steps of {ablation.batch_pairs} pairs",
        ),
        Fact(label="held-out scenes", value=str(ablation.scenes)),
        Fact(label="validation scenes", value=str(ablation.validation_scenes)),
        Fact(label="computation", value=seconds_text(ablation.seconds), note="over all processes"),
        Fact(
            label="time on the clock",
            value=seconds_text(ablation.wall_seconds),
            note=f"of the last start; workers: {workers}",
        ),
        *(
            Fact(label=name.replace("_gib", " in GiB"), value=value)
            for name, value in ablation.machine.items()
        ),
        Fact(label="focusdpo", value=package_version("focusdpo")),
    ]


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
            picture(pixels, f"{arm.label}: {scene.prompt}")
            for pixels, scene in zip(painted, grid.scenes, strict=True)
        )
        rows.append(GalleryRow(arm.label, arm.name == look.ablation.best, pictures))
    return rows
