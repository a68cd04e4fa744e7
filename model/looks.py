"""Looking at validation scenes while training: the best weights, and when to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.checkpoint import write_file
from focusdpo.model.configs import ValidationConfig
from focusdpo.model.run_state import RunState

Validate = Callable[[], Mapping[str, float]]
"""Paints validation scenes with the weights that are in place and measures them; higher is better
for `ValidationConfig.metric`."""


class Looks:
    """The looks of a run so far; they go into checkpoints, so a resumed run decides alike."""

    def __init__(
        self,
        config: ValidationConfig,
        validate: Validate | None,
        folder: Path,
        *,
        writes: bool = True,
    ) -> None:
        """`writes`: this is the process that keeps the best weights."""
        if config.every and validate is None:
            raise ValueError("train.validation.every is set and no `validate` was given")
        self._config, self._validate, self._folder = config, validate, folder
        self._writes = writes
        self.rows: list[dict[str, float]] = []

    def restore(self, rows: list[dict[str, Any]]) -> None:
        """The looks that a checkpoint tells of."""
        self.rows = [dict(row) for row in rows]

    def due(self, step: int) -> bool:
        """Whether the scenes are looked at after `step`."""
        return self._config.every > 0 and step % self._config.every == 0

    def look(self, state: RunState) -> None:
        """Measure the present weights, and keep them if they are the best so far."""
        assert self._validate is not None
        with state.averaged():
            values = dict(self._validate())
            if self._config.metric not in values:
                raise UserError(
                    f"train.validation.metric '{self._config.metric}': the validation measures "
                    f"{', '.join(sorted(values))}"
                )
            self.rows.append({"step": state.step, **values})
            is_best = self._config.keep == "best" and self.best_step == state.step
            if is_best and self._writes:
                write_file(self._file(state.step), _weights(state))

    @property
    def best_step(self) -> int:
        """The first step with the best value; 0 before any look."""
        if not self.rows:
            return 0
        return int(max(self.rows, key=lambda row: row[self._config.metric])["step"])

    @property
    def stop(self) -> bool:
        """Whether the last `patience` looks have all been no better than one before them."""
        since = [row for row in self.rows if row["step"] > self.best_step]
        return 0 < self._config.patience <= len(since)

    def kept_step(self, last: int) -> int:
        """The step whose weights the adapter of a run of `last` steps holds."""
        return (self.best_step if self._config.keep == "best" else 0) or last

    def forget_older(self) -> None:
        """Removes weights that are not the best; call after a checkpoint."""
        for path in self._folder.glob("best-*.safetensors"):
            if path != self._file(self.best_step):
                path.unlink()

    def use_best(self, state: RunState) -> None:
        """Puts the best weights in place, where the config asks for them."""
        from safetensors.torch import load

        if self._config.keep == "best" and self.best_step:
            tensors = load(self._file(self.best_step).read_bytes())
            for name, parameter in state.parameters.items():
                parameter.data.copy_(tensors[name])

    def _file(self, step: int) -> Path:
        return self._folder / f"best-{step:06d}.safetensors"


def _weights(state: RunState) -> bytes:
    from safetensors.torch import save

    return save({n: p.detach().cpu().contiguous() for n, p in state.parameters.items()})
