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
    """Largest resident size of this process so far, children that ended included."""
    import resource

    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return int(max(own, children) * unit)
