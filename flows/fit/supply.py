"""What this machine has, and whether a command fits: at the start of a run, in `doctor`, and before
a download."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.checkpoint_suite import device_of, loaded_roles, sources
from focusdpo.flows.fit.demand import Command, Demand, demand_of, fitting_settings, weights_of
from focusdpo.flows.models_config import Family, ModelsConfig
from focusdpo.model.training.config import TrainConfig
from focusdpo.store.checkpoints import Download, size_of

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes that are free, and that there are."""

    device: str
    device_free: float
    device_total: float
    """Both 0 without a GPU: models then lie in main memory."""
    host_free: float
    host_total: float
    scratch_free: float


def this_machine(device: str) -> Machine:
    """As it is now."""
    name, free, total = device_of(device), 0.0, 0.0
    if name.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()  # what the allocator keeps for later is free
        free, total = map(float, torch.cuda.mem_get_info(name))
    page = os.sysconf("SC_PAGE_SIZE")
    whole = float(page * os.sysconf("SC_PHYS_PAGES"))
    scratch = float(shutil.disk_usage(tempfile.gettempdir()).free)
    return Machine(name, free, total, free_memory(), whole, scratch)


def free_memory() -> float:
    """Bytes of main memory that are free, with what the system would give back."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def told(demand: Demand, machine: Machine) -> str:
    """A demand beside what there is, for one line."""
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in demand.parts.items())
    where = machine.device if machine.device_total else "main memory"
    has = machine.device_total if machine.device_total else machine.host_total
    return (
        f"{demand.device / GIB:.1f} GiB in {demand.when} ({parts}), {where} has {has / GIB:.1f}; "
        f"main memory while loading {demand.host / GIB:.1f} of {machine.host_total / GIB:.1f}"
    )


def shortage(
    demand: Demand,
    machine: Machine,
    models: ModelsConfig,
    train: TrainConfig | None,
    *,
    free: bool = True,
) -> str | None:
    """What a machine lacks for a demand, and the settings with which it fits; None where it fits.
    `free`: counted is what is free now, else all that there is."""
    if machine.device_total:
        room = machine.device_free if free else machine.device_total
        if demand.device > room:
            return _too_large(demand, machine.device, room, models, train)
        needed, where = demand.host, "main memory"
    else:
        needed, where = demand.host + demand.device, "main memory, without a GPU"
    available = machine.host_free if free else machine.host_total
    if needed > available:
        if not machine.device_total:
            return _too_large(demand, where, available - demand.host, models, train)
        return (
            f"{needed / GIB:.1f} GiB of main memory while weights are read, and "
            f"{available / GIB:.1f} are {'free' if free else 'there'}: end other programs, add "
            "swap, or take a machine with more"
        )
    if demand.scratch > machine.scratch_free:
        return (
            f"{demand.scratch / GIB:.1f} GiB of the temporary folder {tempfile.gettempdir()} while "
            f"the base is quantised, and {machine.scratch_free / GIB:.1f} are free: set TMPDIR to "
            "a folder with room"
        )
    return None


def _too_large(
    demand: Demand, where: str, room: float, models: ModelsConfig, train: TrainConfig | None
) -> str:
    fitting = fitting_settings(demand.command, models, train, room)
    if fitting is None:
        advice = "none of the settings that save memory suffices: take a larger card"
    else:
        values = " ".join(f"--set {name}={_plain(value)}" for name, value in fitting.items())
        advice = f"it fits with {values}"
    needs = f"{demand.device / GIB:.1f} GiB in {demand.when}"
    return f"{needs}, and {where} has {room / GIB:.1f}; {advice}"


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def require_fit(
    command: Command, family: Family, train: TrainConfig | None = None, *, processes: int = 1
) -> None:
    """UserError, before the backbone is loaded, for a command that this machine has no room for.
    The embedded suite is small, and a backbone that is loaded already has found its room. Of
    several `processes` each has a card, where there are cards, and all share main memory and
    disk."""
    if isinstance(family, str) or "backbone" in loaded_roles(family):
        return
    demand, machine = demand_of(command, family, train), _with_loaded(family)
    lacking = shortage(demand, machine, family, train)
    if lacking is None and processes > 1:
        many = replace(demand, host=demand.host * processes, scratch=demand.scratch * processes)
        if not machine.device_total:
            many = replace(
                many, parts={part: size * processes for part, size in demand.parts.items()}
            )
        if (lacking := shortage(many, machine, family, train)) is not None:
            lacking = f"with num_processes={processes}, {lacking}. One process fits: give fewer"
    if lacking is not None:
        raise UserError(f"{command}: {lacking}")


def _with_loaded(models: ModelsConfig) -> Machine:
    """This machine as if nothing were loaded: a demand counts all parts that it needs, and a build
    has found masks of photographs by the segmenter before."""
    machine = this_machine(models.device)
    there = sum(weights_of(models, role) for role in loaded_roles(models))
    if machine.device_total:
        return replace(machine, device_free=machine.device_free + there)
    return replace(machine, host_free=machine.host_free + there)


def checks(
    models: ModelsConfig, train: TrainConfig
) -> Iterator[tuple[str, Callable[[], tuple[bool, str]]]]:
    """Rows of `focusdpo doctor`: each command against the whole of this machine; and what is
    still to be downloaded."""

    def command(name: Command) -> Callable[[], tuple[bool, str]]:
        def look() -> tuple[bool, str]:
            machine, demand = this_machine(models.device), demand_of(name, models, train)
            lacking = shortage(demand, machine, models, train, free=False)
            return lacking is None, lacking or told(demand, machine)

        return look

    names: tuple[Command, ...] = ("build-dataset", "train", "evaluate")
    for name in names:
        yield f"fits: {name}", command(name)


@dataclass(frozen=True, slots=True)
class Source:
    """A source of `focusdpo fetch`."""

    field: str
    name: str
    patterns: list[str] | None
    size: Download | None
    """None where it is not here and the hub cannot be asked."""


def downloads(models: ModelsConfig) -> list[Source]:
    """What `focusdpo fetch` gets, with sizes."""
    sized_sources = []
    for name, source, patterns in sources(models):
        size: Download | None
        try:
            size = size_of(source, name, patterns)
        except UserError:
            size = None
        sized_sources.append(Source(name, source, patterns, size))
    return sized_sources


def cache_room() -> tuple[Path, float]:
    """The hub's cache, and what its disk has free."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    return folder, float(shutil.disk_usage(there).free)


def require_room(wanted: list[Source]) -> None:
    """UserError for downloads that the disk has no room for."""
    folder, free = cache_room()
    missing = sum(source.size.missing for source in wanted if source.size is not None)
    if missing > free:
        raise UserError(
            f"fetch: {missing / 1e9:.1f} GB to download, and {folder} has {free / 1e9:.1f} GB "
            "free; make room, or set HF_HUB_CACHE to a folder on a larger disk"
        )
