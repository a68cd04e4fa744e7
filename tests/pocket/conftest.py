"""What trainings change in their process is put back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def tiny_numbers_stay() -> Iterator[None]:
    """Recipes flush denormal numbers to zero in their whole process."""
    yield
    torch.set_flush_denormal(False)
