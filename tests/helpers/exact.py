"""Records in float64, so that two ways to one gradient can be told apart from rounding."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def to_double(value: Any) -> Any:
    """Every floating-point tensor of a nest of records in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(to_double(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: to_double(getattr(value, f.name)) for f in fields(value)})
    return value
