"""What a dataset is worth to a training, in words: pairs by subject, why others were rejected and
what would help, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from focusdpo.data_schemas.errors import counted
from focusdpo.data_schemas.pairs import Reason
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.flows.build.likeness import LEAKING
from focusdpo.pipeline.audit import Audit, Ruling, original_id
from focusdpo.store.manifests import reviewed_of
from focusdpo.store.versions import DatasetVersion

FEW_PAIRS = 50
"""A training on fewer learns these pictures, and little about subjects."""
MANY_LOOKS = 100
"""A pair that is shown more often is learned by heart."""
NUMBERS = {1: "one subject", 2: "two subjects", 3: "three subjects"}
LISTED_SUBJECTS = 12
REASONS_TOLD = 3
EMPTY: Reason = "empty_repaint"
ALWAYS_TOLD: tuple[Reason, ...] = ("unsafe_picture", EMPTY)
"""However rare: a filter's word, and an inpainter's failure."""
REMEDIES: Mapping[Reason, str] = {
    "missing_subject": "the generator or the segmenter does not know the subject by its word: try "
    "another class_name, or more seeds (generate.candidates)",
    "duplicate_subject": "the generator paints a subject twice: more seeds (generate.candidates), "
    "or cut-outs with nothing else in them",
    "weak_winner": "painted subjects are too unlike their pictures: more and sharper pictures, "
    "more seeds (generate.candidates), or a lower pair.min_winner_identity",
    "empty_repaint": "the inpainter fills holes with background: one made for words paints the "
    "object (models.inpainter.kind=flux-fill or sdxl-inpaint), and so does a larger hole "
    "(disrupt.dilate)",
    "no_identity_drop": "the class word alone gives the same look: raise disrupt.dilate, bring "
    "subjects of a look of their own, or lower pair.min_drop",
    "meaning_changed": "winner and loser fit the prompt differently: raise pair.clip_t_tolerance",
    "background_changed": "the inpainter repaints too much: raise pair.background_tolerance",
    "too_few_candidates": "raise generate.candidates",
    "small_margin": "all seeds are about equally good: raise generate.candidates, or lower "
    "pair.rank_margin",
    "no_right_candidate": "more seeds (generate.candidates), or a lower pair.min_winner_identity",
    "no_failed_candidate": "the generator does this scene right: there is nothing to learn from it",
    "unsafe_picture": "the filter of unsafe pictures refused them: where it errs, raise "
    "models.safety.threshold, or do without (models.safety=null)",
    "surplus": "a scene has its quota: raise its source's, pair.max_disrupt_per_scene, "
    "pair.max_rank_per_scene or pair.max_failure_per_scene",
}


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What a version holds for a training."""

    pairs: int
    train_pairs: int
    by_subject: dict[str, int]
    """Pairs that show each of the version's subjects, those without any included."""
    by_num_subjects: dict[int, int]
    """Pairs by how many subjects they show, ascending."""
    rejects: dict[str, int]
    """Most frequent first."""


def worth_of(version: DatasetVersion) -> Worth:
    """Counted from a version's index and manifest."""
    pairs = Counter(name for row in version.rows for name in row.subject_ids)
    rejects = Counter(version.manifest.get("rejects", {}))
    return Worth(
        pairs=len(version.rows),
        train_pairs=len(version.rows_of("train")),
        by_subject={
            subject["id"]: pairs[subject["id"]] for subject in version.manifest["subjects"]
        },
        by_num_subjects=dict(sorted(Counter(row.num_subjects for row in version.rows).items())),
        rejects=dict(rejects.most_common()),
    )


def worth_lines(worth: Worth) -> Iterator[str]:
    """Pairs by number of subjects and by subject, and the top reasons for rejects, each with what
    would help."""
    if worth.pairs:
        yield f"  pairs with {in_numbers(worth.by_num_subjects)}"
        yield f"  pairs by subject: {_by_subject(worth.by_subject)}"
    top = list(worth.rejects)[:REASONS_TOLD]
    reasons = [*top, *(name for name in ALWAYS_TOLD if worth.rejects.get(name) and name not in top)]
    judged = worth.pairs + sum(worth.rejects.values())
    for reason in reasons:
        count = worth.rejects[reason]
        share = f" ({count / judged:.0%} of what was judged)" if reason == EMPTY else ""
        yield f"  {count} rejected{share}, {reason}: {remedy(reason)}"


def in_numbers(by_num_subjects: Mapping[int, int]) -> str:
    """{1: 17, 2: 9} -> "one subject 17, two subjects 9"."""
    return ", ".join(
        f"{NUMBERS.get(num, counted(num, 'subject'))} {count}"
        for num, count in by_num_subjects.items()
    )


def _by_subject(by_subject: Mapping[str, int]) -> str:
    ranked = sorted(by_subject.items(), key=lambda item: (-item[1], item[0]))
    some = [f"{name} {count}" for name, count in ranked if count]
    none = [name for name, count in ranked if not count]
    if len(some) > LISTED_SUBJECTS:
        some = [*some[: LISTED_SUBJECTS // 2], "...", *some[-LISTED_SUBJECTS // 2 :]]
    more = f" and {len(none) - LISTED_SUBJECTS} more" if len(none) > LISTED_SUBJECTS else ""
    return ", ".join(some) + (f"; none: {', '.join(none[:LISTED_SUBJECTS])}{more}" if none else "")


def remedy(reason: str) -> str:
    """The setting or act that helps against a reason for rejects."""
    if reason.startswith("review: "):
        return "reviewers decided so"
    if reason == LEAKING:
        return "training shows such a winner; duplicates.keep_in_validation=true keeps them"
    return REMEDIES[reason]  # type: ignore[index]


def next_steps(worth: Worth, root: str) -> Iterator[str]:
    """What to do with the dataset, or to get a better one."""
    weak = list(weaknesses(worth))
    yield from weak
    if weak:
        yield (
            "next: mend that and run the same command again (only what is missing is computed), or "
            f"look first: focusdpo report --root {root} --out dataset.html"
        )
    else:
        yield (
            f"next: look at the pairs (focusdpo report --root {root} --out dataset.html) or train: "
            f"focusdpo train --root {root} --out RUN"
        )


def weaknesses(worth: Worth) -> Iterator[str]:
    """Why a training will learn little from it, each with what would help."""
    if worth.train_pairs < FEW_PAIRS:
        yield (
            f"only {counted(worth.train_pairs, 'pair')} to train on, which is few (below "
            f"{FEW_PAIRS}): bring more subjects or pictures, or raise compose.variants and "
            "generate.candidates"
        )
    if worth.pairs and max(worth.by_num_subjects) == 1 and len(worth.by_subject) > 1:
        yield (
            "all pairs show a single subject, so nothing is learned about keeping several apart: "
            "raise compose.pair_rate, or mend what rejects the scenes of two"
        )


def training_warnings(version: DatasetVersion, steps: int, batch_pairs: int) -> Iterator[str]:
    """What to know before a training on a version starts: few pairs, single subjects alone,
    decisions that no build has taken in."""
    worth = worth_of(version)
    yield from weaknesses(worth)
    if 0 < worth.train_pairs < FEW_PAIRS:
        looks = steps * batch_pairs / worth.train_pairs
        many = "; fewer steps (train.steps) may do" if looks > MANY_LOOKS else ""
        yield (
            f"{counted(steps, 'step')} of {counted(batch_pairs, 'pair')} show{'s' * (steps == 1)} "
            f"each of them {_times(looks)}{many}"
        )
    waiting = waiting_decisions(version)
    if waiting:
        yield (
            f"{counted(waiting, 'decision')} of reviewers came after version "
            f"{version.id} was built; build again to take them in"
        )


def _times(looks: float) -> str:
    if looks < 1:
        return "less than once"
    return "once" if round(looks) == 1 else f"{looks:.0f} times"


def waiting_decisions(version: DatasetVersion) -> int:
    """How many pairs reviewers have decided about otherwise than the version has it."""
    ruling = Ruling.of(Audit(version.store).reviews())
    wanted = {(pair, verdict) for (pair, _), verdict in ruling.changes.items()}
    taken = {
        (reviewed.pair_id, str(reviewed.verdict))
        for reviewed in reviewed_of(version.store, version.id)
    }
    known = _ids(version.rows) | {pair for pair, _ in taken}
    return len({pair for pair, _ in wanted ^ taken} & known)


def _ids(rows: Sequence[IndexRow]) -> set[str]:
    return {original_id(row.pair_id) for row in rows}
