"""Base and adapter on one order, with the numbers that tell leakage: what the demo app shows."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.evaluations import EvalScene
from focusdpo.data_schemas.scenes import Scene, stable_id
from focusdpo.evaluation.metrics import METRICS
from focusdpo.evaluation.pocket_protocol import measure
from focusdpo.evaluation.protocols import EvaluateConfig
from focusdpo.flows.config import GenerateRun
from focusdpo.flows.generate.inference import Generator, Painted, Subject
from focusdpo.flows.wiring import build_part
from focusdpo.pipeline.parts import ReferenceImage

SHOWN = ("failed", "identity", "leakage_margin", "confusion", "duplicate", "missing")
"""Metrics of the table."""
_ONE_AT_A_TIME = threading.Lock()
"""Base and adapter may be one model whose adapter is put in and taken out."""


@dataclass(frozen=True)
class Side:
    """One model's pictures of the order, and what the judge sees in them."""

    name: str
    pictures: list[Painted]
    records: list[EvalScene]

    def mean(self, metric: str) -> float:
        """Over its pictures; NaN where the metric has no meaning."""
        values = np.array([getattr(record, metric) for record in self.records], np.float64)
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


class SideBySide:
    """Models with and without an adapter; without one it shows the base alone."""

    def __init__(self, base: Generator, adapted: Generator | None) -> None:
        self.base = base
        self.adapted = adapted

    @classmethod
    def of(
        cls, preset: str | GenerateRun, adapter: Path | None, settings: Sequence[str] = ()
    ) -> SideBySide:
        """From a preset and an adapter's folder. UserError when the adapter is of another base."""
        base = Generator(preset, settings=settings)
        adapted = None if adapter is None else Generator(base.run, adapter)
        return cls(base, adapted)

    def paint(
        self, prompt: str | None, subjects: Sequence[Subject], seeds: Sequence[int]
    ) -> list[Side]:
        """The same prompt, references and noise for both. UserError for bad input."""
        about = self.base.about(prompt, subjects, seeds)
        shown = [self.base.read(file, word) for file, word in subjects]
        _each_visible(shown)
        sides = []
        with _ONE_AT_A_TIME:
            for name, generator in (("base", self.base), ("FocusDPO", self.adapted)):
                if generator is not None:
                    pictures = generator(about.prompt, subjects, seeds)
                    sides.append((name, pictures))
            words = about.class_names
            return [
                Side(name, pictures, self._judged(name, about.prompt, words, shown, pictures))
                for name, pictures in sides
            ]

    def _judged(
        self,
        name: str,
        prompt: str,
        words: Sequence[str],
        shown: Sequence[ReferenceImage],
        pictures: Sequence[Painted],
    ) -> list[EvalScene]:
        ids = tuple(f"subject-{at}" for at in range(1, len(words) + 1))
        scene = Scene(
            id=stable_id("demo", prompt, *words),
            partition="demo",
            subject_ids=ids,
            class_names=tuple(words),
            prompt=prompt,
            variant=0,
            seed=0,
        )
        arrays = [np.array(painted.image, dtype=np.uint8) for painted in pictures]
        references = dict(zip(ids, shown, strict=True))
        config = EvaluateConfig(images_per_scene=len(arrays))
        family = self.base.run.family
        if isinstance(family, str):
            judge = build_part(family, "judge")
            known = {name_of: (picture,) for name_of, picture in references.items()}
            return measure(name, [scene], arrays, known, judge, config)
        from focusdpo.evaluation.dreambench_metrics import (
            BenchParts,
            know_subject,
            measure_pictures,
        )

        parts = BenchParts(
            whole=None,
            identity=build_part(family, "judge_identity"),
            clip=build_part(family, "clip"),
            segmenter=build_part(family, "judge_segmenter"),
        )
        looked = {
            name_of: know_subject([picture.image], word, parts, config, [picture.mask])
            for (name_of, picture), word in zip(references.items(), words, strict=True)
        }
        judged, _ = measure_pictures(
            name, "demo", [scene] * len(arrays), list(range(len(arrays))),
            [""] * len(arrays), arrays, looked, parts, config,
        )  # fmt: skip
        return judged


def rows(sides: Sequence[Side]) -> list[tuple[str, str, list[str]]]:
    """(metric, meaning, a value per side); "-" where a metric has no meaning, as leakage has none
    for one subject alone."""
    made = []
    for name in SHOWN:
        metric = METRICS[name]
        values = [side.mean(name) for side in sides]
        share = metric.unit == "share"
        texts = ["-" if v != v else f"{v:.0%}" if share else f"{v:.3f}" for v in values]
        made.append(
            (metric.label, f"{metric.better.capitalize()} is better. {metric.meaning}", texts)
        )
    return made


def _each_visible(shown: Sequence[ReferenceImage]) -> None:
    for at, reference in enumerate(shown, start=1):
        if reference.mask.mean() < 0.01:
            raise UserError(f"subject {at}: hardly anything of it is visible; cut it out larger")
