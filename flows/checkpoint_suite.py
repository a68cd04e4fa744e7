"""Checkpoints behind the interface of `wiring.Suite`. Importing it loads no model."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.registration import unknown
from focusdpo.flows.models_config import PARTS, ModelsConfig
from focusdpo.pipeline.parts import Image, Mask, ReferenceImage
from focusdpo.store.checkpoints import digest_files

ROLES = tuple(PARTS)
"""The sections of `models`; generator and backbone are one."""
JUDGES = ("judge_segmenter", "judge_identity")


def module_of(models: ModelsConfig, role: str) -> Any:
    """The module that checks, identifies and builds a role's part."""
    kinds = PARTS[role.removeprefix("judge_")]
    return importlib.import_module(kinds.module(config_of(models, role).kind))


def named_roles(models: ModelsConfig) -> tuple[str, ...]:
    """The sections that name a part, judges included; an optional one may name none."""
    return tuple(role for role in (*ROLES, *JUDGES) if getattr(models, role) is not None)


@functools.lru_cache(maxsize=8)
def device_of(wanted: str) -> str:
    """The device that `models.device` names. UserError when it is not there."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"models.device: {wanted}, but torch sees no CUDA device; set it to cpu")
    return wanted


class CheckpointSuite:
    """The parts that a `models` section names."""

    def __init__(self, models: ModelsConfig) -> None:
        self._models = models

    def vocabulary(self) -> tuple[tuple[str, ...], None]:
        """Backgrounds; any class word is understood."""
        return self._models.backgrounds, None

    def takes_points(self) -> bool:
        """Whether the segmenter is a `parts.PointSegmenter`; loads nothing."""
        return bool(module_of(self._models, "segmenter").TAKES_POINTS)

    def fingerprint(self, role: str, *, adapter: str | None = None) -> str:
        """Hash of a part's weights and settings, of the generator with an adapter's, too; loads
        nothing. UserError as `build`."""
        if adapter is not None:
            return _adapted_fingerprint(self._models, adapter)
        return _fingerprint(self._models, role)

    def build(self, role: str, *, adapter: str | None = None) -> Any:
        """The part, loaded once per process; `adapter` (a folder) is for the generator. The role
        `backbone` is the generator's model, for training. UserError for absent or wrong weights."""
        if role == "generator":
            return AdaptedPainter(self._models, adapter)
        if role == "backbone" and self._models in _IN_PLACE:
            AdaptedPainter(self._models, None).put_in_place()
        return _part(self._models, role)


@functools.lru_cache(maxsize=64)
def _fingerprint(models: ModelsConfig, role: str) -> str:
    role = "backbone" if role == "generator" else role
    config, module = config_of(models, role), module_of(models, role)
    if role == "inpainter":
        # It may repaint with the generator's own weights.
        return f"{module.fingerprint(config)}:{_fingerprint(models, 'backbone')}"
    return str(_own_name(role, lambda: module.fingerprint(config)))


def _adapted_fingerprint(models: ModelsConfig, adapter: str) -> str:
    """Of the backbone with the adapter in a folder."""
    files = sorted(Path(adapter).glob("*.safetensors"))
    if not files:
        raise UserError(f"{adapter}: holds no adapter; give a folder that train wrote")
    return digest_files(files, _fingerprint(models, "backbone"))


def config_of(models: ModelsConfig, role: str) -> Any:
    """The section of a role."""
    if role in (*ROLES, *JUDGES):
        return getattr(models, role)
    raise unknown("part of models", role, (*ROLES, *JUDGES))


_LOADED: dict[tuple[ModelsConfig, str], Any] = {}
"""What this process has in memory."""


def _part(models: ModelsConfig, role: str) -> Any:
    if (models, role) not in _LOADED:
        _LOADED[models, role] = _load(models, role)
    return _LOADED[models, role]


def _load(models: ModelsConfig, role: str) -> Any:
    config, module = config_of(models, role), module_of(models, role)
    device = device_of(models.device)
    if role == "inpainter":
        part = module.build(config, device, AdaptedPainter(models, None))
        return Named(part, _fingerprint(models, role))
    return _own_name(role, lambda: module.build(config, device))


def resident_roles(roles: Iterable[str]) -> set[str]:
    """The sections of `models` whose checkpoints the parts of these roles hold: the generator is
    the backbone, and an inpainter paints swaps with it."""
    wanted = set(roles)
    painting = {"generator", "inpainter", "backbone"} & wanted
    return (wanted - {"generator"}) | ({"backbone"} if painting else set())


def loaded_roles(models: ModelsConfig) -> set[str]:
    """Whose checkpoints are in memory."""
    return {role for family, role in _LOADED if family == models}


def free(models: ModelsConfig, keep: Iterable[str]) -> None:
    """Let go of the checkpoints that no part of the roles `keep` holds."""
    kept = resident_roles(keep)
    gone = [key for key in _LOADED if key[0] == models and key[1] not in kept]
    for key in gone:
        del _LOADED[key]
        if key[1] == "backbone":
            _IN_PLACE.pop(models, None)
    if gone:
        import gc

        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Named:
    """A part under the fingerprint that plans know it by."""

    def __init__(self, part: Any, fingerprint: str) -> None:
        self._part, self.fingerprint = part, fingerprint

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


_IN_PLACE: dict[ModelsConfig, str | None] = {}
"""Whose weights each backbone holds now: an adapter's folder, or None for the base. Base and
adapter paint with one model, since two would not fit a card."""


class AdaptedPainter:
    """Generator and inpainter: the backbone with or without an adapter's weights."""

    def __init__(self, models: ModelsConfig, adapter: str | None) -> None:
        from focusdpo.pipeline.adapters.painter import BackbonePainter

        self._models, self._adapter = models, adapter
        backbone = _part(models, "backbone")
        self.fingerprint = (
            _fingerprint(models, "backbone")
            if adapter is None
            else _adapted_fingerprint(models, adapter)
        )
        self._painter = BackbonePainter(backbone, self.fingerprint, models.batch)
        self.backbone = backbone

    def generate(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[ReferenceImage]],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
    ) -> list[Image]:
        """As `pipeline.parts.Generator`."""
        self.put_in_place()
        return self._painter.generate(prompts, references, seeds, guidance=guidance)

    def inpaint(
        self,
        images: Sequence[Image],
        masks: Sequence[Mask],
        prompts: Sequence[str],
        references: Sequence[Sequence[ReferenceImage]],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
    ) -> list[Image]:
        """As `pipeline.parts.Inpainter`."""
        self.put_in_place()
        return self._painter.inpaint(images, masks, prompts, references, seeds, guidance=guidance)

    def put_in_place(self) -> None:
        """See to it that the backbone has this painter's adapter, or none."""
        if _IN_PLACE.get(self._models) == self._adapter:
            return
        from focusdpo.model.adapter import load_adapter, remove_policy

        remove_policy(self.backbone.transformer)
        if self._adapter is not None:
            load_adapter(self.backbone, Path(self._adapter))
        _IN_PLACE[self._models] = self._adapter


def checks(models: ModelsConfig) -> Iterator[tuple[str, Callable[[], str]]]:
    """Rows of `focusdpo doctor`: name and what finds out; each raises UserError or tells."""
    yield "device", lambda: device_of(models.device)
    for role in named_roles(models):
        config = config_of(models, role)
        for name, check in module_of(models, role).checks(config).items():
            yield f"{role}: {name}", functools.partial(_own_name, role, check)


def _own_name(role: str, call: Callable[[], Any]) -> Any:
    """A judge's modules speak of the role that they were made for."""
    try:
        return call()
    except UserError as error:
        raise UserError(_renamed(role, str(error))) from error


def _renamed(role: str, text: str) -> str:
    return text.replace(f"models.{role.removeprefix('judge_')}.", f"models.{role}.")


def sources(models: ModelsConfig) -> list[tuple[str, str, list[str] | None]]:
    """What `focusdpo fetch` downloads: setting, source, file patterns; each source once."""
    downloads: dict[tuple[str, str], tuple[str, str, list[str] | None]] = {}
    for role in named_roles(models):
        config = config_of(models, role)
        for field, source, patterns in module_of(models, role).sources(config):
            downloads.setdefault((source, str(patterns)), (_renamed(role, field), source, patterns))
    return list(downloads.values())
