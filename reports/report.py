"""The report of a run: dataset, training and evaluation as one self-contained HTML file.

Every part is optional; the numbers go beside the page as JSON. Importing this module imports
neither torch nor Prefect.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version as package_version
from pathlib import Path

from focusdpo.data_schemas.errors import UserError
from focusdpo.reports.render import record_json, render
from focusdpo.reports.view import ReportData
from focusdpo.store.local import make_folder, write_whole
from focusdpo.store.provenance import machine

LARGEST = 8_000_000
"""Bytes above which a report is hard to mail and slow on a phone; more is warned of."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportLimits:
    """How many pictures a report shows."""

    pairs: int = 24
    rejects: int = 18
    extremes: int = 2
    """Evaluation scenes of each of worst, median and best."""
    randoms: int = 6
    """Evaluation scenes drawn by hash."""


def write_report(
    out: Path,
    *,
    root: Path | None = None,
    version: str = "latest",
    train_dir: Path | None = None,
    evaluate_dir: Path | None = None,
    commands: Sequence[str] = (),
    limits: ReportLimits | None = None,
) -> Path:
    """Write `out` (HTML) and its numbers beside it (`.json`); each appears whole or not at all.

    `root` and `version` name a dataset, `train_dir` a finished training run, `evaluate_dir` a
    finished evaluation; `commands` are what a reader types to get the same run. Raises UserError
    when none of the three is given, one cannot be read, or `out` cannot be written.
    """
    data = collect(
        root=root,
        version=version,
        train_dir=train_dir,
        evaluate_dir=evaluate_dir,
        commands=commands,
        limits=limits or ReportLimits(),
    )
    page = render(data).encode()
    if len(page) > LARGEST:
        log.warning("%s: %.1f MB; show fewer pairs or rejects", out, len(page) / 1e6)
    make_folder(out.parent)
    write_whole(out, page)
    # Last: where the disk is full, no page's numbers lie without the page.
    write_whole(out.with_suffix(".json"), record_json(data).encode())
    log.info("report %s: %.1f MB", out, len(page) / 1e6)
    return out


def collect(
    *,
    root: Path | None,
    version: str,
    train_dir: Path | None,
    evaluate_dir: Path | None,
    commands: Sequence[str],
    limits: ReportLimits,
) -> ReportData:
    """Read everything that a report shows. Raises UserError as `write_report`."""
    from focusdpo.reports.dataset_section import collect_dataset
    from focusdpo.reports.evaluation_section import collect_evaluation
    from focusdpo.reports.lineage_section import collect_lineage
    from focusdpo.reports.measure_section import collect_measured
    from focusdpo.reports.training_section import collect_training

    if root is None and train_dir is None and evaluate_dir is None:
        raise UserError(
            "nothing to report: give a dataset root, a training or an evaluation folder"
        )
    dataset = training = evaluation = None
    parts = []
    if root is not None:
        dataset = collect_dataset(root, version, pairs=limits.pairs, rejects=limits.rejects)
        parts.append("preference dataset")
    if train_dir is not None:
        training = collect_training(train_dir)
        parts.append("preference training")
    if evaluate_dir is not None:
        evaluation = collect_evaluation(
            evaluate_dir, extremes=limits.extremes, randoms=limits.randoms
        )
        measured = collect_measured(evaluate_dir)
        evaluation = replace(evaluation, measured=measured)
        what = f"pictures of {', '.join(measured.models)}" if measured else ""
        parts.append(what or "evaluation of base against adapter")
    what = ", ".join(parts)
    return ReportData(
        title=f"FocusDPO report{f': {dataset.version}' if dataset else ''}",
        what=f"{what[0].upper()}{what[1:]}",
        created=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        machine=machine_words(),
        software=package_version("focusdpo"),
        dataset=dataset,
        training=training,
        evaluation=evaluation,
        lineage=collect_lineage(
            root=root,
            version=version,
            train_dir=train_dir,
            evaluate_dir=evaluate_dir,
            commands=commands,
        ),
    )


def machine_words() -> str:
    """This machine, in a line."""
    about = machine()
    return (
        f"{about['cores']} cores, {about['processor']}, {about['memory_gib']} GiB, "
        f"Python {about['python']}"
    )
