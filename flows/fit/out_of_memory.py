"""A device whose memory has run out, in words: what helps, nearest first. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from focusdpo.flows.models_config import ModelsConfig

_TOLD = ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
MOST = 3
"""Settings that are named."""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is the end of a device's memory."""
    while error is not None:
        names = {kind.__name__ for kind in type(error).__mro__}
        if "OutOfMemoryError" in names or any(text in str(error) for text in _TOLD):
            return True
        error = error.__cause__
    return False


def in_words(error: BaseException, run: Any) -> str:
    """What happened and the settings that help a run, for one line."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else "out of memory"
    helping = list(what_helps(run))[:MOST]
    advice = " ".join(f"--set {setting}" for setting in helping)
    least = "run it where nothing else uses the card, or on a larger one"
    hint = f"try {advice}" if helping else least
    return (
        f"the card's memory is full ({first.removesuffix('.')}). What was finished is kept, and "
        f"the same command goes on from there; {hint}"
    )


def what_helps(run: Any) -> Iterator[str]:
    """Settings that save memory and are not set yet, as for --set. Those that a run may change
    half-way come first; a base in 4 bits is another base, with which a training starts anew."""
    train = getattr(run, "train", None)
    if train is not None:
        if not train.gradient_checkpointing:
            yield "train.gradient_checkpointing=true"
        if train.memory != "sequential":
            yield "train.memory=sequential"
        if train.micro_pairs != 1:
            yield "train.micro_pairs=1"
    models = getattr(run, "models", None)
    if not isinstance(models, ModelsConfig) or getattr(run, "suite", "") == "pocket":
        return
    if train is None and models.batch > 1:
        yield f"models.batch={models.batch // 2}"
    for role in ("backbone", "inpainter"):
        if getattr(getattr(models, role), "offload", None) is False:
            yield f"models.{role}.offload=true"
    if train is None and getattr(models.segmenter, "mask_batch", 1) > 1:
        yield "models.segmenter.mask_batch=1"
    if getattr(models.backbone, "quantise", None) == "none":
        yield "models.backbone.quantise=4bit"
