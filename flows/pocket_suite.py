"""The pocket suite behind the interface of `wiring.Suite`. Importing it loads no model."""

from __future__ import annotations

from typing import Any

from focusdpo.pocket import identities


def vocabulary() -> tuple[tuple[str, ...], frozenset[str]]:
    """Backgrounds and class words; `object` stands for anything."""
    return identities.BACKGROUNDS, frozenset({*identities.class_names(), "object"})


def fingerprint(role: str) -> str:
    """Hash of a part's weights and settings."""
    from focusdpo.pocket import parts

    return parts.fingerprint(role)


def build(role: str, *, adapter: str | None = None) -> Any:
    """Load a part; `adapter` (a folder) is for the generator."""
    from focusdpo.pocket import parts

    return parts.build(role) if adapter is None else parts.build(role, adapter=adapter)
