"""Where a run happened: for manifests and reports, without names of people or hosts."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

SHOWN = ("focusdpo", "torch", "diffusers", "transformers", "peft", "open-clip-torch", "prefect")


def packages() -> dict[str, str]:
    """Versions of the packages that results depend on; those that are installed."""
    found = {}
    for name in SHOWN:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str | int]:
    """Processor, cores, memory, Python."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the platform module knows less, but knows something
    return platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """Most resident memory of this process so far, and of its children beside it: an upper bound
    of what was used at once."""
    import resource

    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return own * unit + max(ended * unit, _living_children())


def _living_children() -> int:
    """Sum of the children's own peaks, where the system tells them."""
    total = 0
    for task in Path("/proc/self/task").glob("*/children"):
        for child in task.read_text("utf-8").split():
            try:
                status = Path(f"/proc/{child}/status").read_text("utf-8")
            except OSError:
                continue  # ended between the two reads
            peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
            total += sum(int(kib) * 1024 for kib in peaks)
    return total
