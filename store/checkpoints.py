"""Outside weights on disk: where they lie, whether they are whole, what identifies them.

A source is a local folder or file, or the id of a hub repository ("owner/name" or
"owner/name@revision") that lies in the hub's cache. Nothing is downloaded but by `fetch`. Weights
are safetensors; their headers are read with the standard library, so that looking at 24 GB of them
takes milliseconds and no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError

PROBES, PROBE = 64, 65536
"""Of every weight file so many evenly spaced pieces of so many bytes enter its digest."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LONGEST_HEADER = 100 * 2**20


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a safetensors header says of a tensor."""

    dtype: str
    """As in the header: "F32", "BF16", ..."""
    shape: tuple[int, ...]


def locate(source: str, field: str) -> Path:
    """The folder or file of a source. UserError that names `field` and the command that fixes it
    when it is neither there nor in the hub's cache."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not _is_hub_id(source):
        raise UserError(
            f"{field}: {source} does not exist; give a folder, a file, or a hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, revision = _split(source)
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{field}: {source} is neither a folder here nor in the hub's cache. Download it with "
            f"`focusdpo fetch` and this preset, or on another machine with "
            f"`hf download {name} --local-dir DIR`, and set {field} to DIR"
        ) from error


def fetch(source: str, field: str, patterns: Sequence[str] | None = None) -> Path:
    """Downloads a hub repository (its files that match `patterns`) into the hub's cache; a local
    source is left alone. UserError that says what to do for a gated or absent repository and for a
    hub that cannot be reached."""
    if Path(source).expanduser().exists() or not _is_hub_id(source):
        return locate(source, field)
    import huggingface_hub.errors as hub
    from huggingface_hub import snapshot_download

    name, revision = _split(source)
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(patterns or []) or None)
        )
    except hub.GatedRepoError as error:
        raise UserError(
            f"{field}: {name} is gated. Accept its licence at https://huggingface.co/{name}, then "
            "log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise UserError(f"{field}: {name} has no revision {revision!r}") from error
    except hub.RepositoryNotFoundError as error:
        raise UserError(
            f"{field}: the hub has no repository {name}, or your token may not see it; check the "
            "name, or log in with `hf auth login`"
        ) from error
    except (hub.LocalEntryNotFoundError, hub.HfHubHTTPError, hub.OfflineModeIsEnabled) as error:
        raise UserError(
            f"{field}: the hub cannot be reached to download {name}. Check the network and that "
            "HF_HUB_OFFLINE is not set, or download it elsewhere with "
            f"`hf download {name} --local-dir DIR` and set {field} to DIR"
        ) from error


def weight_files(folder: Path, field: str) -> list[Path]:
    """The safetensors files of a model folder as `save_pretrained` writes it: one, or the shards
    that its index lists. UserError for a missing shard, for pickles only, for nothing."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        listed = read_json(indices[0], field).get("weight_map", {})
        files = [folder / name for name in sorted(set(listed.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UserError(
                f"{field}: {folder} lacks {', '.join(missing)}, which {indices[0].name} lists; "
                "download the folder again"
            )
        return files
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(f.name for f in folder.glob("*") if f.suffix in _PICKLES)
    if pickles:
        raise UserError(
            f"{field}: {folder} holds {pickles[0]}, a pickle, which may run code when it is read; "
            "safetensors are expected: take the repository's safetensors revision, or convert the "
            "file on a machine that may run it"
        )
    raise UserError(f"{field}: {folder} holds no *.safetensors; download the folder again")


def read_header(path: Path, field: str) -> dict[str, TensorInfo]:
    """Name -> dtype and shape of every tensor of a safetensors file, without reading weights.
    UserError for another format and for a file that was cut off."""
    if path.suffix in _PICKLES:
        raise UserError(f"{field}: {path} is a pickle by its name; safetensors are expected")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise UserError(f"{field}: {path} is not a safetensors file, or was cut off")
            header = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"{field}: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{field}: {path} is not a safetensors file") from error
    tensors = {name: about for name, about in header.items() if name != "__metadata__"}
    end = max((about["data_offsets"][1] for about in tensors.values()), default=0)
    if size != 8 + length + end:
        raise UserError(
            f"{field}: {path} has {size} bytes, its header promises {8 + length + end}: download "
            "it again"
        )
    return {
        name: TensorInfo(about["dtype"], tuple(about["shape"])) for name, about in tensors.items()
    }


def read_headers(paths: Iterable[Path], field: str) -> dict[str, TensorInfo]:
    """The headers of several files as one."""
    found: dict[str, TensorInfo] = {}
    for path in paths:
        found |= read_header(path, field)
    return found


def require_tensors(
    found: Mapping[str, TensorInfo],
    wanted: Mapping[str, tuple[int, ...]],
    field: str,
    what: str,
    *,
    exact: bool = True,
) -> None:
    """UserError unless `found` holds every wanted name in its shape and, if `exact`, nothing else;
    `what` names the model that was expected."""
    missing = sorted(wanted.keys() - found.keys())
    more = sorted(found.keys() - wanted.keys()) if exact else []
    other = [
        f"{name} is {found[name].shape}, expected {tuple(shape)}"
        for name, shape in sorted(wanted.items())
        if name in found and found[name].shape != tuple(shape)
    ]
    problems = [
        f"{len(names)} {kind}, first: {names[0]}"
        for kind, names in (
            ("tensors missing", missing),
            ("not expected", more),
            ("of another shape", other),
        )
        if names
    ]
    if problems:
        raise UserError(f"{field}: not the weights of {what}: {'; '.join(problems)}")


def read_json(path: Path, field: str) -> dict[str, Any]:
    """A JSON object of a checkpoint. UserError when it is absent or is not one."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(
            f"{field}: {path} cannot be read ({error.strerror}); is this the right folder?"
        ) from error
    except ValueError as error:
        raise UserError(f"{field}: {path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{field}: {path} holds no JSON object")
    return value


def require_class(folder: Path, wanted: str | Sequence[str], field: str) -> str:
    """The class that a model folder's config.json (model_index.json of a pipeline) names.
    UserError when it is not a wanted one."""
    wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    index = folder / "model_index.json"
    about = read_json(index if index.is_file() else folder / "config.json", field)
    names = [about["_class_name"]] if "_class_name" in about else about.get("architectures") or []
    for name in names:
        if name in wanted:
            return str(name)
    raise UserError(
        f"{field}: {folder} holds {', '.join(map(str, names)) or 'a model without a class'}, "
        f"expected {' or '.join(wanted)}"
    )


def digest_files(paths: Iterable[Path], *settings: str) -> str:
    """Hash of weight files and settings: of each file its size, its first bytes (a safetensors
    header) and `PROBES` pieces of its content, so that 24 GB take a blink. A changed fine-tune
    changes all pieces; a single changed byte between pieces is not seen."""
    digest = hashlib.blake2b(digest_size=16)
    for setting in settings:
        digest.update(setting.encode() + b"\0")
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for at in range(PROBES):
                file.seek(at * max(0, size - PROBE) // (PROBES - 1))
                digest.update(file.read(PROBE))
                if size <= PROBE:
                    break
    return digest.hexdigest()


def _is_hub_id(source: str) -> bool:
    return _HUB_ID.fullmatch(source) is not None


def _split(source: str) -> tuple[str, str | None]:
    name, _, revision = source.partition("@")
    return name, revision or None
