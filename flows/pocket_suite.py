"""The pocket suite behind the interface of `wiring.Suite`. Importing it loads no model."""

from __future__ import annotations

from typing import Any

from focusdpo.pipeline.describe import ClassNameCaptioner
from focusdpo.pocket import loading
from focusdpo.pocket.world import identities


def vocabulary() -> tuple[tuple[str, ...], frozenset[str]]:
    """Backgrounds and class words; `object` stands for anything."""
    return identities.BACKGROUNDS, frozenset({*identities.class_names(), "object"})


def fingerprint(role: str, *, adapter: str | None = None) -> str:
    """Hash of a part's weights and settings; of the generator with an adapter's, too."""
    if role == "captioner":
        return ClassNameCaptioner.fingerprint
    return loading.fingerprint("generator" if role == "backbone" else role, adapter=adapter)


def takes_points() -> bool:
    """No: the pocket segmenter proposes whole bodies, whatever is pointed at."""
    return False


def build(role: str, *, adapter: str | None = None) -> Any:
    """Load a part, once per process; `adapter` (a folder) is for the generator. The role
    `backbone` is the generator's model, for training."""
    if role == "backbone":
        return loading.build("generator").backbone
    if role == "captioner":
        return ClassNameCaptioner()
    return loading.build(role, adapter=adapter)
