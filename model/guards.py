"""Watching a run: stop on what is not finite, skip spikes, warn when the loss only looks good."""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.configs import GuardConfig

log = logging.getLogger(__name__)

_MIN_HISTORY = 10


class Guard:
    """Running means of a run; its state goes into checkpoints, so a resumed run decides alike."""

    def __init__(self, config: GuardConfig, state: dict[str, Any] | None = None) -> None:
        state = state or {
            "norms": [],
            "rises": [],
            "shares": [],
            "warned": 0,
            "saturated": 0,
            "usual": 0.0,
        }
        self._config = config
        self._norms: deque[float] = deque(state["norms"], maxlen=config.window)
        self._rises: deque[float] = deque(state["rises"], maxlen=config.window)
        self._shares: deque[float] = deque(state["shares"], maxlen=config.window)
        self._warned = int(state["warned"])
        self._saturated = int(state["saturated"])
        self._usual = float(state["usual"])

    def state(self) -> dict[str, Any]:
        """For JSON; numbers survive exactly."""
        return {
            "norms": list(self._norms),
            "rises": list(self._rises),
            "shares": list(self._shares),
            "warned": self._warned,
            "saturated": self._saturated,
            "usual": self._usual,
        }

    def check_finite(self, step: int, loss: float, norm: float, good: str) -> None:
        """UserError when there is nothing sensible to go on with; `good` says what is safe."""
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise UserError(
            f"training stopped at step {step}: loss {loss}, gradient norm {norm}. {good} "
            "Lower lr or objective.beta, or set mixed_precision=no, and start in a new folder."
        )

    def is_spike(self, step: int, norm: float) -> bool:
        """Whether this step's gradient is so far out of line that it is better left out.

        Usual is the highest running median so far: a preference that most pairs have learned has
        hardly any gradient, and the few hard pairs that are left must not look like spikes."""
        if len(self._norms) >= _MIN_HISTORY:
            self._usual = max(self._usual, statistics.median(self._norms))
            if norm > self._config.spike * self._usual > 0:
                log.warning(
                    "step %d skipped: gradient norm %.3g, usual %.3g", step, norm, self._usual
                )
                return True
        self._norms.append(norm)
        return False

    def watch_winner(self, step: int, gap: float, error: float) -> None:
        """Warns when the winner's error has risen above the reference policy's: DPO may win by
        harming the loser more. `gap` is e_w - e_w^ref, `error` e_w."""
        if not math.isfinite(gap):
            return
        self._rises.append(gap / max(error - gap, 1e-12))
        rise = statistics.fmean(self._rises)
        full = len(self._rises) == self._config.window
        if full and rise > self._config.winner_rise and step - self._warned >= self._config.window:
            self._warned = step
            log.warning(
                "step %d: the winner's error is %.1f %% above the reference policy's over the last "
                "%d steps; lower objective.beta or lr, or set objective.eta",
                step,
                100 * rise,
                self._config.window,
            )

    def watch_saturation(self, step: int, share: float) -> None:
        """Warns once when the pairs are learned: what is left of their gradient, sigmoid(-logit),
        has become so small that only noise and the anchor move the weights."""
        if not math.isfinite(share):
            return
        self._shares.append(share)
        mean = statistics.fmean(self._shares)
        full = len(self._shares) == self._config.window
        if full and mean < self._config.saturation and not self._saturated:
            self._saturated = step
            log.warning(
                "step %d: the pairs are learned; over the last %d steps each gave %.1f %% of its "
                "full gradient. More steps teach nothing: lower objective.beta, or add pairs",
                step,
                self._config.window,
                100 * mean,
            )
