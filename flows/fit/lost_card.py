"""A card that computes no more (it fell off the bus, its driver ended it, a kernel failed): every
later call of the process fails, too. Imports no torch."""

from __future__ import annotations

from focusdpo.flows.fit.out_of_memory import out_of_memory

_TOLD = ("CUDA error:", "CUDA driver error", "No CUDA GPUs are available", "CUDNN_STATUS_")


class CardGone(RuntimeError):
    """A process that was given a card sees none."""


def card_is_lost(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, leaves the process without its card; a card whose memory
    is full is not lost."""
    if out_of_memory(error):
        return False
    while error is not None:
        names = {kind.__name__ for kind in type(error).__mro__}
        known = any(text in str(error) for text in _TOLD)
        if {"AcceleratorError", "CardGone"} & names or (isinstance(error, RuntimeError) and known):
            return True
        error = error.__cause__
    return False


def in_words(error: BaseException) -> str:
    """What happened and what to do, for one line."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
    return (
        f"the card computes no more ({first.removesuffix('.')}). What was finished is kept, and "
        "the same command goes on from there; `nvidia-smi` and the system's log say what became of "
        "the card, CUDA_VISIBLE_DEVICES chooses another"
    )
