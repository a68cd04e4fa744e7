"""`focusdpo report --compare A B`: one self-contained page on what differs between two versions of
a dataset, or between two adapters that were evaluated on the same scenes."""

from __future__ import annotations

import csv
import datetime
import io
import json
import logging
import shlex
from collections.abc import Iterable
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.reports.compare_view import Change, Comparison
from focusdpo.flows.reports.metrics import MINUS
from focusdpo.flows.reports.render import (
    as_json,
    by_metric,
    page,
)
from focusdpo.flows.reports.report import machine_words, write_file

log = logging.getLogger(__name__)


def write_comparison(out: Path, a: str, b: str, *, root: Path | None = None) -> Path:
    """Write `out` (HTML) and its numbers beside it (`.json`).

    With `root`, `a` and `b` are versions of that dataset ("latest" is one, too); without, folders
    that `evaluate` wrote. Raises UserError when one cannot be read or they cannot be compared.
    """
    data = compare(a, b, root=root)
    write_file(out.with_suffix(".json"), _json(data).encode())
    write_file(out, render(data).encode())
    log.info("comparison %s", out)
    return out


def compare(a: str, b: str, *, root: Path | None) -> Comparison:
    """Read everything that the page shows. Raises UserError as `write_comparison`."""
    from focusdpo.flows.reports.compare_adapters import compare_adapters
    from focusdpo.flows.reports.compare_datasets import compare_datasets

    about: dict[str, Any] = {
        "created": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "machine": machine_words(),
        "software": package_version("focusdpo"),
    }
    if root is not None:
        change, sides, headline = compare_datasets(root, a, b)
        names = tuple(side.name for side in sides)
        return Comparison(
            title=f"FocusDPO comparison: {names[0]} and {names[1]}",
            what="Two versions of a dataset",
            headline=headline,
            sides=sides,
            command=shlex.join(["focusdpo", "report", "--root", str(root), "--compare", *names]),
            dataset=change,
            **about,
        )
    for one in (a, b):
        if not Path(one).is_dir():
            raise UserError(
                f"--compare {one}: no such folder; give two folders that `focusdpo evaluate` "
                "wrote, or with --root two versions of that dataset"
            )
    adapters, sides, headline = compare_adapters(Path(a), Path(b))
    return Comparison(
        title=f"FocusDPO comparison: {sides[0].name} and {sides[1].name}",
        what="Two adapters on the same scenes",
        headline=headline,
        sides=sides,
        command=shlex.join(["focusdpo", "report", "--compare", a, b]),
        adapters=adapters,
        **about,
    )


def render(data: Comparison) -> str:
    """The page, under the same policy as the report: it asks the network for nothing."""
    rows = data.adapters.rows if data.adapters else ()
    return page(
        "compare.html.j2",
        filters={"amount": amount, "changes_csv": changes_csv},
        data=data,
        main_rows=[row for row in rows if row.group == "all"],
        groups=by_metric(rows),
    )


def amount(value: float, percent: bool = False, signed: bool = False) -> str:
    """A number of a table of changes."""
    if percent:
        unit = " pp" if signed else " %"
        return f"{100 * value:{'+' if signed else ''}.1f}{unit}".replace("-", MINUS)
    digits = 0 if float(value).is_integer() else 1
    text = f"{value:{'+' if signed and value else ''}.{digits}f}"
    return text.replace("-", MINUS)


def changes_csv(rows: Iterable[Change]) -> str:
    """A table of changes, unrounded."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["what", "A", "B"])
    table.writerows([row.label, row.a, row.b] for row in rows)
    return out.getvalue()


def _json(data: Comparison) -> str:
    return json.dumps(as_json(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
