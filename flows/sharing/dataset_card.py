"""The card of an exported dataset: what is in it, how it came about, who may use it for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image as PillowImage

from focusdpo.data_schemas.images import encode_png
from focusdpo.data_schemas.shards import IndexRow, ShardSample
from focusdpo.flows.markdown import one_line
from focusdpo.flows.preview import contact_sheet
from focusdpo.flows.reports.lineage import family_of, stage_models
from focusdpo.pipeline.versions import DatasetVersion

UNSTATED = "not stated"
EXAMPLES = 4
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
REASONS = {
    "missing_subject": "a subject was not found in the would-be winner",
    "duplicate_subject": "a subject was found more than once in it",
    "weak_winner": "the winner does not keep identity well enough",
    "no_identity_drop": "the loser keeps identity nearly as well as the winner",
    "meaning_changed": "the prompt's meaning differs between winner and loser",
    "background_changed": "pixels outside the repainted region differ",
    "too_few_candidates": "fewer than two usable candidates to rank",
    "small_margin": "best and worst candidate are too close",
    "surplus": "more pairs than a scene's quota; the best were kept",
}


def card(
    version: DatasetVersion, splits: Mapping[str, int], pictures: Sequence[tuple[str, IndexRow]]
) -> str:
    """README.md with the Hub's front matter. What users wrote is shown as text."""
    manifest = version.manifest
    pairs, rejects = len(version.rows), manifest["rejects"]
    tried = pairs + sum(rejects.values())
    text = resources.files("focusdpo.flows").joinpath("templates/dataset_card.md.j2").read_text()
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["one_line"] = one_line
    return environment.from_string(text).render(
        manifest=manifest,
        splits=splits,
        size=next((word for limit, word in SIZES if pairs < limit), "1M<n<10M"),
        pairs=pairs,
        rejects=[(name, REASONS.get(name, name), count) for name, count in rejects.items()],
        tried=tried,
        share=f"{pairs / tried:.0%}" if tried else "-",
        pictures=pictures,
        models=stage_models(manifest, family_of(manifest["config"])),
        licences=_licences(manifest["subjects"]),
        classes=Counter(word for row in version.rows for word in row.class_names).most_common(10),
        biases=_biases(version),
    )


def example_pictures(version: DatasetVersion, folder: Path) -> list[tuple[str, IndexRow]]:
    """A strip per example: references, winner, loser. Evenly over the pairs' ids, which are hashes:
    none is chosen for its looks."""
    rows = sorted(version.rows, key=lambda row: (-row.num_subjects, row.pair_id))
    count = min(EXAMPLES, len(rows))
    folder.mkdir(parents=True)
    made = []
    for at in range(count):
        row = rows[at * len(rows) // count]
        name = f"pictures/{at}.png"
        (folder / f"{at}.png").write_bytes(encode_png(_strip(version.read(row))))
        made.append((name, row))
    return made


def _strip(sample: ShardSample) -> NDArray[np.uint8]:
    height, width = sample.images.win.shape[:2]
    references = [
        np.asarray(PillowImage.fromarray(one).resize((width, height)), dtype=np.uint8)
        for one in sample.images.references
    ]
    shown = [*references, sample.images.win, sample.images.lose]
    scale = max(1, 192 // height)
    return np.asarray(contact_sheet(shown, columns=len(shown), scale=scale), dtype=np.uint8)


def _licences(subjects: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    found = Counter(str(one["licence"]).strip() or UNSTATED for one in subjects)
    return sorted(found.items())


def _biases(version: DatasetVersion) -> list[str]:
    """What the numbers of this very version say about its limits."""
    rows, told = version.rows, []
    words = Counter(word for row in rows for word in row.class_names)
    (top, most), total = words.most_common(1)[0], sum(words.values())
    told.append(
        f"{len(words)} classes; the most frequent, {one_line(top)}, is {most / total:.0%} of all "
        "subjects shown."
    )
    alone = sum(row.num_subjects == 1 for row in rows)
    told.append(f"{alone / len(rows):.0%} of the pairs show one subject alone.")
    disrupted = sum(row.source == "disrupt" for row in rows)
    told.append(
        f"{disrupted / len(rows):.0%} of the losers were made by repainting a winner, so outside "
        "the region `prior` both pictures are the same; the others are the worse of two samples."
    )
    reviews = sum((version.manifest.get("reviews") or {}).values())
    told.append(
        f"People rejected or exchanged {reviews} pairs; all else was decided by models."
        if reviews
        else "No person's review changed a pair: all was decided by models."
    )
    return told
