"""Where the weights of the pocket models lie: NAME.safetensors (fp16), NAME.json, NAME.md.

This module imports no torch at module level, so that a plan can read fingerprints cheaply.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.scenes import stable_hash

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights"
CODE_VERSION = 1
"""Raised when the code of the scorers changes what they return."""


def weight_path(name: str, folder: Path = WEIGHTS) -> Path:
    """The weight file of a pocket model."""
    return folder / f"{name}.safetensors"


def settings_path(name: str, folder: Path = WEIGHTS) -> Path:
    """The settings that build the model which the weight file fills."""
    return folder / f"{name}.json"


def file_digest(*paths: Path) -> str:
    """blake2b over the bytes of files, in this order, as 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise _missing(path) from error
    return digest.hexdigest()


def fingerprint(name: str, folder: Path = WEIGHTS, config: BaseModel | None = None) -> str:
    """Hash of a pocket model: its weights, its settings, the version of its code, and the
    configuration where one is given. Raises UserError where a file lacks."""
    files = _digest_of(name, folder)
    options = "" if config is None else config.model_dump_json()
    return f"{stable_hash(name, CODE_VERSION, files, options):016x}"


@cache
def _digest_of(name: str, folder: Path) -> str:
    return file_digest(weight_path(name, folder), settings_path(name, folder))


def read_settings(name: str, folder: Path = WEIGHTS) -> dict[str, Any]:
    """The settings a model was built with. Raises UserError for a missing or broken file."""
    path = settings_path(name, folder)
    try:
        settings: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise _missing(path) from error
    except json.JSONDecodeError as error:
        raise _broken(path, str(error)) from error
    return settings


def save_weights(
    name: str, module: nn.Module, settings: Mapping[str, Any], folder: Path = WEIGHTS
) -> Path:
    """Writes a module's state in fp16 and its settings; both replace the old ones atomically."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {
        key: (value.half() if value.is_floating_point() else value).contiguous().cpu()
        for key, value in module.state_dict().items()
    }
    if not all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point()):
        raise ValueError(f"{name}: weights are not finite in fp16; training diverged")
    path = weight_path(name, folder)
    partial = path.with_suffix(".partial")
    save_file(state, partial)
    partial.chmod(0o644)  # safetensors writes for the owner alone
    partial.replace(path)
    partial = settings_path(name, folder).with_suffix(".partial")
    partial.write_text(json.dumps(settings, indent=1) + "\n")
    partial.replace(settings_path(name, folder))
    return path


def load_tensors(name: str, folder: Path = WEIGHTS) -> dict[str, Tensor]:
    """The tensors of a weight file in float32. Raises UserError for a missing or broken file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = weight_path(name, folder)
    try:
        state: dict[str, Tensor] = load_file(path)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (SafetensorError, OSError) as error:
        raise _broken(path, str(error)) from error
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def load_weights(name: str, module: nn.Module, folder: Path = WEIGHTS) -> None:
    """Fills a module from its file.

    Raises UserError for a missing, truncated or foreign file.
    """
    state = load_tensors(name, folder)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise _broken(weight_path(name, folder), str(error).splitlines()[0]) from error


def _missing(path: Path) -> UserError:
    return UserError(
        f"{path}: missing; the package should hold it. Install the package again, or train it"
        f" with `focusdpo pocket train {path.stem}`"
    )


def _broken(path: Path, what: str) -> UserError:
    return UserError(
        f"{path}: cannot be read as weights of the pocket model {path.stem!r} ({what}). Install"
        f" the package again, or train it with `focusdpo pocket train {path.stem}`"
    )
