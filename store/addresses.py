"""Addresses of roots and shards, local paths and URLs; settings read from environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from focusdpo.data_schemas.errors import UserError

URL = re.compile(r"([a-z][a-z0-9+.-]+):(/+)(.*)", re.DOTALL)
KNOWN = {"s3", "s3a", "memory", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "http", "https"}
SECRET = re.compile(r"[?&](sig|token|password|x-amz-[a-z-]+|awsaccesskeyid|signature)=", re.I)
"""What a signed address or one with a token has."""


def split_address(address: str | Path) -> tuple[str, str]:
    """Protocol ("" for a local path) and the rest. UserError for an address with a password."""
    text = str(address)
    found = URL.fullmatch(text)
    if found is None:
        return "", text
    protocol, slashes, rest = found.groups()
    if protocol in {"file", "local"}:
        return "", f"/{rest}"
    # pathlib folds two slashes into one; then only a protocol that is known tells it from a path.
    if len(slashes) < 2 and protocol not in KNOWN:
        return "", text
    if re.match(r"[^@]*:[^@]*@", rest) or SECRET.search(rest):
        raise UserError(
            f"{protocol}://...: an address holds no password; put credentials into the environment "
            "or the store's own configuration"
        )
    return protocol, rest


class RemoteRoot(str):
    """A URL to which names are added as to a path. It has nothing else of a path's, so that what
    needs a folder on a local disk fails at once."""

    __slots__ = ()

    def __truediv__(self, name: str) -> RemoteRoot:
        return RemoteRoot(f"{self}/{name}")


def is_remote(address: str | Path) -> bool:
    """Whether it is not on a local disk."""
    return split_address(address)[0] != ""


class EnvironmentConfig(BaseModel):
    """Each field is read from the variable `<prefix><FIELD>`; an empty one says nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prefix: ClassVar[str]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """UserError that names a variable which says nothing usable."""
        names = {name: f"{cls.prefix}{name.upper()}" for name in cls.model_fields}
        given = {name: environment[key] for name, key in names.items() if environment.get(key)}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{names[str(first['loc'][0])]}: {first['msg']}") from error
