"""Preference pairs, the reasons why others were rejected, and what people decided about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from focusdpo.data_schemas.subjects import ImageKey, Reference

PairSource = Literal["disrupt", "rank", "failure"]
SOURCES: tuple[PairSource, ...] = get_args(PairSource)
Reason = Literal[
    "missing_subject",  # a subject was not found in the would-be winner
    "duplicate_subject",  # a subject was found more than once in it
    "weak_winner",  # the winner does not keep identity well enough
    "empty_repaint",  # disrupt: a repainted place shows nothing of its subject's class
    "no_identity_drop",  # the loser keeps identity nearly as well as the winner
    "meaning_changed",  # CLIP-T of winner and loser differ by more than the tolerance
    "background_changed",  # pixels outside the repainted mask differ
    "too_few_candidates",  # rank: fewer than two usable candidates
    "small_margin",  # rank: best and worst are too close
    "no_right_candidate",  # failure: no candidate shows every subject once, like itself
    "no_failed_candidate",  # failure: no candidate lacks, doubles or confuses a subject
    "unsafe_picture",  # the filter of unsafe pictures refused the candidate
    "surplus",  # more pairs than the scene's quota; the best were kept
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Winner and loser of one scene. R subjects in scene order."""

    id: str
    scene_id: str
    partition: str
    source: PairSource
    mode: str
    """disrupt: all, subset or swap; rank: rank; failure: a word of `SIGNS` per subject."""
    prompt: str
    subject_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    captions: tuple[str, ...]
    win_id: str
    lose_id: str
    win_image: ImageKey
    lose_image: ImageKey
    masks: tuple[ImageKey, ...]
    """Where each subject stands: for disrupt its instance mask, else the union over both."""
    prior: ImageKey | None
    """disrupt: the region really repainted. rank: None, meaning the union of `masks`. failure:
    where the subjects with a sign stand, in either picture."""
    references: tuple[Reference, ...]
    """One reference per subject, the one the generator saw."""
    win_identity: tuple[float, ...]
    lose_identity: tuple[float, ...]
    win_leakage_margin: tuple[float, ...]
    lose_leakage_margin: tuple[float, ...]
    win_clip_t: float
    lose_clip_t: float
    margin: float
    """Mean over the subjects that differ of win identity - lose identity, of mixed pairs times the
    subject's sign."""
    reason: str
    """Why it was accepted, in words with its numbers."""


SIGNS: dict[str, int] = {"win": 1, "same": 0, "lose": -1}
"""Which picture shows a subject better: the winner, neither, the loser."""


def signs_of(source: str, mode: str, num_subjects: int) -> tuple[int, ...]:
    """The sign of each subject's region: 1 where the winner shows it right and the loser fails, -1
    the other way round, 0 where they do not differ so. The pairs of other sources have one sign."""
    if source != "failure":
        return (1,) * num_subjects
    return tuple(SIGNS[word] for word in mode.split())


def is_mixed(source: str, mode: str) -> bool:
    """Whether each picture has a subject that the other fails at: no picture is the better one."""
    return source == "failure" and {"win", "lose"} <= set(mode.split())


def turned_mode(source: str, mode: str) -> str:
    """The mode of a pair with winner and loser exchanged: what each shows of a mixed pair stays as
    it is; else whoever exchanges them says that the signs were wrong."""
    if not is_mixed(source, mode):
        return mode
    back = {1: "lose", 0: "same", -1: "win"}
    return " ".join(back[SIGNS[word]] for word in mode.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A would-be pair that was dropped."""

    scene_id: str
    candidate_id: str
    source: PairSource
    reason: Reason
    detail: str


Decision = Literal[
    "accept",  # the winner is better: the pair stays as it was built
    "reject",  # neither is better, or the pair teaches something wrong
    "swap",  # the loser is better
    "withdraw",  # the reviewer takes an earlier decision back
]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
Verdict = Literal["accepted", "rejected", "contested", "swapped"]
"""What all decisions about a pair come to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """One decision of one reviewer. It is never changed; a later one counts instead."""

    id: str
    pair_id: str
    """As the pair was built, whichever side a version shows as its winner."""
    judged: str
    """Digest of its two pictures: a decision holds for these only."""
    partition: str
    subject_ids: tuple[str, ...]
    source: PairSource
    margin: float
    """Of the pair as it was built: above zero, as its scorers saw it."""
    decision: Decision
    """About the pair as it was built: `swap` says that its loser is better."""
    reviewer: str
    when: str
    """UTC, ISO 8601."""
    reason: str = ""
    blind: bool = False
    """The reviewer did not know which side the scorers prefer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewedPair:
    """A pair that reviews have changed in a dataset version."""

    pair_id: str
    """As it was built."""
    partition: str
    subject_ids: tuple[str, ...]
    verdict: Verdict
    """rejected, contested or swapped."""
