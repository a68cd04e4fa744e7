"""The reference policy's errors, kept from run to run of one process.

They depend on base, pairs, their order, noise and noise levels, and on nothing that an objective
changes. Runs that differ in their objective alone therefore share them, and all but the first do
without the reference policy's pass, a quarter of a step.
"""

from __future__ import annotations

from torch import Tensor

from focusdpo.model.training.config import TrainConfig, digest

Place = tuple[int, int]
"""Step, and the first slot of the pass in the step's batch."""


class ReferenceErrors:
    """Errors per token (2B, N) by run and place; what exceeds `limit_mib` is computed anew."""

    def __init__(self, limit_mib: int = 256) -> None:
        self._left = limit_mib * 2**20
        self._runs: dict[str, dict[Place, Tensor]] = {}

    def of(self, base: str, pairs: str, config: TrainConfig) -> KnownErrors:
        """Those of runs with this base, these pairs and this order and noise."""
        decides = {
            "base": base,
            "pairs": pairs,
            "noise": config.noise.model_dump(mode="json"),
            **{name: getattr(config, name) for name in _DECIDES},
        }
        return KnownErrors(self, self._runs.setdefault(digest(decides), {}))

    def spend(self, size: int) -> bool:
        """Whether there is room for so many bytes; if so they are taken."""
        if size > self._left:
            return False
        self._left -= size
        return True


_DECIDES = ("seed", "batch_pairs", "micro_pairs", "memory", "mixed_precision")


class KnownErrors:
    """The errors of one kind of run."""

    def __init__(self, owner: ReferenceErrors, known: dict[Place, Tensor]) -> None:
        self._owner, self._known = owner, known

    def get(self, place: Place) -> Tensor | None:
        """(2B, N), or None where they are not known yet."""
        return self._known.get(place)

    def put(self, place: Place, error_BN: Tensor | None) -> None:
        """Keep what a pass gave."""
        if error_BN is None or place in self._known:
            return
        if self._owner.spend(error_BN.numel() * error_BN.element_size()):
            self._known[place] = error_BN
