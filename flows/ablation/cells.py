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
from focusdpo.data_schemas.progress import quiet
from focusdpo.evaluation.protocols import ADAPTER
from focusdpo.flows.ablation.plan import DONE, Cell
from focusdpo.flows.wiring import suite

if TYPE_CHECKING:
    from focusdpo.model.training.steps import ReferenceErrors


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
    from focusdpo.evaluation.pocket_protocol import PocketPanel
    from focusdpo.evaluation.run import paint_missing, write_subjects, write_tables
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
            lambda: generator,
            batch=cell.evaluate.batch,
            watch=quiet,
        )
    finally:
        remove_policy(backbone.transformer)
    write_tables(out, panel, {model: panel.measure(model, out, names, quiet)})
