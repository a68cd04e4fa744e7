"""Parts are loaded once, ahead of their use where that is asked for."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import toy_suite

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows import wiring


def counted(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> list[str]:
    """The roles that were loaded, by a suite that takes its time."""
    loaded: list[str] = []

    def build(role: str, *, adapter: str | None = None) -> Any:
        time.sleep(0.05)
        loaded.append(role)
        if error is not None:
            raise error
        return toy_suite.PARTS[role]

    monkeypatch.setitem(wiring.SUITES, "pocket", "toy_suite")
    monkeypatch.setattr(toy_suite, "build", build)
    return loaded


def test_parts_loaded_ahead_are_loaded_once_however_many_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = counted(monkeypatch)
    parts = wiring.Parts("pocket")
    ahead = parts.load_beside(["generator", "clip"])
    asking = [threading.Thread(target=lambda: parts.generator.generate) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in [ahead, *asking]:
        thread.join()
    assert callable(parts.clip.embed_texts)
    assert sorted(loaded) == ["clip", "generator"]


def test_what_cannot_be_loaded_ahead_is_told_when_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted(monkeypatch, UserError("clip.safetensors: missing"))
    parts = wiring.Parts("pocket")
    parts.load_beside(["clip"]).join()
    with pytest.raises(UserError, match=r"clip\.safetensors"):
        parts.clip.embed_texts(["a disc"])
