"""`focusdpo review`: what people decided about pairs, and how well they agree."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from focusdpo.data_schemas.errors import counted
from focusdpo.flows.commands.options import ROOT, say
from focusdpo.store.local import write_whole


def stats(root: ROOT) -> Mapping[str, Any]:
    """Tell how reviewers agree with one another (Cohen's kappa, Krippendorff's alpha) and with the
    scorers."""
    from focusdpo.pipeline.review_stats import statistics

    summary = statistics(_reviews(root)).as_dict()
    for line in _lines(summary):
        say(line)
    return {"command": "review stats", "root": root, **summary}


def list_reviews(
    root: ROOT,
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", help="Only this reviewer's decisions.")
    ] = None,
    pair: Annotated[str | None, typer.Option("--pair", help="Only those about this pair.")] = None,
) -> Mapping[str, Any]:
    """List all decisions, oldest first; those that a later one replaced stay in the list."""
    from focusdpo.pipeline.audit import original_id, standing

    reviews = _reviews(root)
    counts = {review.id for by in standing(reviews).values() for review in by.values()}
    chosen = [
        review
        for review in reviews
        if reviewer in (None, review.reviewer)
        and (pair is None or review.pair_id == original_id(pair))
    ]
    for review in chosen:
        say(
            f"{review.when}  {review.pair_id}  {review.decision:<8}  "
            f"{'counts' if review.id in counts else '-':<6}"
            f"  {review.reviewer}{'  ' + review.reason if review.reason else ''}"
        )
    if not chosen:
        say("no decision yet; `focusdpo studio` has a page for review")
    rows = [{**asdict(review), "counts": review.id in counts} for review in chosen]
    return {"command": "review list", "root": root, "reviews": rows}


def export(
    root: ROOT,
    out: Annotated[Path, typer.Option("--out", help="File to write: .csv, or .jsonl.")],
) -> Mapping[str, Any]:
    """Write the audit as a table, a line per decision."""
    from focusdpo.data_schemas.errors import UserError

    if out.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--out {out}: expected a name that ends in .csv or .jsonl")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: {out.absolute().parent} is no folder; make it first")
    rows = [
        {**asdict(review), "subject_ids": list(review.subject_ids)} for review in _reviews(root)
    ]
    write_whole(out, (_csv(rows) if out.suffix == ".csv" else _jsonl(rows)).encode())
    say(f"{out}: {counted(len(rows), 'decision')}")
    return {"command": "review export", "root": root, "out": str(out), "reviews": len(rows)}


def _reviews(root: str) -> list[Any]:
    from focusdpo.pipeline.audit import Audit
    from focusdpo.store.artefacts import Store

    return Audit(Store.open(root, create=False)).reviews()


def _lines(summary: dict[str, Any]) -> list[str]:
    verdicts = ", ".join(f"{count} {name}" for name, count in summary["verdicts"].items())
    lines = [
        f"{counted(summary['decisions'], 'decision')} in the audit; "
        f"{counted(summary['pairs'], 'pair')} judged" + (f": {verdicts}" if verdicts else "")
    ]
    for name, counts in summary["reviewers"].items():
        lines.append(f"  {name}: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    if summary["several"]:
        lines.append(
            f"{counted(summary['several'], 'pair')} judged by two or more: agreement "
            f"{_figure(summary['agreement'])}, Krippendorff's alpha {_figure(summary['alpha'])}"
        )
    for peers in summary["between"]:
        lines.append(
            f"  {peers['a']} and {peers['b']}: {counted(peers['pairs'], 'pair')}, agreement "
            f"{_figure(peers['agreement'])}, Cohen's kappa {_figure(peers['kappa'])}"
        )
    for title, name in (("all", "scorers"), ("blind", "scorers_blind")):
        figures = summary[name]
        if figures["decisions"]:
            lines.append(
                f"with the scorers, {title} reviews: {figures['prefer_winner']} prefer their "
                f"winner, {figures['prefer_loser']} their loser, {figures['neither']} neither; "
                f"share {_figure(figures['share'])} [{_figure(figures['low'])}, "
                f"{_figure(figures['high'])}], rank correlation with the margin "
                f"{_figure(figures['rank_correlation'])}"
            )
    return lines


def _figure(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3f}"


def _csv(rows: list[dict[str, Any]]) -> str:
    from focusdpo.data_schemas.pairs import Review
    from focusdpo.reports.render import no_formula

    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(Review.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {**row, "subject_ids": " ".join(row["subject_ids"])}
        writer.writerow({name: no_formula(value) for name, value in cells.items()})
    return sink.getvalue()


def _jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
