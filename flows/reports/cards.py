"""Pairs and rejects of a dataset version as the report shows them: pictures, scores, records."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from focusdpo.data_schemas.pairs import Reject
from focusdpo.flows.reports.images import overlay, picture
from focusdpo.flows.reports.records import Records
from focusdpo.flows.reports.view import PairCard, Picture, RejectCard, SubjectScore

if TYPE_CHECKING:
    from focusdpo.data_schemas.shards import IndexRow
    from focusdpo.pipeline.versions import DatasetVersion


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
        win=picture(images.win, f"winner: {words}"),
        lose=picture(images.lose, f"loser: {words}"),
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
    return RejectCard(
        candidate_id=reject.candidate_id,
        prompt=scene.prompt if scene else "",
        source=reject.source,
        reason=reject.reason,
        detail=reject.detail,
        image=_stored(records, candidate.image, "rejected candidate") if candidate else None,
        against=_stored(records, parent.image, "what it was made from") if parent else None,
        record={
            "kind": "reject",
            "where": {"table": "rejects of the artefacts in stages/pair"},
            "reject": asdict(reject),
            "candidate": asdict(candidate) if candidate else None,
        },
    )


def _stored(records: Records, key: str, alt: str) -> Picture:
    return picture(records.store.image(key), alt)
