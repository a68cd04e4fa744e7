"""Cards of the pocket models: what each was made from, and what it measures on held-out data."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from focusdpo.pocket.lineage import Lineage, words_of, write_lineage

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure and what it must reach."""

    model: str
    name: str
    value: float
    wanted: str
    """">= 0.80", "< 0.50", or "" for a figure that is only reported."""

    @property
    def ok(self) -> bool:
        """Whether the figure reaches what is wanted."""
        if not self.wanted:
            return True
        sign, bound = self.wanted.split()
        return self.value >= float(bound) if sign == ">=" else self.value < float(bound)


def machine() -> str:
    """The machine a card speaks of."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    import torch

    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
    return f"{cores}-core {_processor()}, {kind}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_card(
    name: str,
    folder: Path,
    *,
    what: str,
    data: str,
    seconds: float,
    figures: Sequence[Figure],
    module: nn.Module,
    lineage: Lineage | None = None,
    size: int,
) -> Path:
    """Writes NAME.md beside the weights, and NAME.card.json where there is a `lineage`; `size` is
    the side of the world's pictures in pixels; `commands` of `focusdpo pocket` train and measure
    it."""
    seeds = words_of(write_lineage(lineage, folder)) if lineage else ""
    million = sum(p.numel() for p in module.parameters()) / 1e6
    rows = "\n".join(
        f"| {f.name} | {f.value:.3f} | {f.wanted or '-'} |" for f in figures if f.model == name
    )
    measured = (
        f"""Figures on identities that training never saw (`focusdpo pocket check`
measures them again):

| figure | value | wanted |
| --- | --- | --- |
{rows}"""
        if rows
        else "What it paints is measured by the judge: `focusdpo pocket check generator`."
    )
    path = folder / f"{name}.md"
    path.write_text(
        f"""# Pocket model: {name}

{what[0].upper()}{what[1:]}. {million:.2f} M parameters, stored in fp16.

- Data: {data}. Rendered by the pocket world from 3D emoji images (MIT licence, see
  `pocket/assets/LICENSE`).
- Command: `focusdpo pocket train {name}`
- Time: {seconds / 60:.1f} minutes of wall time, one thread.
- Machine: {machine()}.
- Licence: Apache-2.0 (weights and code).
{seeds}
{measured}

Made for the pocket world's {size} x {size} pictures only; it says nothing about photographs.
"""
    )
    return path
