"""Names and digests: the gate for names that files say; content keys, names for results that say
all that their bytes depend on; and seals, checksums of every file that decides something, by which
its reader and `doctor` notice damage."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.subjects import ImageKey

STAGE = re.compile(r"[a-z][a-z0-9_-]*")
KEY = re.compile(r"[0-9a-f]{8,64}")
MEMBER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.png")
SHARD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.tar")
"""What a shard may be called."""
DIGEST = re.compile(r"[0-9a-f]{32}")


def is_plain(path: str) -> bool:
    """Whether it names something inside a folder and nothing else: relative, "/" between its parts,
    none of them empty, "." or ".."."""
    return "\0" not in path and not {"", ".", ".."} & set(path.split("/"))


def inside(folder: Path, name: str, source: str | Path) -> Path:
    """Where `name`, which the file `source` says, lies in a folder. UserError that names the source
    unless it is a plain relative name, and no link is on the way or at its end."""
    if not is_plain(name):
        raise UserError(f"{source}: names a file outside its folder: {name[:80]!r}")
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise UserError(f"{source}: names {name[:80]!r}, and {path} is a link")
    return path


def digest(data: bytes) -> str:
    """blake2b-128 of bytes, 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def parsed(data: bytes) -> Any:
    """JSON, perhaps a stranger's. ValueError when it is none, or nested too deeply to be ours."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


SEAL = "blake2b"
"""The last entry of a sealed file: the digest of all others."""


def sealed(values: Mapping[str, Any]) -> bytes:
    """A JSON file that tells when it was damaged; `unsealed` reads it. Under "digests" it may tell
    of the files beside it, by name: `changed` looks."""
    return f"{json.dumps({**values, SEAL: _seal(values)}, indent=1, ensure_ascii=False)}\n".encode(
        errors="backslashreplace"  # JSON's escape, for paths that are not UTF-8
    )


def unsealed(data: bytes) -> dict[str, Any]:
    """What `sealed` was given; also of a file from before there were seals. ValueError for damage:
    a changed value as well as what is no JSON."""
    values = parsed(data)
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    seal = values.pop(SEAL, None)
    if seal is not None and seal != _seal(values):
        raise ValueError("its checksum is another: it is not what was written")
    return values


BESIDE = "digests"
"""The entry of a sealed file that tells digests of others: name in its folder -> digest."""


def digests_in(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """What a sealed file tells of finished files beside it; of those that are there."""
    paths = {name: folder / name for name in sorted(names)}
    return {name: file_digest(path) for name, path in paths.items() if path.is_file()}


def changed(
    folder: Path, record: Mapping[str, Any], names: Iterable[str] | None = None
) -> list[str]:
    """Of the files (all, or `names`) of which the sealed file with the values `record` tells, those
    that are not what was written: missing, cut, or with another byte. None of what was written
    before files were told of."""
    known = record.get(BESIDE)
    if not isinstance(known, Mapping):
        return []
    wanted = known if names is None else known.keys() & set(names)
    now = digests_in(folder, (name for name in wanted if is_plain(name)))
    return sorted(name for name in wanted if now.get(name) != known[name])


def require_whole(
    folder: Path, record: Mapping[str, Any], again: str, names: Iterable[str] | None = None
) -> None:
    """UserError for the first that is `changed`; `again`: what to do then."""
    for name in changed(folder, record, names):
        what = "not what was written" if (folder / name).is_file() else "missing"
        raise UserError(f"{folder / name}: damaged ({what}); {again}")


def file_digest(path: Path) -> str:
    """`digest` of a file's bytes, which may be many."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _seal(values: Mapping[str, Any]) -> str:
    return digest(json.dumps(values, sort_keys=True).encode())


def config_digest(config: BaseModel | Mapping[str, Any] | None) -> str:
    """16 hexadecimal digits of a config's values."""
    values = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config or {})
    return digest(json.dumps(values, sort_keys=True, allow_nan=False).encode())[:16]


def content_key(
    stage: str,
    version: int | str,
    config: BaseModel | Mapping[str, Any] | None,
    model: str = "",
    inputs: Iterable[str] = (),
) -> str:
    """32 hexadecimal digits of all that an artefact's bytes depend on: the stage's name and code
    version, its config, the fingerprint of its model, and its inputs in any order."""
    return key_maker(stage, version, config, model)(inputs)


def key_maker(
    stage: str,
    version: int | str,
    config: BaseModel | Mapping[str, Any] | None,
    model: str = "",
) -> Callable[[Iterable[str]], str]:
    """`content_key` of many inputs: what they share is hashed once."""
    shared = json.dumps([stage, str(version), config_digest(config), model]).removesuffix("]")

    def key(inputs: Iterable[str]) -> str:
        words = ", ".join(map(encode_basestring_ascii, sorted(inputs)))  # json.dumps, faster
        return digest(f"{shared}, [{words}]]".encode())

    return key


def image_key(stage: str, key: str, member: str) -> ImageKey:
    """How records name an image of an artefact; `member` ends in .png."""
    if not MEMBER.fullmatch(member):
        raise ValueError(f"image member '{member}': letters, digits, '_', '-', '.', then .png")
    return f"{stage}/{key}/{member}"


def split_image_key(key: ImageKey) -> tuple[str, str, str]:
    """Stage, artefact key and member of an image key."""
    parts = key.split("/")
    if len(parts) != 3:
        raise UserError(f"image key '{key}': expected <stage>/<artefact>/<member>.png")
    return parts[0], parts[1], parts[2]
