"""What a worker process does for a cell. Models stay resident from cell to cell."""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusdpo.data_schemas.ablations import BASE
from focusdpo.data_schemas.evaluations import EvalScene, ScorerView
from focusdpo.data_schemas.progress import quiet
from focusdpo.data_schemas.tables import to_parquet
from focusdpo.flows.ablation.plan import DONE, Cell
from focusdpo.flows.wiring import build_part, vocabulary

if TYPE_CHECKING:
    from focusdpo.model.training.steps import ReferenceErrors


SCENES, SCORER = "scenes.parquet", "scorer.parquet"
"""What judge and preference scorer saw in a cell's pictures."""


def start_worker() -> None:
    """One thread a process: two OpenMP teams on the same cores ruin each other, and results do not
    depend on how many workers there are."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
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
    about: dict[str, Any] = {
        "key": cell.key,
        "kind": cell.kind,
        "objective": cell.objective,
        "source": cell.source,
        "seed": cell.seed,
        "settings": cell.settings,
    }
    if cell.train is not None:
        from focusdpo.flows.train.run import train

        outcome = train(cell.train, reference_errors=_reference_errors())
        about["train"] = {
            "seconds": outcome.seconds,
            "pairs": outcome.pairs,
            "steps": outcome.steps,
            "final": outcome.final,
            "validation": outcome.validation,
        }
    if cell.kind != "search":
        _measure(cell)
    about["seconds"] = round(time.perf_counter() - started, 2)
    temporary = cell.folder / f"{DONE}.part"
    temporary.write_text(json.dumps(about, indent=1, allow_nan=True) + "\n", encoding="utf-8")
    temporary.replace(cell.folder / DONE)
    return about


@functools.cache
def _reference_errors() -> ReferenceErrors:
    """One for the process: cells of one seed and source follow one another."""
    from focusdpo.model.training.steps import ReferenceErrors

    return ReferenceErrors()


def _measure(cell: Cell) -> None:
    """Paint the held-out scenes with what was trained (or the base) and let the judge look."""
    from focusdpo.evaluation.held_out import held_out_scenes
    from focusdpo.evaluation.run import (
        SCORERS,
        evaluate_model,
        protocol_of,
        scorer_view,
        write_subjects,
    )
    from focusdpo.model.adapter import load_adapter, remove_policy

    held_out = held_out_scenes(cell.held_out, vocabulary(cell.suite)[0])
    judge = build_part(cell.suite, "judge")
    generator = build_part(cell.suite, "generator")
    backbone = build_part(cell.suite, "backbone")
    segmenter, identity, clip = (build_part(cell.suite, role) for role in SCORERS)
    if cell.train is None:
        remove_policy(backbone.transformer)
        write_subjects(cell.folder, held_out)
    else:
        load_adapter(backbone, Path(cell.train.out) / "adapter")
    try:
        records = evaluate_model(
            BASE if cell.train is None else "adapter",
            held_out,
            generator,
            judge,
            cell.evaluate,
            cell.folder,
            quiet,
            protocol_of(cell.held_out),
            clip,
        )
    finally:
        remove_policy(backbone.transformer)
    views = scorer_view(records, held_out, segmenter, identity, cell.folder)
    (cell.folder / SCENES).write_bytes(to_parquet(records, EvalScene))
    (cell.folder / SCORER).write_bytes(to_parquet(views, ScorerView))
