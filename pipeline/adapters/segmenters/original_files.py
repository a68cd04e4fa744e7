"""Checkpoints in the formats of their authors: a .pth of tensors, or safetensors."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.checkpoints import TensorInfo, read_header, require_tensors

Shapes = Mapping[str, tuple[int, ...]]


def read_shapes(
    file: Path, field: str, ignored: Collection[str] = ()
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the file but the ignored ones, without reading weights."""
    if file.suffix == ".safetensors":
        return {n: i.shape for n, i in _plain(read_header(file, field), ignored).items()}
    return {n: tuple(t.shape) for n, t in read_tensors(file, field, ignored).items()}


def read_tensors(file: Path, field: str, ignored: Collection[str] = ()) -> dict[str, Tensor]:
    """The file's tensors on the CPU, but the ignored ones.

    A .pth is read with torch.load(weights_only=True), which builds tensors and runs no code; its
    weights are mapped into memory, not copied. Unwraps {"model": ...} and names that start with
    "module.". UserError for a file that was cut off or holds anything but tensors.
    """
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        read_header(file, field)
        return _plain(load_file(file), ignored)
    try:
        held = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except Exception as error:
        # torch raises half a dozen types here: of pickle, of zip, of its own reader.
        raise UserError(
            f"{field}: {file} cannot be read as a checkpoint of plain tensors "
            f"({type(error).__name__}). Download it again; a file that holds other objects has to "
            "be converted to safetensors on a machine that may run it"
        ) from error
    if isinstance(held, dict):
        held = held.get("model", held)
    tensors = _plain(held, ignored) if isinstance(held, dict) else {}
    if not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError(f"{field}: {file} holds no named tensors; is it another model's file?")
    return tensors


def require_model(shapes: Shapes, model: nn.Module, field: str, what: str) -> None:
    """UserError unless the names and shapes are just those of the model (on any device)."""
    require_tensors(
        {name: TensorInfo("", shape) for name, shape in shapes.items()},
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        field,
        what,
    )


def shape_of(shapes: Shapes, name: str, field: str, what: str) -> tuple[int, ...]:
    """UserError that names the model when the tensor is not there."""
    if name not in shapes:
        raise UserError(f"{field}: not the weights of {what}: no tensor {name}")
    return shapes[name]


def count(shapes: Shapes, prefix: str) -> int:
    """How many numbered modules `prefix`0, `prefix`1, ... there are."""
    numbers = (re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in shapes)
    return len({int(match[1]) for match in numbers if match})


def _plain(held: Mapping[str, Any], ignored: Collection[str]) -> dict[str, Any]:
    named = {name.removeprefix("module."): value for name, value in held.items()}
    return {name: value for name, value in named.items() if name not in ignored}
