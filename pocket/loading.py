"""The pocket suite's parts by name: `fingerprint(name)` loads nothing, `build(name)` loads once.

Importing this module imports no torch.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.scenes import stable_hash
from focusdpo.pocket import weightfiles
from focusdpo.pocket.weightfiles import WEIGHTS

PAINTERS = ("generator", "inpainter")
SCORERS = ("segmenter", "identity", "clip", "judge")
NAMES = (*PAINTERS, *SCORERS)


def fingerprint(name: str, *, adapter: str | Path | None = None) -> str:
    """Hash of the weights and settings of a part, from its files.

    Raises UserError for an unknown name or a missing file.
    """
    _check(name, adapter)
    if name in SCORERS:
        return weightfiles.fingerprint(name, WEIGHTS)
    base = [weightfiles.fingerprint(each, WEIGHTS) for each in ("autoencoder", "generator")]
    own = [] if adapter is None else [weightfiles.file_digest(*_adapter_files(adapter))]
    return f"{stable_hash('pocket painter', *base, *own):016x}"


def build(name: str, *, adapter: str | Path | None = None) -> Any:
    """The part, loaded once per process; `adapter` (a folder) is for generator and inpainter,
    which share one model.

    Raises UserError for an unknown name, and for a missing or broken weight file.
    """
    _check(name, adapter)
    if name in PAINTERS:
        return _painter(None if adapter is None else str(adapter))
    return _scorer(name)


@cache
def _painter(adapter: str | None) -> Any:
    from focusdpo.pocket.models.pocket_painter import PocketGenerator

    return PocketGenerator.load(adapter, fingerprint=fingerprint("generator", adapter=adapter))


@cache
def _scorer(name: str) -> Any:
    if name == "segmenter":
        from focusdpo.pocket.models.segmenter import PocketSegmenter

        return PocketSegmenter()
    if name == "identity":
        from focusdpo.pocket.models.identity import PocketIdentity

        return PocketIdentity(WEIGHTS)
    if name == "clip":
        from focusdpo.pocket.models.clip import PocketClip

        return PocketClip()
    from focusdpo.pocket.models.judge import PocketJudge

    return PocketJudge()


def _check(name: str, adapter: str | Path | None) -> None:
    if name not in NAMES:
        raise UserError(f"pocket part {name!r}: there are {', '.join(NAMES)}")
    if adapter is not None and name not in PAINTERS:
        raise UserError(f"pocket part {name!r} takes no adapter; generator and inpainter do")


def _adapter_files(folder: str | Path) -> list[Path]:
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{folder}: holds no adapter (*.safetensors); give a folder that train wrote"
        )
    return files
