"""Where the processes of `num_processes` compute: a card each, or the cores of this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.models_config import Family
from focusdpo.model.training.parallel import num_launched


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one process computes."""

    name: str
    """For people."""
    card: str | None = None
    """What its CUDA_VISIBLE_DEVICES is; None: it computes on cores."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """More of its environment, where this process has no value of its own."""


def slots_of(num_processes: int, family: Family) -> list[Slot]:
    """A slot for each process; 0: one for each card that is visible. Models that compute on cores
    (`models.device=cpu`, the embedded suite, no card) get any number, and equal shares of them.

    UserError for more processes than cards, a device that names one card, and under a launcher,
    which starts processes of its own.
    """
    if num_launched() > 1:
        raise UserError(
            f"num_processes={num_processes}: a launcher has started {num_launched()} processes "
            "already; start this command without torchrun or accelerate launch"
        )
    device = "cpu" if isinstance(family, str) else family.device
    if ":" in device and num_processes != 1:
        raise UserError(
            f"models.device={device} names one card and num_processes={num_processes} asks for "
            "several; set models.device=auto and choose cards by CUDA_VISIBLE_DEVICES"
        )
    cards = [] if device == "cpu" else visible_cards()
    if not cards:
        return _on_cores(max(1, num_processes))
    if num_processes > len(cards):
        raise UserError(
            f"num_processes={num_processes}, one process a card, and {len(cards)} "
            f"{'is' if len(cards) == 1 else 'are'} visible here ({', '.join(cards)}); give at most "
            f"{len(cards)}, or 0 for all, or let CUDA_VISIBLE_DEVICES name more"
        )
    threads = _threads(num_processes or len(cards))
    return [Slot(f"card {card}", card, threads) for card in cards[: num_processes or None]]


def visible_cards() -> list[str]:
    """The cards that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if named is None else map(str.strip, named.split(","))
    return list(names)[:count]


def _on_cores(count: int) -> list[Slot]:
    threads = _threads(count)
    return [Slot(f"process {number} of {count}", None, threads) for number in range(1, count + 1)]


def _threads(processes: int) -> dict[str, str]:
    """As torchrun does it, but with all cores: teams of threads on the same cores ruin each
    other."""
    return {"OMP_NUM_THREADS": str(max(1, available_cores() // processes))}


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
