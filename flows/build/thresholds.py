"""What a dataset's thresholds keep of one's own data: the first scenes are built, every decision's
values are shown with what each threshold would keep, and a value is proposed; none is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from focusdpo.data_schemas.candidates import Disrupted, Instance, Scored
from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import Watch
from focusdpo.flows.build.builder import Builder
from focusdpo.flows.build.run import Build
from focusdpo.flows.build.stages import STAGES
from focusdpo.flows.config import BuildRun
from focusdpo.flows.jobs import Steps
from focusdpo.pipeline.upkeep.garbage import building

WANTED = 0.7
"""Share of the candidates that a proposed threshold keeps."""
LEAST, MOST = 0.4, 0.98
"""Shares between which a threshold is left alone: below, most work is thrown away; above, it
decides nothing."""
FEWEST = 10
"""Values from which something is proposed."""
BINS = 20


@dataclass(frozen=True)
class Decision:
    """One threshold and the values that it was held against."""

    setting: str
    about: str
    threshold: float
    values: tuple[float, ...]
    keeps_above: bool
    """Whether values at or above it pass; else at or below."""

    def share(self, threshold: float) -> float:
        """Of the values, what a threshold would keep."""
        values = np.asarray(self.values)
        kept = values >= threshold if self.keeps_above else values <= threshold
        return float(kept.mean()) if len(values) else 0.0

    def at_share(self, share: float) -> float:
        """The strictest threshold that keeps so much, in three digits, rounded to keep more."""
        values = np.sort(self.values)
        keep = max(1, int(np.ceil(share * len(values))))
        edge = float(values[-keep] if self.keeps_above else values[keep - 1])
        down = np.floor if self.keeps_above else np.ceil
        return float(round(down(edge * 1000) / 1000, 3))

    @property
    def proposal(self) -> float | None:
        """Another threshold, where the present one keeps too little, and there are enough values
        to say so."""
        if len(self.values) < FEWEST or self.share(self.threshold) >= LEAST:
            return None
        return self.at_share(WANTED)

    def lines(self) -> Iterator[str]:
        """For people: what it is, a histogram, what some thresholds keep, what is proposed."""
        now = self.share(self.threshold)
        sign = ">=" if self.keeps_above else "<="
        yield (
            f"{self.setting} {sign} {self.threshold:g} keeps {now:.0%} of {len(self.values)} "
            f"({self.about})"
        )
        if not self.values:
            return
        yield f"  {_bars(self.values)}  {min(self.values):.3f} to {max(self.values):.3f}"
        some = [(share, self.at_share(share)) for share in (0.9, 0.7, 0.5, 0.3)]
        yield "  " + ", ".join(f"{value:g} keeps {self.share(value):.0%}" for _, value in some)
        if (proposal := self.proposal) is not None:
            yield f"  proposed: --set {self.setting}={proposal:g}, keeps {self.share(proposal):.0%}"
        elif now > MOST and len(self.values) >= FEWEST:
            yield "  it rejects next to nothing"

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        kept = {"keeps": self.share(self.threshold), "proposal": self.proposal}
        return {**asdict(self), "values": list(self.values), **kept}


def _bars(values: Sequence[float]) -> str:
    span = min(values), max(max(values), min(values) + 1e-3)
    counts, _ = np.histogram(values, bins=BINS, range=span)
    signs = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
    top = max(int(counts.max()), 1)
    return "".join(signs[int(np.ceil(8 * count / top))] for count in counts)


def look_first(run: BuildRun, scenes: int, steps: Steps, watch: Watch) -> list[Decision]:
    """Builds the first partitions that hold so many scenes, up to their scores, and tells what
    each threshold keeps of them. What is made stays for the build of all; no version is published.
    UserError where every partition fails."""
    job = Build(run)
    job.builder.keep_first(scenes)
    with building(job.builder.store):
        job.compute(steps, watch)
        scored = list(_scored(job.builder))
    if not scored:
        raise UserError(f"{run.root}: none of the first partitions could be scored")
    return decisions(run, scored)


@dataclass(frozen=True)
class Partition:
    """What was decided about."""

    instances: Sequence[Instance]
    disrupted: Sequence[Disrupted]
    scored: Sequence[Scored]
    scene_subjects: Mapping[str, tuple[str, ...]]


def _scored(builder: Builder) -> Iterator[Partition]:
    for name, scenes in builder.partitions.items():
        keys = {stage: builder.plan.key(stage, name) for stage in STAGES}
        if not builder.store.has("score", keys["score"]):
            continue

        def records(stage: str, keys: Mapping[str, str] = keys) -> list[Any]:
            return builder.store.read(stage, keys[stage], STAGES[stage].record)

        subjects = {scene.id: scene.subject_ids for scene in scenes}
        yield Partition(records("segment"), records("disrupt"), records("score"), subjects)


def decisions(run: BuildRun, partitions: Iterable[Partition]) -> list[Decision]:
    """Every threshold of segment and pair with the values that it is held against. Values of a
    decision are those of all candidates, also of those that another decision drops."""
    values: dict[str, list[float]] = {name: [] for name in _ABOUT}
    for partition in partitions:
        scores = {score.candidate_id: score for score in partition.scored}
        values["segment.min_confidence"] += [
            instance.confidence for instance in partition.instances if instance.found != "missing"
        ]
        whole = [s for s in partition.scored if s.kind == "sampled" and s.complete]
        values["pair.min_winner_identity"] += [min(s.identity) for s in whole]
        values["pair.min_winner_margin"] += [
            min(s.leakage_margin) for s in whole if len(s.identity) > 1
        ]
        for other in partition.disrupted:
            win, lose = scores[other.parent_id], scores[other.id]
            names = partition.scene_subjects[other.scene_id]
            places = [names.index(name) for name in other.subject_ids]
            drops = [win.identity[place] - lose.identity[place] for place in places]
            values["pair.min_drop"].append(float(np.mean(drops)))
            values["pair.min_drop_each"].append(min(drops))
            values["pair.background_tolerance"].append(lose.background)
            values["pair.clip_t_tolerance"].append(abs(win.clip_t - lose.clip_t))
        for scene in partition.scene_subjects:
            means = [float(np.mean(s.identity)) for s in whole if s.scene_id == scene]
            if len(means) > 1:
                values["pair.rank_margin"].append(max(means) - min(means))
    return [
        Decision(
            name,
            about,
            float(getattr(getattr(run, name.partition(".")[0]), name.partition(".")[2])),
            tuple(values[name]),
            not name.endswith("_tolerance"),
        )
        for name, about in _ABOUT.items()
    ]


_ABOUT = {
    "segment.min_confidence": "found instances; what is below was never counted",
    "pair.min_winner_identity": "candidates with every subject once, their worst one's likeness",
    "pair.min_winner_margin": "the same of several subjects: own reference against the others'",
    "pair.min_drop": "disruptions, mean loss of likeness",
    "pair.min_drop_each": "disruptions, least loss of likeness of a subject",
    "pair.background_tolerance": "disruptions, change outside the repainted place",
    "pair.clip_t_tolerance": "disruptions, CLIP-T apart",
    "pair.rank_margin": "scenes, best against worst candidate",
}
