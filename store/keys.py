"""Content keys: names for results that say all that their bytes depend on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from json.encoder import encode_basestring_ascii
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
    """A JSON file that tells when it was damaged; `unsealed` reads it."""
    return f"{json.dumps({**values, SEAL: _seal(values)}, indent=1, ensure_ascii=False)}\n".encode()


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
