"""An ablation's cells, and what a worker process does for one.

A cell is a training run and what is painted after it, under a name that holds a digest of all that
decides it, so that a finished cell is never made again and none is mistaken. Models stay resident
from cell to cell.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from focusdpo.data_schemas.ablations import BASE
from focusdpo.data_schemas.runs import quiet
from focusdpo.evaluation.folder import read_object, write_json
from focusdpo.evaluation.held_out import HeldOutConfig
from focusdpo.evaluation.metrics import METRICS
from focusdpo.evaluation.protocols import ADAPTER, EvaluateConfig
from focusdpo.evaluation.validation import validation_scenes
from focusdpo.flows.ablation.config import CHOICES, Condition, ObjectiveKey
from focusdpo.flows.config import AblateRun, TrainRun
from focusdpo.flows.settings import merge, nested
from focusdpo.flows.wiring import fingerprint_of, suite
from focusdpo.model.objective_registry import VARIANTS
from focusdpo.store.keys import config_digest

if TYPE_CHECKING:
    from focusdpo.model.training.steps import ReferenceErrors

Kind = Literal["search", "final", "base", "choice", "best"]
"""search: a trial, seen on validation scenes while it trains. final: trained, then seen on the
held-out scenes. choice: a reading of FocusDPO, trained, then seen on validation scenes. base:
nothing trained, held-out scenes. best: the same, several pictures a scene."""

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
    condition: Condition | None
    """What it is trained on."""

    @property
    def source(self) -> str:
        """Name of what it learns from; empty for what is not trained."""
        return self.condition.name if self.condition else ""

    @property
    def name(self) -> str:
        """For people."""
        return self.folder.name

    def finished(self) -> dict[str, Any] | None:
        """What it left when it was done; None when it is not, or was made by other settings."""
        file = self.folder / DONE
        if not file.is_file():
            return None
        about = read_object(file, f"remove {self.folder} and run again")
        return about if about["key"] == self.key else None


class Cells:
    """The cells of a run on a dataset version."""

    def __init__(self, run: AblateRun, version: str) -> None:
        self.run, self.version = run, version
        roles = ("generator", "judge", "segmenter", "identity", "clip")
        self._parts = {role: fingerprint_of(run.suite, role) for role in roles}

    def base(self) -> Cell:
        """The untrained model on the held-out scenes."""
        return self._cell("base", "base", {}, 0, None)

    def best_of(self) -> list[Cell]:
        """The untrained model again, with several pictures of each held-out scene."""
        return [
            self._cell("best", f"best of {count}", {}, 0, None, pictures=count)
            for count in self.run.ablation.best_of
        ]

    def choices(self, settings: Mapping[str, Any]) -> list[Cell]:
        """FocusDPO with both maps as the search set it, then each other reading, on validation
        scenes; `Cell.settings` is what a reading changes."""
        config = self.run.ablation
        main = config.conditions[0]
        readings = [{}, *(CHOICES[name] for name in config.choices)] if config.choices else []
        return [
            self._trained("choice", "focus_dpo", dict(reading), main, base=settings)
            for reading in readings
        ]

    def search(self) -> list[Cell]:
        """Every trial of every objective, on the main condition, with seed 0."""
        config = self.run.ablation
        looks = {"every": config.look_every, "scenes": config.validation_scenes}
        return [
            self._trained("search", objective, trial, config.conditions[0], validation=looks)
            for objective in config.objectives
            for trial in config.trials(objective, self.run.train.objective)
        ]

    def final(self, chosen: Mapping[ObjectiveKey, dict[str, Any]]) -> list[Cell]:
        """Every objective with its chosen settings on every condition with every seed; the main one
        first, and what differs in its objective alone together: it shares the reference policy's
        errors."""
        config = self.run.ablation
        return [
            self._trained("final", objective, chosen[objective], condition, seed)
            for condition in config.conditions
            for seed in range(config.seeds)
            for objective in config.objectives
        ]

    def _trained(
        self,
        kind: Kind,
        objective: ObjectiveKey,
        settings: dict[str, Any],
        condition: Condition,
        seed: int = 0,
        *,
        base: Mapping[str, Any] = {},  # noqa: B006
        **more: Any,
    ) -> Cell:
        """`base`: settings below those of the cell; `more` of `train` beside what all share."""
        tree = merge(self.run.train.model_dump(), nested(VARIANTS[objective].settings))
        mean = condition.noise_mean
        level = {} if mean is None else {"noise.mean": mean}
        tree = merge(tree, nested({**level, **base, **settings}))
        steps = self.run.ablation.steps
        cell_settings = {
            "source": condition.source,
            "seed": seed,
            "steps": steps,
            "tensorboard": False,
            **more,
        }
        train = TrainRun(
            suite=self.run.suite,
            preset=self.run.preset,
            root=self.run.dataset_root,
            version=self.version,
            out="",
            train=merge(tree, cell_settings),
        )
        return self._cell(kind, objective, settings, seed, train, condition=condition)

    def _cell(
        self,
        kind: Kind,
        objective: ObjectiveKey,
        settings: dict[str, Any],
        seed: int,
        train: TrainRun | None,
        *,
        condition: Condition | None = None,
        pictures: int = 0,
    ) -> Cell:
        """`pictures`: of each scene, where it is not as many as the evaluation says."""
        run = self.run
        more = {"images_per_scene": pictures} if pictures else {}
        evaluate = run.evaluate.model_copy(update=more)
        decides: dict[str, Any] = {"parts": self._parts, "version": self.version}
        if train is not None:
            decides["train"] = train.train.model_dump(mode="json")
        if condition is not None and condition.pairs:
            decides["pairs"] = condition.pairs
        held_out = run.held_out
        if kind == "choice":
            held_out = validation_scenes(run.ablation.validation_scenes)
        if kind != "search":
            decides["metrics"] = list(METRICS)
            decides["held_out"] = held_out.model_dump(mode="json")
            decides["evaluate"] = evaluate.model_dump(mode="json")
        key = config_digest(decides)
        folder = Path(run.out) / (objective.replace(" ", "-") if pictures else BASE)
        if train is not None and condition is not None:
            place = {"search": "search", "choice": "choices"}.get(kind, "cells")
            words = [objective, condition.name, f"s{seed}", key[:8]]
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
            evaluate=evaluate,
            condition=condition,
        )


def start_worker() -> None:
    """One thread a process: two OpenMP teams on the same cores ruin each other, and results do not
    depend on how many workers there are."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, and that this one
    import torch

    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("focusdpo").setLevel(logging.ERROR)


def _end_with_parent(parent: int) -> None:
    """A worker whose parent was killed would go on with its queue, beside the workers of the
    command's next start, in the same folders."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train and measure; what is done already is not done again. UserError as `train` raises."""
    done = cell.finished()
    if done is not None:
        return done
    started = time.perf_counter()
    cell.folder.mkdir(parents=True, exist_ok=True)
    names = ("key", "kind", "objective", "source", "seed", "settings")
    about: dict[str, Any] = {name: getattr(cell, name) for name in names}
    if cell.train is not None:
        from focusdpo.flows.train.run import train

        limit = cell.condition.pairs if cell.condition else 0
        outcome = train(cell.train, reference_errors=_reference_errors(), pairs=limit)
        kept = ("seconds", "pairs", "steps", "final", "validation")
        about["train"] = {name: getattr(outcome, name) for name in kept}
    if cell.kind != "search":
        _measure(cell)
    about["seconds"] = round(time.perf_counter() - started, 2)
    write_json(cell.folder / DONE, about)
    return about


@functools.cache
def _reference_errors() -> ReferenceErrors:
    """One for the process: cells of one seed and source follow one another."""
    from focusdpo.model.training.steps import ReferenceErrors

    return ReferenceErrors()


def _measure(cell: Cell) -> None:
    """Paint the held-out scenes with what was trained (or the base) and let the judge look."""
    from focusdpo.evaluation.pocket_protocol import PocketPanel
    from focusdpo.evaluation.run import (
        paint_missing,
        painting_by,
        write_subjects,
        write_tables,
    )
    from focusdpo.model.adapter import load_adapter, remove_policy

    models, out = suite(cell.suite), cell.folder
    panel = PocketPanel(models, cell.held_out, cell.evaluate)
    generator, backbone = models.build("generator"), models.build("backbone")
    if cell.train is None:
        model = BASE
        remove_policy(backbone.transformer)
        write_subjects(out, panel)
    else:
        model = ADAPTER
        load_adapter(backbone, Path(cell.train.out) / "adapter")
    try:
        names = paint_missing(
            out,
            model,
            cell.key,
            panel,
            cell.evaluate.images_per_scene,
            painting_by(lambda: generator),
            batch=cell.evaluate.batch,
            watch=quiet,
        )
    finally:
        remove_policy(backbone.transformer)
    write_tables(out, panel, {model: panel.measure(model, out, names, quiet)})
