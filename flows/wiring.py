"""Names -> parts: the one place that knows which models do the work.

Parts are loaded on their first call and stay for the process's life; their fingerprints are known
without loading them, so planning a run costs no model. The time inside their calls is metered: it
is the model computation that orchestration is compared with.
"""

from __future__ import annotations

import functools
import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.console import waiting
from focusdpo.flows.models_config import Family, ModelsConfig
from focusdpo.flows.terminal import LOADS
from focusdpo.pipeline.adapters.checked import Checked
from focusdpo.pipeline.parts import (
    Captioner,
    Generator,
    IdentityEncoder,
    Inpainter,
    PointSegmenter,
    SafetyFilter,
    Segmenter,
    TextImageEncoder,
)

log = logging.getLogger(__name__)


class Meter:
    """Seconds spent inside models."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.load_seconds = 0.0

    def take(self) -> float:
        """Seconds since the last call of `take`."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Resident:
    """A part that is loaded when first called, then kept; its calls are metered."""

    def __init__(self, role: str, fingerprint: str, load: Callable[[], Any], meter: Meter) -> None:
        self.role = role
        self.fingerprint = fingerprint
        self._load = load
        self._meter = meter
        self._part: Any = None
        self._lock = threading.Lock()

    @property
    def part(self) -> Any:
        """The model itself."""
        with self._lock:
            return self._loaded()

    def _loaded(self) -> Any:
        if self._part is None:
            start = time.perf_counter()
            self._part = self._load()
            took = time.perf_counter() - start
            self._meter.load_seconds += took
            log.info("%s: loaded in %.1f s", self.role, took)
            if self._part.fingerprint != self.fingerprint:
                raise RuntimeError(
                    f"{self.role}: fingerprint {self._part.fingerprint} after loading, "
                    f"{self.fingerprint} before: content keys would lie"
                )
        return self._part

    def release(self) -> None:
        """Let go of the part; its next call loads it again."""
        with self._lock:
            self._part = None

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.part, name)
        if not callable(value):
            return value

        @functools.wraps(value)
        def metered(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return value(*args, **kwargs)
            finally:
                self._meter.seconds += time.perf_counter() - start

        return metered


class Parts:
    """The models of a suite by role."""

    ROLES = ("generator", "inpainter", "segmenter", "identity", "clip", "captioner")
    OPTIONAL = ("safety",)
    """What checkpoints may be named for; embedded suites have none."""

    def __init__(self, family: Family, adapter: str | None = None) -> None:
        """`adapter`: a folder that `train` wrote, for the generator."""
        self.family = family
        self._adapted = {} if adapter is None else {"generator": {"adapter": adapter}}
        self.meter = Meter()
        named = (role for role in self.OPTIONAL if getattr(family, role, None) is not None)
        self._residents = {role: self._resident(role) for role in (*self.ROLES, *named)}

    def _resident(self, role: str) -> Resident:
        models = suite(self.family)
        more = self._adapted.get(role, {})
        fingerprint = models.fingerprint(role, **more)
        return Resident(
            role, fingerprint, functools.partial(models.build, role, **more), self.meter
        )

    def fingerprint(self, role: str) -> str:
        """Hash of a part's weights and settings; loads nothing."""
        return self._residents[role].fingerprint

    def has(self, role: str) -> bool:
        """Whether there is a part of this role."""
        return role in self._residents

    def keep_only(self, roles: Iterable[str]) -> None:
        """Free the checkpoints that no part of these roles uses, on the device and in main memory:
        the models of two stages need not fit side by side. Embedded suites are small, and stay."""
        if isinstance(self.family, str):
            return
        kept = set(roles)
        for role, resident in self._residents.items():
            if role not in kept:
                resident.release()
        free_parts(self.family, kept)

    def load(self, role: str) -> None:
        """Load a part now; it is kept."""
        _ = self._residents[role].part

    def load_beside(self, roles: Iterable[str]) -> threading.Thread:
        """Load parts in a thread, while this one waits for something else."""

        def load() -> None:
            for role in roles:
                try:
                    self.load(role)
                except UserError as error:  # told when the part is used
                    log.info("%s: not loaded ahead: %s", role, error)

        thread = threading.Thread(target=load, name=f"{LOADS} parts", daemon=True)
        thread.start()
        return thread

    @property
    def generator(self) -> Generator:
        return cast(Generator, self._residents["generator"])

    @property
    def inpainter(self) -> Inpainter:
        return cast(Inpainter, self._residents["inpainter"])

    @property
    def segmenter(self) -> Segmenter:
        return cast(Segmenter, self._residents["segmenter"])

    @property
    def point_segmenter(self) -> PointSegmenter | None:
        """The segmenter, loaded, where it takes points too."""
        segmenter = self._residents["segmenter"]
        return segmenter if isinstance(segmenter.part.part, PointSegmenter) else None

    @property
    def identity(self) -> IdentityEncoder:
        return cast(IdentityEncoder, self._residents["identity"])

    @property
    def clip(self) -> TextImageEncoder:
        return cast(TextImageEncoder, self._residents["clip"])

    @property
    def safety(self) -> SafetyFilter | None:
        """None where no filter of unsafe pictures is named."""
        return cast(SafetyFilter | None, self._residents.get("safety"))

    @property
    def captioner(self) -> Captioner:
        return cast(Captioner, self._residents["captioner"])


class Suite(Protocol):
    """A family of models: a module or object with these functions."""

    def fingerprint(self, role: str, *, adapter: str | None = None) -> str:
        """Hash of a part's weights and settings, of the generator with those of the adapter in a
        folder; loads nothing."""
        ...

    def build(self, role: str, *, adapter: str | None = None) -> Any:
        """Load a part; `adapter` (a folder) is for the generator."""
        ...

    def vocabulary(self) -> Vocabulary:
        """What prompts may say."""
        ...

    def takes_points(self) -> bool:
        """Whether the segmenter is a `parts.PointSegmenter`; loads nothing."""
        ...


Vocabulary = tuple[tuple[str, ...], frozenset[str] | None]
"""Backgrounds that prompts name, and the class words that were taught; None: any word."""


IN_WORDS = {"clip": "encoder of pictures and texts", "identity": "identity encoder"}
"""What roles are called where their name alone says little."""


class CheckedSuite:
    """A suite whose parts are checked at the border; the bare backbone is for training, which
    watches its own numbers."""

    def __init__(self, models: Suite) -> None:
        self._models = models

    def __getattr__(self, name: str) -> Any:
        return getattr(self._models, name)

    def build(self, role: str, *, adapter: str | None = None) -> Any:
        """As `Suite.build`."""
        name = role.replace("_", "'s ") if role.startswith("judge_") else role
        of = "" if adapter is None else f" with the adapter {adapter}"
        shown = " ".join(IN_WORDS.get(word, word) for word in name.split())
        with waiting(f"loading the {shown}{of}"):
            part = self._models.build(role, adapter=adapter)
        return part if role == "backbone" else Checked(name + of, part)


def suite(family: Family) -> Suite:
    """The suite of a family; UserError with the names there are."""
    if isinstance(family, ModelsConfig):
        from focusdpo.flows.checkpoint_suite import CheckpointSuite

        return cast(Suite, CheckedSuite(CheckpointSuite(family)))
    if family not in SUITES:
        raise UserError(f"suite '{family}': there are {', '.join(sorted(SUITES))}")
    module = importlib.import_module(SUITES[family])
    return cast(Suite, CheckedSuite(cast(Suite, module)))


SUITES = {"pocket": "focusdpo.flows.pocket_suite"}
"""Suite -> the module that knows its parts. Importing it loads no model."""


def free_parts(family: Family, keep: Iterable[str]) -> None:
    """Free the loaded checkpoints of a family that none of the roles `keep` uses."""
    if isinstance(family, ModelsConfig):
        from focusdpo.flows.checkpoint_suite import free

        free(family, keep)


def build_part(family: Family, role: str, *, adapter: str | None = None) -> Any:
    """A part of a suite, loaded once per process."""
    return suite(family).build(role, adapter=adapter)


def fingerprint_of(family: Family, role: str) -> str:
    """A part's fingerprint, without loading it."""
    return suite(family).fingerprint(role)


def vocabulary(family: Family) -> Vocabulary:
    """A suite's backgrounds and class words."""
    return suite(family).vocabulary()


def takes_points(family: Family) -> bool:
    """Whether a suite's segmenter can be asked with points; loads nothing."""
    return suite(family).takes_points()


@functools.lru_cache(maxsize=4)
def resident_parts(family: Family, adapter: str | None = None) -> Parts:
    """The process's one set of parts of a suite, the generator with the adapter in a folder."""
    return Parts(family, adapter)
