"""Which adapter is the one in use: a pointer that is replaced whole, and the history behind it.

A models folder:

    promoted.json                     the adapter in use; replaced whole, so readers see one or the
                                      other
    candidates/<version>-<settings>/  one training each
        started.json                  why it was trained
        train/  evaluate/             what `train` and `evaluate` left
        against/                      the promoted adapter by the same protocol, where it had to be
                                      painted again
        decision.json                 its numbers, and whether and why it was promoted; `settled`
                                      once the pointer follows it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.evaluations import EvalScene, WholeScores
from focusdpo.evaluation.comparison import GROUPS, intervals
from focusdpo.evaluation.folder import PHOTOGRAPHS, RUN, SCENES, EvaluationFolder, read_object
from focusdpo.evaluation.protocols import ADAPTER, BASE, DIFFERENCE, EvaluateConfig
from focusdpo.flows.retrain.config import WHOLE, RetrainConfig, better
from focusdpo.store.keys import sealed, unsealed
from focusdpo.store.local import make_folder, write_whole

POINTER = "promoted.json"
CANDIDATES = "candidates"
DECISION = "decision.json"
STARTED = "started.json"
RECORDS = (RUN, SCENES, PHOTOGRAPHS)
"""What `compare` reads of an evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """The adapter in use."""

    candidate: str
    adapter: str
    """Its folder, below the models folder."""
    version: str
    """The dataset version that it learned from."""
    base: str
    """Fingerprint of the generator that it belongs to."""
    promoted: str
    """When, ISO 8601 in UTC."""
    before: str | None
    """The candidate that it took the place of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A candidate against what is in use, painted from the same scenes and seeds."""

    protocol: str
    metric: str
    group: str
    against: str
    """The promoted candidate's name, or base."""
    ours: float
    theirs: float
    """Means over scenes."""
    difference: float
    """Mean of the paired differences, ours less theirs."""
    low: float
    high: float
    """Its bootstrap interval."""
    scenes: int


def read_promoted(models: Path) -> Promoted | None:
    """The adapter in use; None before the first. UserError when the pointer is damaged."""
    file = models / POINTER
    try:
        return Promoted(**unsealed(file.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file}: damaged ({error}); {CANDIDATES}/*/{DECISION} tell which candidate was "
            "promoted last: write its pointer by hand, or remove the file, and the next candidate "
            "is compared with the base"
        ) from error


def write_promoted(models: Path, promoted: Promoted) -> None:
    """Point at another adapter, all at once."""
    write_record(models / POINTER, asdict(promoted))


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """A sealed file, whole, in a folder that is made."""
    make_folder(path.parent)
    write_whole(path, sealed(value))


def read_record(path: Path) -> dict[str, Any] | None:
    """A file of `write_record`; None when it is absent, UserError when it is damaged."""
    again = f"remove {path.parent} and run again"
    return read_object(path, again) if path.exists() else None


def history(models: Path | str) -> list[dict[str, Any]]:
    """Every candidate, oldest first: what is known of its start and of its decision."""
    candidates = []
    for started in (Path(models) / CANDIDATES).glob(f"*/{STARTED}"):
        about = read_record(started) or {}
        decided = read_record(started.with_name(DECISION)) or {"decision": "unfinished"}
        candidates.append({**about, **decided})
    return sorted(candidates, key=lambda candidate: str(candidate.get("started", "")))


def compare(
    ours: Path, theirs: Path | None, rival: str, rule: RetrainConfig, config: EvaluateConfig
) -> Comparison:
    """The paired difference of two adapters' evaluations: folders that `evaluate` wrote under the
    same settings. `theirs` None: against the base of `ours`.

    UserError when the group has no scene or the two are not of the same scenes.
    """
    evaluation = EvaluationFolder(ours)
    mine = _records(evaluation, ADAPTER, rule)
    others = _records(evaluation, BASE, rule)
    if theirs is not None:
        others = _records(EvaluationFolder(theirs), ADAPTER, rule)
    try:
        estimates = intervals(rule.metric, others, mine, config)
    except ValueError as error:
        raise UserError(f"{ours} and {theirs}: {error}") from error
    gap = estimates.get(DIFFERENCE)
    if gap is None or not gap.scenes:
        raise UserError(
            f"{ours}: no scene of the group '{rule.group}' has the metric '{rule.metric}'; choose "
            "others with --set retrain.group= and retrain.metric="
        )
    return Comparison(
        protocol=evaluation.protocol,
        metric=rule.metric,
        group=rule.group,
        against=rival,
        ours=estimates[ADAPTER].mean,
        theirs=estimates[BASE].mean,
        difference=gap.mean,
        low=gap.low,
        high=gap.high,
        scenes=gap.scenes,
    )


def _records(
    folder: EvaluationFolder, model: str, rule: RetrainConfig
) -> Sequence[EvalScene] | Sequence[WholeScores]:
    """A model's records of the scenes that decide."""
    scenes = [record for record in folder.of(model) if GROUPS[rule.group](record)]
    if rule.metric not in WHOLE:
        return scenes
    if not folder.holds(PHOTOGRAPHS):
        raise UserError(
            f"retrain.metric={rule.metric}: a metric of the DreamBench protocols; this is "
            f"{scenes[0].protocol if scenes else 'another'}"
        )
    wanted = {record.scene_id for record in scenes}
    return [
        record for record in folder.whole if record.model == model and record.scene_id in wanted
    ]


def decide(comparison: Comparison, rule: RetrainConfig) -> tuple[bool, str]:
    """Whether to promote, and the reason in one sentence."""
    sign = 1.0 if better(rule.metric) == "higher" else -1.0
    worst = min(sign * comparison.low, sign * comparison.high)
    bar = -rule.epsilon if rule.rule == "not_worse" else 0.0
    promote = worst > bar
    gap = f"{comparison.difference:+.4f} [{comparison.low:+.4f}, {comparison.high:+.4f}]"
    what = f"{rule.metric} {gap} against {comparison.against} over {comparison.scenes} scenes"
    if promote:
        verdict = "better" if bar == 0 else f"not worse by more than {rule.epsilon:g}"
        return True, f"{verdict}: {what}"
    if sign * comparison.difference < 0:
        return False, f"worse: {what}"
    wanted = "zero" if bar == 0 else f"the {rule.epsilon:g} that are put up with"
    return False, f"not surely better: {what}; its interval does not clear {wanted}"
