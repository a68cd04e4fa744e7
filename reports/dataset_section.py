"""Section 2 of the report from a dataset version: counts, distributions, galleries."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from focusdpo.data_schemas.candidates import Disrupted, Sampled, Scored
from focusdpo.data_schemas.pairs import SIGNS, Reject
from focusdpo.data_schemas.scenes import Scene, stable_hash
from focusdpo.reports.thumbnails import overlay, picture
from focusdpo.reports.view import (
    Count,
    DatasetPart,
    Fact,
    Histogram,
    PairCard,
    RejectCard,
    SubjectScore,
    facts,
)

if TYPE_CHECKING:
    from focusdpo.data_schemas.shards import IndexRow
    from focusdpo.store.artefacts import Store
    from focusdpo.store.versions import DatasetVersion

R = TypeVar("R")


@dataclass(frozen=True)
class Records:
    """What the stages said of a version's partitions; artefacts that were removed are left out,
    so a version whose shards alone were copied still gives a report."""

    dataset: DatasetVersion

    @property
    def store(self) -> Store:
        return self.dataset.store

    @functools.cached_property
    def scenes(self) -> dict[str, Scene]:
        return {scene.id: scene for scene in self._read("compose", Scene)}

    @functools.cached_property
    def sampled(self) -> dict[str, Sampled]:
        return {candidate.id: candidate for candidate in self._read("generate", Sampled)}

    @functools.cached_property
    def disrupted(self) -> dict[str, Disrupted]:
        return {candidate.id: candidate for candidate in self._read("disrupt", Disrupted)}

    @functools.cached_property
    def scored(self) -> list[Scored]:
        return self._read("score", Scored)

    @functools.cached_property
    def rejects(self) -> list[Reject]:
        return self._read("pair", Reject, table="rejects")

    def repainted(self, candidate_id: str) -> tuple[str, ...]:
        """Subjects that a disrupted candidate lost; none for a sampled one."""
        candidate = self.disrupted.get(candidate_id)
        return candidate.subject_ids if candidate else ()

    def _read(self, stage: str, record: type[R], table: str = "records") -> list[R]:
        return [
            row
            for key in self._keys.get(stage, ())
            if self.store.has(stage, key)
            for row in self.store.read(stage, key, record, table=table)
        ]

    @functools.cached_property
    def _keys(self) -> dict[str, list[str]]:
        from focusdpo.store.versions import lineage_of

        keys: dict[str, list[str]] = {}
        for artefact in lineage_of(self.dataset):
            keys.setdefault(artefact.stage, []).append(artefact.key)
        return keys


def pair_card(dataset: DatasetVersion, records: Records, row: IndexRow) -> PairCard:
    """A pair with its pictures, scores and record."""
    sample = dataset.read(row)
    pair, images = sample.pair, sample.images
    words = ", ".join(pair.class_names)
    repainted = records.repainted(pair.lose_id)
    return PairCard(
        id=pair.id,
        prompt=pair.prompt,
        source=pair.source,
        mode=pair.mode,
        win=picture(images.win, f"winner: {words}", painted=True),
        lose=picture(images.lose, f"loser: {words}", painted=True),
        prior=overlay(images.win, images.prior, f"where the preference looks: {words}"),
        references=tuple(
            picture(image, f"reference: {name}")
            for image, name in zip(images.references, pair.class_names, strict=True)
        ),
        subjects=tuple(
            SubjectScore(
                class_name=name,
                win_identity=pair.win_identity[i],
                lose_identity=pair.lose_identity[i],
                win_leakage_margin=pair.win_leakage_margin[i],
                lose_leakage_margin=pair.lose_leakage_margin[i],
                repainted=pair.subject_ids[i] in repainted,
            )
            for i, name in enumerate(pair.class_names)
        ),
        win_clip_t=pair.win_clip_t,
        lose_clip_t=pair.lose_clip_t,
        margin=pair.margin,
        reason=pair.reason,
        record={
            "kind": "pair",
            "where": {
                "index": f"versions/{dataset.id}/index.parquet",
                "shard": f"shards/{row.shard}",
                "offset": row.offset,
                "bytes": row.size,
            },
            "lineage": f"focusdpo inspect ROOT --version {dataset.id} --pair {pair.id}",
            "pair": asdict(pair),
        },
    )


def reject_card(records: Records, reject: Reject) -> RejectCard:
    """A dropped candidate with its pictures, as far as they are still there, and record."""
    scene = records.scenes.get(reject.scene_id)
    disrupted = records.disrupted.get(reject.candidate_id)
    parent = records.sampled.get(disrupted.parent_id) if disrupted else None
    candidate = disrupted or records.sampled.get(reject.candidate_id)
    words = ((candidate, "rejected candidate"), (parent, "what it was made from"))
    # A report is given away: what was refused as unsafe is counted in it and not shown.
    hidden = reject.reason == "unsafe_picture"
    image, against = (
        picture(records.store.image(one.image), alt, painted=True) if one and not hidden else None
        for one, alt in words
    )
    return RejectCard(
        candidate_id=reject.candidate_id,
        prompt=scene.prompt if scene else "",
        source=reject.source,
        reason=reject.reason,
        detail=reject.detail,
        image=image,
        against=against,
        record={
            "kind": "reject",
            "where": {"table": "rejects of the artefacts in stages/pair"},
            "reject": asdict(reject),
            "candidate": asdict(candidate) if candidate else None,
        },
    )


REASONS = {
    "missing_subject": "a subject was not found in the would-be winner",
    "duplicate_subject": "a subject was found more than once in it",
    "weak_winner": "the winner does not keep identity well enough",
    "empty_repaint": "the repaint left a subject's place empty",
    "no_identity_drop": "the loser keeps identity nearly as well",
    "meaning_changed": "CLIP-T of winner and loser differ too much",
    "background_changed": "pixels outside the repainted mask differ",
    "too_few_candidates": "fewer than two usable candidates",
    "small_margin": "best and worst are too close",
    "no_right_candidate": "no candidate of the scene shows every subject right",
    "no_failed_candidate": "no candidate of the scene fails at a subject",
    "unsafe_picture": "the filter of unsafe pictures refused the candidate",
    "near_duplicate": "kept out of validation: training shows nearly the same winner",
    "surplus": "more than the scene's quota; the best were kept",
    "review: rejected": "reviewers decided that it teaches nothing",
    "review: contested": "reviewers do not agree about it",
}
MODES = {
    "all": "every subject repainted",
    "subset": "some subjects repainted",
    "swap": "subjects traded looks",
    "rank": "best against worst seed",
    **{
        " ".join(words): f"own failures; shown better, by subject: {', '.join(words)}"
        for count in range(1, 5)
        for words in product(SIGNS, repeat=count)
    },
}


def collect_dataset(root: Path, version: str, *, pairs: int, rejects: int) -> DatasetPart:
    """Everything that section 2 shows of a version. Raises UserError for a root or version that
    is absent or damaged."""
    from focusdpo.store.versions import open_version

    dataset = open_version(root, version)
    records = Records(dataset)
    shown = choose_pairs(dataset.rows, pairs)
    dropped = records.rejects
    chosen = choose_rejects(dropped, rejects)
    return DatasetPart(
        version=dataset.id,
        facts=dataset_facts(dataset),
        funnel=_funnel(dataset, records),
        reject_reasons=_reasons(dataset.manifest.get("rejects") or {}),
        breakdowns=_breakdowns(dataset.rows),
        histograms=_histograms(dataset.rows),
        pairs=tuple(pair_card(dataset, records, row) for row in shown),
        pairs_chosen=f"{len(shown)} of {len(dataset.rows)} pairs: from each mode alike, evenly "
        "spaced by rank of margin, from the narrowest to the widest.",
        rejects=tuple(reject_card(records, reject) for reject in chosen),
        rejects_chosen=f"{len(chosen)} of {len(dropped)} rejects, from each reason alike, drawn by "
        "a hash of their ids.",
        stages=_stages(dataset.manifest),
    )


def choose_pairs(rows: Sequence[IndexRow], count: int) -> list[IndexRow]:
    """Evenly spaced by rank of margin within each mode; equal shares where there are enough."""
    by_mode: dict[str, list[IndexRow]] = {}
    for row in sorted(rows, key=lambda row: (row.margin, row.pair_id)):
        by_mode.setdefault(row.mode, []).append(row)
    shares = _shares({mode: len(members) for mode, members in by_mode.items()}, count)
    chosen = []
    for mode in sorted(by_mode):
        ranked, share = by_mode[mode], shares[mode]
        places = np.linspace(0, len(ranked) - 1, share).round()
        chosen += [ranked[int(place)] for place in places]
    return chosen


def choose_rejects(rejects: Sequence[Reject], count: int) -> list[Reject]:
    """Equal shares of each reason, drawn by hash; the most frequent reason first."""
    by_reason: dict[str, list[Reject]] = {}
    for reject in sorted(
        rejects, key=lambda r: stable_hash("report", r.scene_id, r.candidate_id, r.source, r.reason)
    ):
        by_reason.setdefault(reject.reason, []).append(reject)
    shares = _shares({reason: len(members) for reason, members in by_reason.items()}, count)
    order = sorted(by_reason, key=lambda reason: (-len(by_reason[reason]), reason))
    return [reject for reason in order for reject in by_reason[reason][: shares[reason]]]


def _shares(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """`count` dealt one by one to groups that still have something."""
    shares = dict.fromkeys(sizes, 0)
    left = count
    while left > 0:
        open_groups = [name for name in sorted(sizes) if shares[name] < sizes[name]][:left]
        if not open_groups:
            break
        for name in open_groups:
            shares[name] += 1
        left -= len(open_groups)
    return shares


def dataset_facts(dataset: DatasetVersion) -> tuple[Fact, ...]:
    """What a version is, in a few numbers."""
    manifest, rows = dataset.manifest, dataset.rows
    splits = Counter(row.split for row in rows)
    subjects = manifest.get("subjects") or []
    shards = manifest.get("shards") or []
    size = sum(int(shard.get("bytes", 0)) for shard in shards)
    when = str(manifest.get("created") or "")[:16].replace("T", " ")
    return facts(
        ("pairs", len(rows), ", ".join(f"{splits[name]} {name}" for name in sorted(splits))),
        (
            "subjects",
            len(subjects),
            f"{len({subject.get('class_name') for subject in subjects})} classes",
        ),
        ("scenes with a pair", len({row.scene_id for row in rows})),
        ("shards", len(shards), f"{size / 1e6:.1f} MB"),
        ("published", f"{when} UTC" if when else None),
        ("grew from", manifest.get("parent") or None),
    )


def _funnel(dataset: DatasetVersion, records: Records) -> tuple[Count, ...]:
    scenes, sampled = len(records.scenes), len(records.sampled)
    complete = sum(
        candidate.kind == "sampled" and candidate.complete for candidate in records.scored
    )
    steps = [("scenes", scenes, "")]
    if sampled:
        steps += [
            ("sampled", sampled, f"{sampled / max(scenes, 1):.3g} seeds a scene"),
            ("complete", complete, f"each subject found once: {_share(complete, sampled)}"),
            ("disrupted", len(records.disrupted), "repainted without their reference"),
        ]
    pairs = len(dataset.rows)
    tried = pairs + sum((dataset.manifest.get("rejects") or {}).values())
    steps.append(("pairs", pairs, f"{_share(pairs, tried)} of what was judged"))
    return tuple(Count(label=name, count=count, explain=note) for name, count, note in steps)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}\N{NO-BREAK SPACE}%" if whole else "none"


def _reasons(rejects: Mapping[str, int]) -> tuple[Count, ...]:
    return tuple(
        Count(label=reason.replace("_", " "), count=count, explain=REASONS.get(reason, ""))
        for reason, count in sorted(rejects.items(), key=lambda item: (-item[1], item[0]))
    )


def _breakdowns(rows: Sequence[IndexRow]) -> tuple[tuple[str, tuple[Count, ...]], ...]:
    classes = Counter(name for row in rows for name in set(row.class_names))
    tables: tuple[tuple[str, Counter[str], dict[str, str]], ...] = (
        ("By source", Counter(row.source for row in rows), {}),
        ("By mode", Counter(row.mode for row in rows), MODES),
        ("By number of subjects", Counter(str(row.num_subjects) for row in rows), {}),
        ("Most frequent classes", Counter(dict(classes.most_common(6))), {}),
    )
    out = []
    for title, counter, words in tables:
        by_count = title.startswith("Most")
        items = counter.most_common() if by_count else sorted(counter.items())
        out.append(
            (title, tuple(Count(label=n, count=c, explain=words.get(n, "")) for n, c in items))
        )
    return tuple(out)


def _histograms(rows: Sequence[IndexRow]) -> tuple[Histogram, ...]:
    win = np.array([v for row in rows for v in row.win_identity])
    lose = np.array([v for row in rows for v in row.lose_identity])
    margin = np.array([row.margin for row in rows])
    if not len(rows):
        return ()
    return (
        _histogram(
            "Identity of winners and losers",
            "Cosine to the own references, one count per subject. Subjects that a subset left "
            "alone count equally in both.",
            "identity score",
            (("winner", "winner", win), ("loser", "loser", lose)),
        ),
        _histogram(
            "Margin",
            "Winner's identity minus the loser's, mean over the subjects that differ.",
            "margin",
            (("pairs", "plain", margin),),
        ),
    )


def _histogram(title: str, explain: str, x_label: str, series: Sequence[Any]) -> Histogram:
    values = np.concatenate([numbers for _, _, numbers in series])
    low = np.floor(min(values.min(), 0.0) * 20) / 20
    edges = np.arange(low, max(values.max(), low + 0.05) + 0.05, 0.05)
    return Histogram(
        title=title,
        explain=explain,
        x_label=x_label,
        edges=tuple(float(edge) for edge in edges),
        counts=tuple(
            (name, role, tuple(int(c) for c in np.histogram(numbers, edges)[0]))
            for name, role, numbers in series
        ),
    )


def _stages(manifest: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            stage,
            str(entry.get("artefacts", "")),
            str(entry.get("records", "")),
            f"{float(entry.get('seconds') or 0):.1f}",
        )
        for stage, entry in (manifest.get("stages") or {}).items()
    )
