"""What a training run carries from step to step, its way into a checkpoint and back, and its looks
at validation scenes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import add_policy, policy_parameters
from focusdpo.model.backbone import Backbone
from focusdpo.model.training.checkpoint import Checkpoint
from focusdpo.model.training.config import LoraConfig, TrainConfig, ValidationConfig
from focusdpo.model.training.monitor import Guard
from focusdpo.model.training.optimisers import (
    build_optimiser,
    restore_state,
    state_numbers,
    state_tensors,
)
from focusdpo.store.local import make_folder, write_whole

LOOKS = "looks.json"
"""In the run's folder: a row per look, while it runs; run.json has them when it is done."""
_OPTIMISER = "adam."
"""Begins the names of its tensors, whichever it is: checkpoints are older than the choice."""


def resolved_lora(backbone: Backbone, config: LoraConfig) -> LoraConfig:
    """The config with the modules that are really covered."""
    return config.model_copy(update={"targets": config.targets or tuple(backbone.lora_targets)})


class RunState:
    """LoRA weights, the optimiser's state, averaged weights, guard, and steps taken."""

    def __init__(self, backbone: Backbone, config: TrainConfig) -> None:
        self.step = 0
        self.guard = Guard(config.guards)
        add_policy(backbone.transformer, resolved_lora(backbone, config.lora), seed=config.seed)
        self.parameters = policy_parameters(backbone.transformer)
        self.optimizer = build_optimiser(config, self.parameters)
        self._decay = config.ema
        self._config = config
        self._average = {n: p.detach().clone() for n, p in self.parameters.items()}

    def update(self, rate: float) -> None:
        """One optimiser step on the gradients that are there."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self._decay:
            for name, average in self._average.items():
                average.lerp_(self.parameters[name].detach(), 1 - self._decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights are what `use_average` would leave."""
        before = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.use_average()
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data.copy_(before[name])

    def use_average(self) -> None:
        """Puts the averaged weights in place, where the config asks for them: training is over."""
        if self._decay:
            for name, parameter in self.parameters.items():
                parameter.data.copy_(self._average[name])

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor, under flat names."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"lora/{name}"] = parameter
            if self._decay:
                tensors[f"ema/{name}"] = self._average[name]
        state = state_tensors(self.optimizer, self.parameters)
        return tensors | {f"{_OPTIMISER}{name}": tensor for name, tensor in state.items()}

    def numbers(self) -> dict[str, Any]:
        """What the optimiser remembers beside tensors; AdamW nothing."""
        return state_numbers(self.optimizer, self.parameters)

    def restore(self, saved: Checkpoint) -> None:
        """Becomes the state that was saved. UserError if the checkpoint is of another shape."""
        try:
            self.guard = Guard(self._config.guards, saved.meta["guard"])
            for name, parameter in self.parameters.items():
                parameter.data.copy_(saved.tensors[f"lora/{name}"])
                if self._decay:
                    self._average[name].copy_(saved.tensors[f"ema/{name}"])
            state = {
                name.removeprefix(_OPTIMISER): tensor
                for name, tensor in saved.tensors.items()
                if name.startswith(_OPTIMISER)
            }
            numbers = saved.meta.get("optimiser", {})
            restore_state(self.optimizer, self.parameters, state, numbers)
        except (KeyError, RuntimeError, TypeError) as error:
            raise UserError(
                f"checkpoint {saved.path} does not fit this run ({error}). Remove the folder, or "
                "train into a new one."
            ) from error
        self.step = saved.step


def require_same(saved: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """UserError if a folder holds a run of other settings, another base or other pairs."""
    words = {"config": "settings", "base": "base model", "pairs": "training pairs"}
    other = [word for key, word in words.items() if saved.get(key) != now[key]]
    if other:
        raise UserError(
            f"{where} holds a run with other {' and '.join(other)}. Train into a new folder, or "
            "remove this one to start over."
        )


def require_not_past(taken: int, wanted: int, where: Path) -> None:
    """UserError if a folder's run is longer than what is asked for."""
    if taken > wanted:
        raise UserError(
            f"{where} holds a run of {taken} steps, train.steps is {wanted}. Train into a new "
            "folder, or ask for at least as many steps."
        )


Validate = Callable[[], Mapping[str, float]]
"""Measures the weights that are in place on what is not trained on; higher is better for
`ValidationConfig.metric`."""


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
        if not config.every and (config.patience or config.keep == "best"):
            raise UserError("train.validation: patience and keep=best need every above 0")
        self._config, self._validate, self._folder = config, validate, folder
        self._writes = writes
        self.rows: list[dict[str, float]] = []

    def restore(self, rows: list[dict[str, Any]]) -> None:
        """The looks that a checkpoint tells of."""
        self.rows = [dict(row) for row in rows]
        self._tell()

    def due(self, step: int) -> bool:
        """Whether the scenes are looked at after `step`."""
        return bool(self._config.every) and step % (self._config.every or 1) == 0

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
            self._tell()
            is_best = self._config.keep == "best" and self.best_step == state.step
            if is_best and self._writes:
                write_whole(self._file(state.step), _weights(state))

    def _tell(self) -> None:
        """The looks so far, for who watches the run."""
        if self._writes and self.rows:
            make_folder(self._folder)
            write_whole(
                self._folder / LOOKS, json.dumps(self.rows, indent=1, sort_keys=True).encode()
            )

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
