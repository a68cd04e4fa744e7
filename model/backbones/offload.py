"""Room on the device: models on the disk until they are needed and on the CPU between two uses,
prompts that were encoded before, bases in few bits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""What settings call torch's types."""


class Deferred:
    """A model that is loaded when something is first asked of it, and stands for it from then on.
    Encoders are: a training whose pictures and prompts are all encoded never loads them. Their
    files are looked at before, as those of every model."""

    def __init__(self, load: Callable[[], nn.Module]) -> None:
        self._load = load
        self._loaded: nn.Module | None = None

    @property
    def model(self) -> nn.Module:
        """The model itself, frozen, in evaluation mode."""
        if self._loaded is None:
            self._loaded = self._load().eval().requires_grad_(False)
        return self._loaded

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


def in_few_bits(
    quantise: str, dtype: str, device: str, *, kept: Sequence[str] = ()
) -> dict[str, Any]:
    """Options for a diffusers model's `from_pretrained`: its linear layers but `kept` ones in
    bitsandbytes' 8 or 4 bits, on the device."""
    from diffusers import BitsAndBytesConfig

    options: dict[str, Any] = {"load_in_8bit": True}
    if quantise == "4bit":
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": DTYPES[dtype],
        }
    how = BitsAndBytesConfig(llm_int8_skip_modules=list(kept) or None, **options)
    where = torch.device(device)
    index = torch.cuda.current_device() if where.index is None else where.index
    return {"quantization_config": how, "dtype": DTYPES[dtype], "device_map": {"": index}}


@contextmanager
def lent(device: str | torch.device, *modules: Any, back: bool = True) -> Iterator[None]:
    """Inside, the modules are on `device`; with `back` they go home to the CPU afterwards."""
    for module in modules:
        module.to(device)
    try:
        yield
    finally:
        if back:
            for module in modules:
                module.to("cpu")
            if torch.device(device).type == "cuda":
                torch.cuda.empty_cache()


class PromptCache:
    """Encoded prompts, each some tensors on the CPU: the newest `mib`."""

    def __init__(self, mib: int) -> None:
        self._room = mib * 2**20
        self._kept: OrderedDict[str, tuple[Tensor, ...]] = OrderedDict()

    def __contains__(self, text: str) -> bool:
        return text in self._kept

    def get(self, text: str) -> tuple[Tensor, ...] | None:
        """The tensors of a prompt, which is then the newest; None where it is not kept."""
        if text in self._kept:
            self._kept.move_to_end(text)
        return self._kept.get(text)

    def put(self, text: str, *tensors: Tensor) -> None:
        """Keep a prompt, and drop the oldest where there is no room."""
        self._kept[text] = tensors
        self._room -= sum(tensor.nbytes for tensor in tensors)
        while self._room < 0 and self._kept:
            _, dropped = self._kept.popitem(last=False)
            self._room += sum(tensor.nbytes for tensor in dropped)
