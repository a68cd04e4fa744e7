"""The processes of a run: who writes, how they average, and how the frozen base is shared out.

Data are split over processes and the LoRA is whole on each: it is small, so one reduction of its
gradient per step does without a wrapper around the backbone, which would not understand forward
passes with and without the LoRA. With `train.shard` full the frozen base lies in shares, one per
process (torch's fully_shard, FSDP2): each block is gathered when it is needed. The LoRA is left out
of that. So nothing of the base has a gradient to reduce, no requires_grad changes after wrapping,
the reference policy stays a flag on the LoRA's layers, and checkpoints are those of one process.
Nothing heavy is imported before it is used: the command line asks here who it is.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from focusdpo.data_schemas.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from focusdpo.model.training.monitor import Table

log = logging.getLogger(__name__)

PATIENCE = timedelta(hours=6)
"""How long processes wait for each other: the first one alone paints validation scenes."""
_LAUNCH = "accelerate launch --config_file ddp.yaml -m focusdpo.flows.cli train ..."


def num_launched(environ: Mapping[str, str] = os.environ) -> int:
    """How many processes the launcher (accelerate, torchrun) has started; 1 without one."""
    return int(environ.get("WORLD_SIZE", "1"))


def is_first(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that writes and speaks."""
    return int(environ.get("RANK", "0")) == 0


def take_place() -> None:
    """To be called before models are loaded: "cuda" is this process's own card from now on.
    UserError for a launcher's settings that would be ignored or do harm."""
    import torch

    sharding_of("auto")
    if num_launched() > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def meet(device: torch.device) -> None:
    """Waits for all processes that the launcher has started."""
    Processes(device).wait()


class Processes:
    """The processes that train together; one, where nothing has launched more."""

    def __init__(self, device: torch.device) -> None:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        group = InitProcessGroupKwargs(timeout=PATIENCE)
        with _without("ACCELERATE_USE_DEEPSPEED"):  # its engine takes no part: see `sharding_of`
            self._accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[group])
        self._device = device

    @property
    def num(self) -> int:
        return int(self._accelerator.num_processes)

    @property
    def index(self) -> int:
        return int(self._accelerator.process_index)

    @property
    def is_main(self) -> bool:
        return bool(self._accelerator.is_main_process)

    def share_of(self, batch_pairs: int) -> range:
        """The slots of a step that are this process's. UserError where they do not divide."""
        if batch_pairs % self.num:
            raise UserError(
                f"train.batch_pairs {batch_pairs} must be a multiple of the number of processes, "
                f"{self.num}"
            )
        local = batch_pairs // self.num
        return range(self.index * local, (self.index + 1) * local)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its mean over processes: one reduction for all, in their order."""
        import torch

        if self.num == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        flat = self._accelerator.reduce(flat, "mean")
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def mean(self, value: float) -> float:
        """The mean of a number."""

        if self.num == 1:
            return value
        return float(self._accelerator.reduce(self._tensor([value]), "sum").item() / self.num)

    def rows(self, table: Table) -> Table:
        """The tables' rows of all processes, in the order of their slots."""
        if self.num == 1:
            return table
        columns = self._tensor(np.stack(list(table.values()), axis=1))
        values = self._accelerator.gather(columns).double().cpu().numpy()
        return dict(zip(table, values.T, strict=True))

    def any(self, flag: bool) -> bool:
        """Whether it is so on any process."""
        return self.mean(float(flag)) > 0

    def _tensor(self, values: Any) -> Tensor:
        import torch

        return torch.as_tensor(values, dtype=torch.float64, device=self._device)

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Every process gets the first one's values."""
        from accelerate.utils import broadcast

        for tensor in tensors if self.num > 1 else ():
            tensor.data.copy_(broadcast(tensor.detach().clone(), from_process=0))

    def require_agreement(self, what: Mapping[str, Any]) -> None:
        """UserError where processes hold different things under a name: they would wait for each
        other for ever, or train on what the others do not."""
        from accelerate.utils import gather_object

        if self.num == 1:
            return
        gathered = gather_object([{name: repr(value) for name, value in what.items()}])
        for name in what:
            values = [held[name] for held in gathered]
            if len(set(values)) > 1:
                raise UserError(
                    f"the processes differ in their {name}: {', '.join(sorted(set(values)))}. "
                    "All need the same settings, the same models, and folders that all of them see"
                )

    def wait(self) -> None:
        """Until all are here."""
        self._accelerator.wait_for_everyone()


@contextmanager
def _without(name: str) -> Iterator[None]:
    """Inside, an environment variable is not there."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


@dataclass(frozen=True)
class Sharding:
    """How the frozen base is shared out."""

    classes: tuple[str, ...] = ()
    """Names of the block classes that are gathered as one; empty: what the backbone or its model
    says."""
    reshard: bool = True
    """Whether a block's weights are dropped between its forward and its backward."""


def sharding_of(shard: str, environ: Mapping[str, str] = os.environ) -> Sharding | None:
    """What `train.shard` means under this launcher; None where each process holds the whole base.

    Read from accelerate's configuration: FSDP2's block classes and reshard_after_forward; of
    DeepSpeed, whose engine takes no part, the ZeRO stage: 3 is full. UserError for what would be
    ignored, or would leave models without weights."""

    def on(name: str) -> bool:
        return environ.get(name, "false").lower() in ("true", "1")

    fsdp, deepspeed = on("ACCELERATE_USE_FSDP"), on("ACCELERATE_USE_DEEPSPEED")
    if fsdp:
        _require_fsdp2(environ, on)
    stage = _zero_stage(environ) if deepspeed else "0"
    if shard == "none" or (shard == "auto" and not fsdp and stage != "3"):
        return None
    if num_launched(environ) < 2:
        raise UserError(
            "train.shard full shares the base out over processes, and there is one. Start several, "
            f"as in `{_LAUNCH}`, or leave train.shard at auto"
        )
    names = environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "") if fsdp else ""
    classes = tuple(name.strip() for name in names.split(",") if name.strip())
    return Sharding(classes, not fsdp or on("FSDP_RESHARD_AFTER_FORWARD"))


def _require_fsdp2(environ: Mapping[str, str], on: Callable[[str], bool]) -> None:
    version = environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UserError(f"accelerate's configuration has fsdp_version: {version}; write 2")
    for name, advice in _UNSUPPORTED.items():
        if on(name):
            raise UserError(
                f"accelerate's configuration has {name.lower()}: true; write false: {advice}"
            )


_UNSUPPORTED = {
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "transformers would load weights in the first process only",
    "FSDP_OFFLOAD_PARAMS": "the base computes where it lies",
    "FSDP_ACTIVATION_CHECKPOINTING": "set train.gradient_checkpointing=true in its place",
}


def _zero_stage(environ: Mapping[str, str]) -> str:
    for name in ("OFFLOAD_OPTIMIZER_DEVICE", "OFFLOAD_PARAM_DEVICE", "ZERO3_INIT"):
        value = environ.get(f"ACCELERATE_DEEPSPEED_{name}", "none")
        if value not in ("none", "false"):
            raise UserError(
                f"accelerate's configuration has {name.lower()}: {value}; DeepSpeed's engine takes "
                "no part in training. Take the file that ships, deepspeed_zero2.yaml or "
                "deepspeed_zero3.yaml"
            )
    return environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")


def block_classes(transformer: nn.Module, named: Sequence[str] = ()) -> tuple[str, ...]:
    """Class names of the blocks to gather as one: `named`, or those that diffusers lists in
    `_no_split_modules`. UserError where the model has none of them."""
    wanted = tuple(named) or tuple(getattr(transformer, "_no_split_modules", None) or ())
    classes = {type(module).__name__ for module in transformer.modules()}
    if not classes & set(wanted):
        raise UserError(
            f"train.shard: {type(transformer).__name__} has no block of class "
            f"{' or '.join(wanted) or '(none is named)'}; correct "
            "fsdp_transformer_layer_cls_to_wrap in accelerate's configuration"
        )
    return wanted


def shard_base(transformer: nn.Module, whole: Collection[nn.Parameter], sharding: Sharding) -> None:
    """Shares the frozen weights out over the processes, in place and for good: use such a backbone
    in a process of its own. `whole` (the LoRA) stays as it is on each. Every process must run every
    forward pass from now on. Nothing happens to a transformer that is sharded already.

    UserError for quantised weights, block classes that are not there, and torch before 2.7."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if isinstance(transformer, FSDPModule):
        return
    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise UserError("train.shard full needs torch 2.7 or newer: pip install -U torch")
    ids = {id(parameter) for parameter in whole}
    base = {name: p for name, p in transformer.named_parameters() if id(p) not in ids}
    for name, parameter in base.items():
        if not parameter.is_floating_point():
            raise UserError(
                f"train.shard full: {name} is {parameter.dtype}; a quantised base cannot be shared "
                "out. Load it in bf16, or train with shard=none"
            )
        if parameter.requires_grad:
            raise ValueError(f"{name} is trained; only a frozen base is shared out")
    device = next(iter(base.values())).device
    mesh = init_device_mesh(device.type, (num_launched(),))
    classes = block_classes(transformer, sharding.classes)
    blocks = [m for m in transformer.modules() if type(m).__name__ in classes]
    for module in [*reversed(blocks), transformer]:  # what lies inside comes first
        fully_shard(
            module, mesh=mesh, reshard_after_forward=sharding.reshard, ignored_params=set(whole)
        )
    log.info("the base lies in shares over %d processes, %d blocks", num_launched(), len(blocks))
