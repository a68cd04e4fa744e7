"""What all trials found: a table for people, JSON for the rest."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .trials import Outcome

HEAD = (
    "| command | fault | struck | trials | lost | half visible | computed twice | begun again "
    "| s a trial |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """A row per command and kind of fault, and one per command over all kinds."""
    found = []
    for job in dict.fromkeys(one.job for one in outcomes):
        mine = [one for one in outcomes if one.job == job]
        struck = Counter(kind for one in mine for kind in one.kinds)
        for kind in sorted(struck):
            hit = [one for one in mine if kind in one.kinds]
            found.append(_row(job, kind, struck[kind], hit))
        found.append(_row(job, "all", sum(struck.values()), mine))
    return found


def _row(job: str, kind: str, struck: int, trials: Sequence[Outcome]) -> tuple[str, ...]:
    return (
        job,
        kind,
        str(struck),
        str(len(trials)),
        str(sum(bool(one.lost) for one in trials)),
        str(sum(bool(one.half_visible) for one in trials)),
        str(sum(len(one.twice) for one in trials)),
        str(sum(one.done_again for one in trials)),
        f"{statistics.median(one.seconds for one in trials):.1f}",
    )


WORDS = {
    **{"kill": "killed", "damage": "finished files damaged", "disk": "disk full"},
    **{"prefect": "Prefect in trouble", "bucket": "object store in trouble"},
    **{"hostile": "a stranger's root or run that leads outside", "foreign": "foreign files"},
    **{"not-finite": "a model's output not finite, or of one colour"},
    **{"wounds": "any file that decides something damaged", "full": "disk full"},
    **{"read-only": "disk that may only be read", "taken-away": "its folder taken away"},
    **{"beside": "gc or purge beside a training", "clocks": "clock jumps"},
    **{"signals": "Ctrl-C and SIGTERM", "databases": "Prefect's database damaged"},
}
"""Kinds of trials, for people."""
LARGE = ("kill", "damage", "disk", "prefect", "bucket")


def short_table(outcomes: Sequence[Outcome]) -> str:
    """For the page on faults: a row per kind, and per command where it is of a whole job."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for one in outcomes:
        job = f"`{one.job}`" if one.kind in LARGE else "any"
        found.setdefault((job, WORDS[one.kind]), []).append(one)
    lines = [SHORT_HEAD]
    for (job, kind), mine in found.items():
        struck = sum(len(one.kinds) for one in mine)
        lines.append(f"| {' | '.join(_row(job, kind, struck, mine)[:-1])} |")
    return "\n".join(lines)


SHORT_HEAD = (
    "| command | fault | struck | trials | lost | half visible | computed twice | begun again |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown."""
    lines = [HEAD, *(f"| {' | '.join(row)} |" for row in rows(outcomes))]
    lines += ["", short_table(outcomes)]
    wrong = [one for one in outcomes if not one.whole]
    struck = sum(len(one.kinds) for one in outcomes)
    missed = sum(one.missed for one in outcomes)
    looks = sum(one.looks for one in outcomes)
    lines += [
        "",
        f"{struck} faults struck in {len(outcomes)} trials ({missed} more came after the end); "
        f"a reader opened and verified the newest version {looks} times meanwhile. "
        f"Trials in which something was lost, half visible or computed twice: {len(wrong)}.",
    ]
    return "\n".join(lines)


def write(path: Path, outcomes: Sequence[Outcome], about: dict[str, object]) -> None:
    """All trials with their faults and moments."""
    told = {**about, "trials": [dataclasses.asdict(one) for one in outcomes]}
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> list[Outcome]:
    """The trials of a call before."""
    return [Outcome(**one) for one in json.loads(path.read_text("utf-8"))["trials"]]
