"""Training state on disk: whole or not there at all.

A checkpoint is a folder `step-000123` with `state.safetensors` and `checkpoint.json`. It is written
under a temporary name, flushed to the disk and renamed, so a kill at any moment leaves the last one
as it was. Nothing is pickled.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.keys import BESIDE, digest, sealed, unsealed
from focusdpo.store.local import disk_errors, sync_folder, write_whole

STATE = "state.safetensors"
META = "checkpoint.json"
KEEP = 2
"""Checkpoints of a run that stay."""
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """State after `step` optimiser steps."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    path: Path


def save_checkpoint(
    root: Path, step: int, tensors: dict[str, Tensor], meta: dict[str, Any], *, keep: int = KEEP
) -> Path:
    """Writes one checkpoint and removes all but the newest `keep`."""
    from safetensors.torch import save

    final = root / f"step-{step:06d}"
    temporary = root / f".tmp-step-{step:06d}"
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    about = sealed({"step": step, BESIDE: {STATE: digest(data)}, **meta})
    with disk_errors(final):
        shutil.rmtree(temporary, ignore_errors=True)
        root.mkdir(exist_ok=True)  # not what is above it: a folder that was taken away stays so
        temporary.mkdir()
        write_whole(temporary / STATE, data)
        write_whole(temporary / META, about)
        if final.exists():  # left by a run that was killed between rename and its next step
            shutil.rmtree(final)
        temporary.rename(final)
        sync_folder(root)
    prune_checkpoints(root, keep=keep)
    return final


def prune_checkpoints(root: Path, *, keep: int = KEEP) -> None:
    """Remove all but the newest `keep`: a run that was killed may have left one more."""
    for old in list_checkpoints(root)[:-keep]:
        shutil.rmtree(old)


def list_checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not root.is_dir():
        return []
    checkpoints = [
        (int(m[1]), path) for path in root.iterdir() if (m := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(checkpoints)]


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads and verifies one checkpoint; UserError naming it if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    advice = (
        f"Remove the folder {path} and run the same command again: it goes on from the checkpoint "
        "before it, or from the start."
    )
    try:
        meta = unsealed((path / META).read_bytes())
        data = (path / STATE).read_bytes()
        step = int(meta.pop("step"))
        # Those of before seals call it otherwise.
        wanted = meta.pop(BESIDE)[STATE] if BESIDE in meta else meta.pop("state_digest")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"checkpoint {path} is damaged: {error}. {advice}") from error
    if digest(data) != wanted:
        raise UserError(
            f"checkpoint {path} is damaged: {STATE} ({len(data)} bytes) is corrupt or truncated. "
            f"{advice}"
        )
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise UserError(f"checkpoint {path} is damaged: {error}. {advice}") from error
    return Checkpoint(step, tensors, meta, path)


def newest_checkpoint(root: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run, or None for a fresh start."""
    checkpoints = list_checkpoints(root)
    return load_checkpoint(checkpoints[-1]) if checkpoints else None
