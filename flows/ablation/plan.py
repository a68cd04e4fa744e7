"""An ablation's cells: each a training run and what is painted after it, under a name that holds a
digest of all that decides it, so that a finished cell is never made again and none is mistaken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from focusdpo.data_schemas.ablations import BASE
from focusdpo.evaluation.held_out import HeldOutConfig
from focusdpo.evaluation.metrics import METRICS
from focusdpo.evaluation.pocket_protocol import EvaluateConfig
from focusdpo.evaluation.validation import validation_scenes
from focusdpo.flows.ablation.config import CHOICES, ObjectiveKey, Source
from focusdpo.flows.config import AblateRun, TrainRun
from focusdpo.flows.settings import merge, nested
from focusdpo.flows.wiring import fingerprint_of
from focusdpo.model.objective_registry import VARIANTS
from focusdpo.store.keys import config_digest

Kind = Literal["search", "final", "base", "choice"]
"""search: a trial, seen on validation scenes while it trains. final: trained, then seen on the
held-out scenes. choice: a reading of FocusDPO, trained, then seen on validation scenes. base:
nothing trained, held-out scenes."""

DONE = "cell.json"
"""Written last: a cell without it is unfinished and goes on."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Work for one process: train, where there is something to train, and measure."""

    kind: Kind
    objective: ObjectiveKey
    settings: dict[str, Any]
    """What the search varies, dotted below `train`."""
    seed: int
    train: TrainRun | None
    folder: Path
    key: str
    """Digest of all that decides the result."""
    suite: str
    held_out: HeldOutConfig
    evaluate: EvaluateConfig

    @property
    def source(self) -> Source | Literal[""]:
        """Pairs it learns from."""
        return self.train.train.source if self.train else ""

    @property
    def name(self) -> str:
        """For people."""
        return self.folder.name

    def finished(self) -> dict[str, Any] | None:
        """What it left when it was done; None when it is not, or was made by other settings."""
        file = self.folder / DONE
        if not file.is_file():
            return None
        about: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return about if about["key"] == self.key else None


class Plan:
    """The cells of a run on a dataset version."""

    def __init__(self, run: AblateRun, version: str) -> None:
        self.run, self.version = run, version
        roles = ("generator", "judge", "segmenter", "identity", "clip")
        self._parts = {role: fingerprint_of(run.suite, role) for role in roles}

    def base(self) -> Cell:
        """The untrained model on the held-out scenes."""
        return self._cell("base", "base", {}, 0, None)

    def choices(self, settings: Mapping[str, Any]) -> list[Cell]:
        """FocusDPO with both maps as the search set it, then each other reading, on validation
        scenes; `Cell.settings` is what a reading changes."""
        config = self.run.ablation
        source = config.sources[0]
        readings = [{}, *(CHOICES[name] for name in config.choices)] if config.choices else []
        return [
            self._cell(
                "choice",
                "focus_dpo",
                dict(reading),
                0,
                self._train("focus_dpo", source, 0, {**settings, **reading}, {}),
            )
            for reading in readings
        ]

    def search(self) -> list[Cell]:
        """Every trial of every objective, on pairs of the main source, with seed 0."""
        config = self.run.ablation
        looks = {"every": config.look_every, "scenes": config.validation_scenes}
        return [
            self._cell(
                "search",
                objective,
                trial,
                0,
                self._train(objective, config.sources[0], 0, trial, {"validation": looks}),
            )
            for objective in config.objectives
            for trial in config.trials(objective, self.run.train.objective)
        ]

    def final(self, chosen: Mapping[ObjectiveKey, dict[str, Any]]) -> list[Cell]:
        """Every objective with its chosen settings on every source with every seed; the main source
        first, and what differs in its objective alone together: it shares the reference policy's
        errors."""
        config = self.run.ablation
        return [
            self._cell(
                "final",
                objective,
                chosen[objective],
                seed,
                self._train(objective, source, seed, chosen[objective], {}),
            )
            for source in config.sources
            for seed in range(config.seeds)
            for objective in config.objectives
        ]

    def _train(
        self,
        objective: ObjectiveKey,
        source: Source,
        seed: int,
        settings: Mapping[str, Any],
        more: Mapping[str, Any],
    ) -> TrainRun:
        tree = merge(self.run.train.model_dump(), nested(VARIANTS[objective].settings))
        tree = merge(tree, nested(settings))
        steps = self.run.ablation.steps
        own = {"source": source, "seed": seed, "steps": steps, "tensorboard": False, **more}
        return TrainRun(
            suite=self.run.suite,
            preset=self.run.preset,
            root=self.run.dataset_root,
            version=self.version,
            out="",
            train=merge(tree, own),
        )

    def _cell(
        self,
        kind: Kind,
        objective: ObjectiveKey,
        settings: dict[str, Any],
        seed: int,
        train: TrainRun | None,
    ) -> Cell:
        run = self.run
        decides: dict[str, Any] = {"parts": self._parts, "version": self.version}
        if train is not None:
            decides["train"] = train.train.model_dump(mode="json")
        held_out = run.held_out
        if kind == "choice":
            held_out = validation_scenes(run.ablation.validation_scenes)
        if kind != "search":
            decides["metrics"] = list(METRICS)
            decides["held_out"] = held_out.model_dump(mode="json")
            decides["evaluate"] = run.evaluate.model_dump(mode="json")
        key = config_digest(decides)
        folder = Path(run.out) / BASE
        if train is not None:
            place = {"search": "search", "choice": "choices"}.get(kind, "cells")
            words = [objective, train.train.source, f"s{seed}", key[:8]]
            folder = Path(run.out) / place / "-".join(words)
            train = train.model_copy(update={"out": str(folder / "train")})
        return Cell(
            kind=kind,
            objective=objective,
            settings=settings,
            seed=seed,
            train=train,
            folder=folder,
            key=key,
            suite=run.suite,
            held_out=held_out,
            evaluate=run.evaluate,
        )
