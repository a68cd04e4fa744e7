"""What a training run sees of validation individuals: scenes painted with its present weights.

The individuals are those of the split `val` (protocol `pocket/val`): no dataset holds them, and no
result is told on them. The judge is the evaluation's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.runs import Watch, quiet
from focusdpo.evaluation.comparison import scene_means
from focusdpo.evaluation.held_out import HeldOutConfig, held_out_scenes
from focusdpo.evaluation.metrics import METRICS, nan_mean
from focusdpo.evaluation.pocket_protocol import measure, paint_scenes
from focusdpo.evaluation.protocols import EvaluateConfig, Models
from focusdpo.model.adapter import reference_policy

SCORE = "score"
"""identity + leakage margin, the latter where there are two subjects or more."""

_BASES: dict[tuple[str, int], dict[str, float]] = {}
"""The base's fingerprint and number of scenes -> the base's means, measured once a process."""


def validation_scenes(count: int) -> HeldOutConfig:
    """About `count` scenes of validation individuals, in the proportions of the pocket preset:
    half two subjects, a sixth each one, three, and two of one class."""
    sixth = max(1, round(count / 6))
    return HeldOutConfig(
        split="val",
        singles=sixth,
        pairs=max(1, count - 3 * sixth),
        same_class_pairs=sixth,
        triples=sixth,
    )


def check_metric(name: str) -> None:
    """UserError for what is not measured, or is better when lower: the best look is the highest."""
    known = [SCORE, *(metric for metric, about in METRICS.items() if about.better == "higher")]
    if name not in known:
        raise UserError(
            f"train.validation.metric '{name}': expected one that is better when higher: "
            f"{', '.join(known)}"
        )


class Validator:
    """Measures the weights that are in place; a `model.training.folder.Validate`."""

    def __init__(self, models: Models, scenes: int, watch: Watch = quiet) -> None:
        self._models, self._watch = models, watch
        self._config = EvaluateConfig()
        self._held_out = held_out_scenes(validation_scenes(scenes), models.vocabulary()[0])
        self._judge, self._clip = models.build("judge"), models.build("clip")
        # The generator paints with the very backbone that training changes.
        self._generator = models.build("generator")

    @property
    def scenes(self) -> int:
        """How many scenes a look paints."""
        return len(self._held_out.scenes)

    def base(self) -> dict[str, float]:
        """The base's means, measured once a process."""
        known = (self._models.fingerprint("generator"), self.scenes)
        if known not in _BASES:
            backbone = self._models.build("backbone")
            with reference_policy(backbone.transformer):
                _BASES[known] = means(self._measure())
        return _BASES[known]

    def __call__(self) -> Mapping[str, float]:
        """Each metric's mean over scenes less the base's."""
        base, now = self.base(), means(self._measure())
        return {name: now[name] - base[name] for name in now}

    def _measure(self) -> list[EvalScene]:
        scenes, references = self._held_out.scenes, self._held_out.references
        pictures = []
        step = self._config.batch
        for start in range(0, len(scenes), step):
            part = scenes[start : start + step]
            pictures += paint_scenes(part, references, self._generator, self._config)
            self._watch("validate", start + len(part), len(scenes), {})
        return measure(
            "validation",
            scenes,
            pictures,
            references,
            self._judge,
            self._config,
            clip=self._clip,
        )


def means(records: list[EvalScene]) -> dict[str, float]:
    """Each metric's mean over scenes, and `score`."""
    values = {name: scene_means(records, name) for name in METRICS}
    metric_means = {
        name: nan_mean(np.array(list(table.values()))) for name, table in values.items()
    }
    margins = values["leakage_margin"]
    scores = [value + np.nan_to_num(margins[s]) for s, value in values["identity"].items()]
    return {**metric_means, SCORE: float(np.mean(scores))}
