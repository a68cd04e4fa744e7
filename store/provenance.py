"""Which command left a folder, where a run happened and under which licences: for errors,
manifests, reports and cards."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.checkpoints import locate, read_json

SHOWN = ("focusdpo", "torch", "diffusers", "transformers", "peft", "open-clip-torch", "prefect")


TRAINING_RUN, ADAPTER_FOLDER = "a training run", "an adapter"
EVALUATION, DATASET_ROOT = "an evaluation", "a dataset root"
_MARKS = {
    EVALUATION: ("rows.json", "scenes.parquet", "painting.json"),
    TRAINING_RUN: ("steps.parquet", "run.yaml", "adapter/adapter.json"),
    ADAPTER_FOLDER: ("adapter.json",),
    DATASET_ROOT: ("dataset.json",),
}
"""What a folder is -> files of which any says so, while it is at work as well."""


def kinds_of(folder: Path) -> tuple[str, ...]:
    """What a folder is; empty for one that is new or that nobody here wrote."""
    return tuple(
        kind for kind, marks in _MARKS.items() if any((folder / mark).is_file() for mark in marks)
    )


def require_kind(folder: Path, wanted: str) -> None:
    """UserError for a folder that is given in place of another: says what it is and, where that can
    be told, which one was meant. What is missing is told by who reads it."""
    kinds = kinds_of(folder)
    if not kinds or wanted in kinds:
        return
    meant = ""
    if wanted == ADAPTER_FOLDER and (folder / "adapter/adapter.json").is_file():
        meant = f"; its adapter is {folder / 'adapter'}"
    elif wanted == TRAINING_RUN and TRAINING_RUN in kinds_of(folder.parent):
        meant = f"; the run is {folder.parent}"
    raise UserError(f"{folder} is {kinds[0]}, not {wanted}{meant}")


def require_own(folder: Path, name: str, kind: str) -> None:
    """UserError for a folder, called `name`, that another kind of command has written: what is
    written now would take the place of files that have the same names."""
    kinds = kinds_of(folder)
    if kinds and kind not in kinds:
        raise UserError(f"--out {name} is {kinds[0]} and stays as it is; give {kind} another --out")


def packages() -> dict[str, str]:
    """Versions of the packages that results depend on; those that are installed."""
    versions = {}
    for name in SHOWN:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


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

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return peak * unit + max(ended * unit, _living_children())


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


POCKET = "Apache-2.0, trained on renders of MIT-licensed 3D emoji"
DEV = "FLUX.1 [dev] Non-Commercial License: no commercial use"
SCHNELL = "Apache-2.0 (FLUX.1 [schnell])"
UNO = "CC BY-NC 4.0 (UNO): no commercial use"

BY_KIND = {
    "sdxl-ip-adapter": "CreativeML Open RAIL++-M (SDXL); Apache-2.0 (IP-Adapter)",
    "flux2-klein": "Apache-2.0 (FLUX.2 [klein] 4B), FLUX Non-Commercial License (9B): see its card",
    "flux-fill": "FLUX.1 [dev] Non-Commercial License (Fill): no commercial use",
    "sdxl-inpaint": "CreativeML Open RAIL++-M (SDXL inpainting)",
    "grounding-sam": "Apache-2.0 (Grounding DINO, SAM)",
    "grounding-sam-hf": "Apache-2.0 (Grounding DINO, SAM)",
    "dino": "Apache-2.0 (DINO)",
    "dinov2": "Apache-2.0 (DINOv2)",
    "clip": "MIT (OpenAI CLIP)",
    "image-classifier": "see the filter's own card (Falconsai/nsfw_image_detection: Apache-2.0)",
    "vlm": "see the captioner's own card (SmolVLM: Apache-2.0)",
}
"""Of the public checkpoints that a kind is made for; whoever brings other weights knows theirs."""


Family = str | BaseModel | Mapping[str, Any]
"""The name of an embedded suite, or the checkpoints of each role: a `models` section, as a model
or as it is stored."""


def checkpoint_of(family: Family, role: str) -> Mapping[str, Any]:
    """The settings that name a part's checkpoint; {} for an embedded part, and one without any."""
    if isinstance(family, str):
        return {}
    models = family.model_dump() if isinstance(family, BaseModel) else family
    settings = models.get("backbone" if role == "generator" else role)
    return settings if isinstance(settings, Mapping) else {}


def licence_of(family: Family, role: str) -> str:
    """The licence of a part's weights; "" for a part without any."""
    if isinstance(family, str):
        return POCKET
    checkpoint = checkpoint_of(family, role)
    if checkpoint.get("kind") == "flux-uno":
        return "; ".join([_flux(checkpoint["base"]), *([UNO] if checkpoint.get("uno") else [])])
    return BY_KIND.get(str(checkpoint.get("kind")), str(checkpoint.get("licence", "")))


def notices(family: Family) -> list[str]:
    """What to say before a run: who may not use what it makes for what."""
    if isinstance(family, str):
        return []
    licences = {role: licence_of(family, role) for role in ("backbone", "inpainter")}
    return [f"licence of the {role}: {licence}" for role, licence in licences.items() if licence]


def _flux(base: str) -> str:
    """dev embeds guidance, schnell does not."""
    try:
        folder = locate(base, "models.backbone.base")
        about = read_json(folder / "transformer" / "config.json", "models.backbone.base")
    except UserError:
        return f"{DEV}, or {SCHNELL}"  # not here yet: `doctor` and the run itself say so
    return DEV if about.get("guidance_embeds") else SCHNELL
