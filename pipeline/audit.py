"""The audit of human review, and what it comes to.

reviews/<2 digits>/<pair id>.<review id>.json     one decision each, never changed

Each decision is a file of its own with a name of its own, so any number of reviewers may write at
once, on a local disk and on an object store, and none is lost. Nothing is ever taken away, except
by a purge of a subject that the pair shows.

What counts for a pair: of each reviewer the latest decision, unless that withdraws it. The decision
with most votes holds. Where two or more have equally many, the pair is contested and left out: a
pair about which people disagree teaches nothing certain. Decisions hold for the two pictures that
were judged; when a build makes other pictures, they wait in the audit.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import re
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import TypeAdapter, ValidationError

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.pairs import (
    DECISIONS,
    Decision,
    Pair,
    Review,
    ReviewedPair,
    Verdict,
    turned_mode,
)
from focusdpo.data_schemas.strict import first_problem
from focusdpo.pipeline.shard import PAIR_ID
from focusdpo.store.artefacts import Corrupt, Store
from focusdpo.store.keys import digest, sealed, unsealed

FOLDER = "reviews"
SWAPPED = "-swapped"
"""Ends the id of a pair whose winner and loser have changed places: another sample, another name,
so that no reader takes the one in an old shard for it."""
TURNED = "review: swapped; the scorers said: "
NAME = re.compile(r"[0-9a-f]{2}/([A-Za-z0-9_-]+)\.[0-9a-f]{32}\.json")
LONGEST_NAME, LONGEST_REASON = 64, 1000
READERS = 16
"""Requests at once where each file is one."""
VERDICTS: Mapping[Decision, Verdict] = {
    "accept": "accepted",
    "reject": "rejected",
    "swap": "swapped",
}

Judged = tuple[str, str]
"""Pair id and digest of the pictures."""


def original_id(pair_id: str) -> str:
    """The id under which a pair was built."""
    return pair_id.removesuffix(SWAPPED)


def is_swapped(pair_id: str) -> bool:
    """Whether reviews have exchanged this pair's winner and loser."""
    return pair_id.endswith(SWAPPED)


def judged_digest(pair: Pair) -> str:
    """What a decision is about: the two pictures, whichever is the winner."""
    return digest("\0".join(sorted([pair.win_image, pair.lose_image])).encode())[:16]


def swapped(pair: Pair) -> Pair:
    """The pair with winner and loser exchanged; done twice, it is as it was.

    Masks, prior and captions stay: the prior is the region in which the two differ, from either
    side, and masks say where each subject stands.
    """
    back = is_swapped(pair.id)
    return dataclasses.replace(
        pair,
        mode=turned_mode(pair.source, pair.mode),
        id=original_id(pair.id) if back else f"{pair.id}{SWAPPED}",
        win_id=pair.lose_id,
        lose_id=pair.win_id,
        win_image=pair.lose_image,
        lose_image=pair.win_image,
        win_identity=pair.lose_identity,
        lose_identity=pair.win_identity,
        win_leakage_margin=pair.lose_leakage_margin,
        lose_leakage_margin=pair.win_leakage_margin,
        win_clip_t=pair.lose_clip_t,
        lose_clip_t=pair.win_clip_t,
        margin=-pair.margin,
        reason=pair.reason.removeprefix(TURNED) if back else f"{TURNED}{pair.reason}",
    )


class Audit:
    """A root's reviews. Files that were read once are not read again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[str, Review] = {}

    def reviews(self) -> list[Review]:
        """All decisions as of now, oldest first. UserError names a damaged file."""
        there = [path for path in self._store.files.listing(FOLDER) if NAME.fullmatch(path)]
        new = [path for path in there if path not in self._read]
        self._read = {path: self._read[path] for path in there if path in self._read}
        if self._store.files.local is None and len(new) > 1:
            with ThreadPoolExecutor(READERS) as pool:
                loaded = list(pool.map(self._load, new))
        else:
            loaded = [self._load(path) for path in new]
        self._read |= dict(zip(new, loaded, strict=True))
        return sorted(self._read.values(), key=lambda review: (review.when, review.id))

    def damaged(self) -> list[Corrupt]:
        """The decisions that cannot be read as they were written."""
        damaged = []
        for path in filter(NAME.fullmatch, self._store.files.listing(FOLDER)):
            try:
                self._load(path)
            except UserError as error:
                damaged.append(Corrupt(stage=FOLDER, key=path, what=str(error)))
        return damaged

    def record(
        self,
        pair: Pair,
        decision: Decision,
        reviewer: str,
        *,
        reason: str = "",
        blind: bool = False,
        now: datetime.datetime | None = None,
    ) -> Review:
        """Store a decision about a pair as it was built, and return it. It is on disk when this
        returns."""
        if decision not in DECISIONS:
            raise UserError(f"decision '{decision}': expected one of {', '.join(DECISIONS)}")
        if not PAIR_ID.fullmatch(pair.id) or is_swapped(pair.id):
            raise ValueError(f"pair '{pair.id}': expected the id under which it was built")
        review = Review(
            id=uuid.uuid4().hex,
            pair_id=pair.id,
            judged=judged_digest(pair),
            partition=pair.partition,
            subject_ids=pair.subject_ids,
            source=pair.source,
            margin=pair.margin,
            decision=decision,
            reviewer=clean_reviewer(reviewer),
            when=self._when(pair.id, reviewer, now or datetime.datetime.now(datetime.UTC)),
            reason=clean_reason(reason),
            blind=blind,
        )
        path = _path(review)
        data = sealed(dataclasses.asdict(review))
        if not self._store.files.write(f"{FOLDER}/{path}", data, replace=False):
            raise RuntimeError(f"{FOLDER}/{path}: a name that is made once is there already")
        self._read[path] = review
        return review

    def record_all(
        self,
        decided: Sequence[tuple[Pair, Decision]],
        reviewer: str,
        *,
        reason: str = "",
        blind: bool = False,
    ) -> list[Review]:
        """Store decisions about several pairs that are one act: all have one time, by which
        `act_of` finds them again."""
        now = datetime.datetime.now(datetime.UTC)
        moment = max((self._when(pair.id, reviewer, now) for pair, _ in decided), default="")
        return [
            self.record(
                *(pair, decision, reviewer),
                reason=reason,
                blind=blind,
                now=datetime.datetime.fromisoformat(moment),
            )
            for pair, decision in decided
        ]

    def remove_of(self, subjects: Collection[str]) -> int:
        """Take away all decisions about pairs that show one of the subjects; how many. For purges
        alone."""
        theirs = [review for review in self.reviews() if set(subjects) & set(review.subject_ids)]
        for review in theirs:
            path = _path(review)
            self._store.files.remove(f"{FOLDER}/{path}")
            self._read.pop(path, None)
        return len(theirs)

    def _when(self, pair_id: str, reviewer: str, now: datetime.datetime) -> str:
        """Later than what this reviewer has said of the pair, even if the clock went back."""
        times = [
            datetime.datetime.fromisoformat(review.when)
            for review in self._about(pair_id)
            if review.reviewer == clean_reviewer(reviewer)
        ]
        last = max(times, default=None)
        if last is not None and last >= now:
            now = last + datetime.timedelta(microseconds=1)
        return now.isoformat(timespec="microseconds")

    def _about(self, pair_id: str) -> list[Review]:
        """All decisions about one pair, by a look into one folder."""
        folder = _folder(pair_id)
        names = self._store.files.names(f"{FOLDER}/{folder}")
        paths = [f"{folder}/{name}" for name in names if name.startswith(f"{pair_id}.")]
        return [self._read.get(path) or self._load(path) for path in paths if NAME.fullmatch(path)]

    def _load(self, path: str) -> Review:
        where = f"{self._store.root}/{FOLDER}/{path}"
        try:
            return _adapter().validate_python(unsealed(self._store.files.read(f"{FOLDER}/{path}")))
        except ValueError as error:
            what = first_problem(error) if isinstance(error, ValidationError) else error
            raise UserError(
                f"{where}: not a review ({what}); restore it from a copy, or remove it if the "
                "decision is not wanted"
            ) from error


def _folder(pair_id: str) -> str:
    return digest(pair_id.encode())[:2]


def _path(review: Review) -> str:
    return f"{_folder(review.pair_id)}/{review.pair_id}.{review.id}.json"


@functools.cache
def _adapter() -> TypeAdapter[Review]:
    return TypeAdapter(Review)


def clean_reviewer(name: str) -> str:
    """A reviewer's name as it is kept; UserError when it cannot be one."""
    clean = " ".join(name.split(" ")).strip()
    if not clean or len(clean) > LONGEST_NAME or not clean.isprintable():
        raise UserError(
            f"reviewer: expected 1 to {LONGEST_NAME} printable characters, got {len(name)}"
        )
    return clean


def clean_reason(reason: str) -> str:
    """A reason as it is kept: one paragraph. UserError when it is too long or not text."""
    clean = " ".join(reason.split())
    if len(clean) > LONGEST_REASON:
        raise UserError(
            f"reason: {len(clean)} characters; expected at most {LONGEST_REASON}, say it shorter"
        )
    if not clean.isprintable():
        raise UserError("reason: holds control characters; expected plain text")
    return clean


def act_of(reviews: Sequence[Review], pair_id: str, reviewer: str) -> list[str]:
    """The pairs that a reviewer decided about together with what was decided last about one, as far
    as it is the last word about them; without a decision none."""
    last: dict[str, str] = {}
    for review in reviews:
        if review.reviewer == reviewer:
            last[review.pair_id] = max(last.get(review.pair_id, ""), review.when)
    if pair_id not in last:
        return []
    return sorted(name for name, when in last.items() if when == last[pair_id])


def standing(reviews: Iterable[Review]) -> dict[Judged, dict[str, Review]]:
    """Per pair and pictures, each reviewer's decision that counts; those withdrawn are out.
    `reviews` in any order."""
    latest: dict[Judged, dict[str, Review]] = {}
    for review in sorted(reviews, key=lambda review: (review.when, review.id)):
        latest.setdefault((review.pair_id, review.judged), {})[review.reviewer] = review
    held = {
        judged: {name: review for name, review in by.items() if review.decision != "withdraw"}
        for judged, by in latest.items()
    }
    return {judged: by for judged, by in held.items() if by}


def verdict_of(decisions: Iterable[Decision]) -> Verdict | None:
    """What the decisions that count come to; None without one."""
    votes = Counter(decision for decision in decisions if decision != "withdraw").most_common()
    if not votes:
        return None
    if len(votes) > 1 and votes[0][1] == votes[1][1]:
        return "contested"
    return VERDICTS[votes[0][0]]


def verdicts(reviews: Iterable[Review]) -> dict[Judged, Verdict]:
    """What all reviews come to, per pair and pictures."""
    return {
        judged: verdict
        for judged, by in standing(reviews).items()
        if (verdict := verdict_of(review.decision for review in by.values())) is not None
    }


@dataclasses.dataclass(frozen=True)
class Ruling:
    """The verdicts that change a dataset."""

    changes: Mapping[Judged, Verdict]
    """All but `accepted`."""
    partitions: Mapping[str, Sequence[str]]
    """Partition -> a text per verdict in it, sorted: what its samples depend on."""
    where: Mapping[Judged, str]
    """The partition of each."""

    @classmethod
    def of(cls, reviews: Sequence[Review]) -> Ruling:
        changes = {
            judged: verdict
            for judged, verdict in verdicts(reviews).items()
            if verdict != "accepted"
        }
        where = {
            (review.pair_id, review.judged): review.partition
            for review in reviews
            if (review.pair_id, review.judged) in changes
        }
        partitions: dict[str, list[str]] = {}
        for judged, verdict in sorted(changes.items()):
            partitions.setdefault(where[judged], []).append("/".join([*judged, verdict]))
        return cls(changes, partitions, where)

    def apply(self, pairs: Sequence[Pair]) -> tuple[list[Pair], list[ReviewedPair]]:
        """The pairs that stay, some exchanged, and what was changed."""
        kept: list[Pair] = []
        changed: list[ReviewedPair] = []
        for pair in pairs:
            verdict = self.changes.get((pair.id, judged_digest(pair)))
            if verdict is None:
                kept.append(pair)
                continue
            if verdict == "swapped":
                kept.append(swapped(pair))
            changed.append(
                ReviewedPair(
                    pair_id=pair.id,
                    partition=pair.partition,
                    subject_ids=pair.subject_ids,
                    verdict=verdict,
                )
            )
        return kept, changed
