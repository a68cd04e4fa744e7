"""torch.compile of a transformer's repeated blocks, which falls back to what it was."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from focusdpo.model.correspondence import unwrap

log = logging.getLogger(__name__)

_FAILURES = (RuntimeError, OSError, subprocess.SubprocessError, ValueError)
"""What compilers and their tools raise; dynamo's and inductor's own are RuntimeErrors."""
_CLOSE = 0.2
"""Largest difference of the trial's gradients, as a share: rounding apart it is one computation.
The loss would not tell: policy and reference policy start equal, right or wrong."""


def compile_blocks(transformer: nn.Module, trial: Callable[[], Tensor]) -> bool:
    """Compiles each repeated block in place, where a trial then gives what it gave before. Else the
    blocks are as they were, and the log says why, once; whether they are compiled now.

    `trial` is a training step that changes nothing; its gradient, flat."""
    from torch._dynamo import config as dynamo  # takes a second

    expected = trial()
    core: Any = unwrap(transformer)
    try:
        # The maps hook into blocks for some passes alone: else a pass that was compiled without a
        # hook would stand for those with one.
        dynamo.skip_nnmodule_hook_guards = False
        core.compile_repeated_blocks()
        gradient = trial()
    except torch.OutOfMemoryError:
        release_blocks(transformer)
        raise
    except _FAILURES as error:
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    else:
        share = ((gradient - expected).norm() / expected.norm().clamp(min=1e-12)).item()
        if share <= _CLOSE:
            return True
        why = f"the gradient of a compiled step differs by {100 * share:.0f} %"
    release_blocks(transformer)
    log.warning(
        "train.compile: the blocks are not compiled, training goes on without (%s). Set "
        "train.compile=false to leave the attempt out",
        why,
    )
    return False


def release_blocks(transformer: nn.Module) -> None:
    """The blocks are as they were before they were compiled."""
    for module in transformer.modules():
        module._compiled_call_impl = None
