"""The files that tell an ablation: page, Markdown, curves, pictures, and the record itself.

Importing this module imports neither torch nor Prefect nor matplotlib.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from focusdpo.data_schemas.ablations import Ablation, read_ablation, to_json
from focusdpo.data_schemas.images import encode_png
from focusdpo.flows.reports.report import write_file

RECORD, PAGE, MARKDOWN = "ablation.json", "ablation.html", "ablation.md"
CURVES, PICTURES = "curves.svg", "pictures.png"

log = logging.getLogger(__name__)


def write_ablation_report(folder: Path, ablation: Ablation) -> Path:
    """Write all of them into `folder`, in which the record's pictures lie; the page's path.

    Curves and pictures only where the record has some. UserError when a picture is missing or the
    folder cannot be written.
    """
    from focusdpo.flows.ablation.figures import curve_charts, curves_svg
    from focusdpo.flows.ablation.lookup import Lookup
    from focusdpo.flows.ablation.markdown import markdown
    from focusdpo.flows.ablation.pictures import labelled_sheet, read_grid
    from focusdpo.flows.ablation.render import render

    grid = read_grid(folder, Lookup(ablation))
    page = render(ablation, grid).encode()
    write_file(folder / RECORD, to_json(ablation).encode())
    text = markdown(ablation)
    charts = curve_charts(ablation, deciding=True)
    if charts:
        write_file(folder / CURVES, curves_svg(charts))
        text += f"\n![Validation metrics along each training]({CURVES})\n"
    if grid is not None:
        write_file(folder / PICTURES, encode_png(np.asarray(labelled_sheet(grid))))
        text += f"\n![References of held-out scenes, below them each arm's pictures]({PICTURES})\n"
    write_file(folder / MARKDOWN, text.encode())
    write_file(folder / PAGE, page)
    log.info("report of the ablation: %s", folder / PAGE)
    return folder / PAGE


def publish(folder: Path, docs: Path) -> list[Path]:
    """Copy what belongs into a repository's documentation (Markdown, curves, pictures) to `docs`;
    where they are now. UserError when they cannot be written."""
    found = [folder / name for name in (MARKDOWN, CURVES, PICTURES) if (folder / name).is_file()]
    for file in found:
        write_file(docs / file.name, file.read_bytes())
    return [docs / file.name for file in found]


def rewrite(folder: Path) -> Path:
    """The report of a finished ablation once more, from its record. UserError without one."""
    return write_ablation_report(folder, read_ablation(folder / RECORD))
