"""Where encoded pictures and prompts are kept, and filling that folder before a training."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import Watch, quiet
from focusdpo.flows.config import EncodeRun, TrainRun
from focusdpo.flows.wiring import build_part
from focusdpo.pipeline.upkeep.garbage import reading
from focusdpo.store.addresses import is_remote
from focusdpo.store.cache import CacheConfig
from focusdpo.store.samples import ENCODED


def encoded_folder(run: EncodeRun | TrainRun) -> Path | None:
    """What `train.encoded.folder` means for this run; None: nothing is kept on disk."""
    wanted = run.train.encoded.folder
    if wanted == "none" or (wanted == "auto" and isinstance(run.family, str)):
        return None
    if wanted != "auto":
        return Path(wanted).expanduser()
    if is_remote(run.root):
        beside = Path(CacheConfig.from_environment().dir).expanduser()
        return beside.with_name(f"{beside.name}-{ENCODED}")
    return Path(run.root) / ENCODED


@dataclass(frozen=True, kw_only=True)
class EncodeOutcome:
    """What encoding a version left."""

    folder: str
    version: str
    pairs: int
    made: int
    """Pictures, references and prompts that were not there before."""
    missing: int
    """Pairs for which there was no room."""
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"command": "encode", **asdict(self)}


def encode_dataset(run: EncodeRun, watch: Watch = quiet) -> EncodeOutcome:
    """Fill the folder with all that a training on the version encodes, for steps, validation and
    samples. UserError where nothing is kept on disk, and for damaged shards."""
    folder = encoded_folder(run)
    if folder is None:
        raise UserError(
            "train.encoded.folder: nothing is kept on disk here (none, or auto with the embedded "
            "models, which encode faster than a disk reads); name a folder"
        )
    from focusdpo.model.training.batches import PairData
    from focusdpo.model.training.run import encodings_of

    started = time.perf_counter()
    with reading(run.root, run.version, "an encoding") as version:
        backbone = build_part(run.family, "backbone")
        config = run.train.model_copy(update={"cache_mib": 0})
        encodings = encodings_of(backbone, config, folder)
        source = "both" if config.kl.weight else config.source
        data = PairData(backbone, version.samples(), source=source, encodings=encodings)
        data.encode(watch)
        encodings.texts([""])  # what sampling with guidance compares with
        return EncodeOutcome(
            folder=str(folder),
            version=version.id,
            pairs=len(data),
            made=encodings.made,
            missing=data.missing(),
            seconds=round(time.perf_counter() - started, 3),
        )
