"""What an address means: a path or a URL, the files there, and what makes them a dataset root
(dataset.json with the version of its layout)."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from focusdpo.data_schemas.errors import UserError, run_doctor
from focusdpo.data_schemas.runs import SCHEMA_VERSION
from focusdpo.store.keys import digest, parsed
from focusdpo.store.local import LOCK, TEMP, Files, LocalFiles

URL = re.compile(r"([a-z][a-z0-9+.-]+):(/+)(.*)", re.DOTALL)
KNOWN = {"s3", "s3a", "memory", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "http", "https"}
SECRET = re.compile(
    r"[?&](sig|signature|(access_)?token|password|secret|x-(amz|goog)-[a-z-]+|awsaccesskeyid)=",
    re.I,
)
"""What a signed address or one with a token has."""
LOGIN = re.compile(r"([a-z][a-z0-9+.-]+):/+[^@]*:[^@]*@", re.I)
"""What an address with a name and a password begins with, even where it is none of ours."""


def refuse_secret(text: str) -> None:
    """UserError, which does not repeat it, for an address with a password or token."""
    protocol, colon, rest = text.partition(":/")
    if colon and (LOGIN.match(text) or SECRET.search(rest)):
        raise UserError(
            f"{protocol}://...: an address holds no password; put credentials into the environment "
            "or the store's own configuration"
        )


def split_address(address: str | Path) -> tuple[str, str]:
    """Protocol ("" for a local path) and the rest. UserError for an address with a password."""
    text = str(address)
    match = URL.fullmatch(text)
    if match is None:
        return "", at_home(text)
    protocol, slashes, rest = match.groups()
    if protocol in {"file", "local"}:
        return "", f"/{rest}"
    # pathlib folds two slashes into one; then only a protocol that is known tells it from a path.
    if len(slashes) < 2 and protocol not in KNOWN:
        return "", text
    refuse_secret(text)
    return protocol, rest


def at_home(path: str) -> str:
    """A path whose ~ is the home folder: a shell leaves it as it is in --root=~/data, and nothing
    else would read it. UserError for a user who has none."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such user's home; write the path out") from error


class RemoteRoot(str):
    """A URL to which names are added as to a path. It has nothing else of a path's, so that what
    needs a folder on a local disk fails at once."""

    __slots__ = ()

    def __truediv__(self, name: str) -> RemoteRoot:
        return RemoteRoot(f"{self}/{name}")


def is_remote(address: str | Path) -> bool:
    """Whether it is not on a local disk."""
    return split_address(address)[0] != ""


HEADER = "dataset.json"
LEASES = ".leases"
OURS = {"stages", "versions"}
"""Folders by which a dataset is known that has lost its dataset.json."""
MEDIA = {
    **{"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az"},
    **{"abfs": "abfs", "abfss": "abfss", "memory": "memory"},
}
"""Protocols whose stores show an object when all of it has come, and what we call them."""
IGNORED = {TEMP, LOCK, LEASES, "lost+found", ".DS_Store"}
"""Names that do not make a folder somebody else's."""


def files_of(root: str | Path) -> Files:
    """The files at a path, file:///path, s3://bucket/prefix, memory://name, gs:// or az://.
    UserError for an address that is none of these."""
    protocol, rest = split_address(root)
    if not protocol:
        return LocalFiles(rest)
    from focusdpo.store.media import S3, Medium, Memory, RemoteConfig
    from focusdpo.store.remote import RemoteFiles

    config = RemoteConfig.from_environment()
    bucket = rest.partition("/")[0]
    if not bucket:
        raise UserError(f"{protocol}://: which bucket? write {protocol}://BUCKET/PREFIX")
    if protocol not in MEDIA:
        raise UserError(
            f"{root}: '{protocol}' is not known to show a file only when all of it has come; use "
            f"one of {', '.join(MEDIA)} (OSS and OCI speak S3: s3:// with AWS_ENDPOINT_URL), or "
            "mount it and give the path"
        )
    name = MEDIA[protocol]
    medium = {"s3": S3, "memory": Memory}.get(name, Medium)
    return RemoteFiles(medium(f"{name}://{rest}", config), config)


class Unwritten:
    """A root of which nothing is written or removed: what is written stays in this process."""

    def __init__(self, below: Files) -> None:
        self._below, self._own = below, dict[str, bytes]()
        self.root, self.local = below.root, below.local

    def address(self, path: str) -> str:
        return self._below.address(path)

    def exists(self, path: str) -> bool:
        return path in self._own or self._below.exists(path)

    def size(self, path: str) -> int:
        return len(self._own[path]) if path in self._own else self._below.size(path)

    def names(self, path: str) -> list[str]:
        start = f"{path}/" if path else ""
        names = {file.removeprefix(start).partition("/")[0] for file in self._inside(path)}
        return sorted(names | set(self._below.names(path)))

    def listing(self, path: str) -> dict[str, int]:
        sizes = {file.removeprefix(f"{path}/"): len(self._own[file]) for file in self._inside(path)}
        return dict(sorted({**self._below.listing(path), **sizes}.items()))

    def below(self, path: str) -> list[str]:
        paths = {file.removeprefix(f"{path}/") for file in self._inside(path)}
        return sorted(paths | set(self._below.below(path)))

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        if path not in self._own:
            return self._below.read(path, offset, size)
        return self._own[path][offset : None if size < 0 else offset + size]

    @contextmanager
    def create(self, path: str, *, replace: bool = True, sync: bool = True) -> Iterator[BinaryIO]:
        sink = io.BytesIO()
        yield sink
        self.write(path, sink.getvalue(), replace=replace)

    def write(self, path: str, data: bytes, *, replace: bool = True, sync: bool = True) -> bool:
        stays = not replace and self.exists(path)
        if not stays:
            self._own[path] = data
        return not stays

    def tagged(self, path: str) -> tuple[bytes, str] | None:
        if path not in self._own:
            return self._below.tagged(path)
        return self._own[path], digest(self._own[path])

    def swap(self, path: str, data: bytes, tag: str | None, *, sync: bool = True) -> str | None:
        now = self.tagged(path)
        if (None if now is None else now[1]) != tag:
            return None
        self._own[path] = data
        return digest(data)

    def age(self, path: str) -> float | None:
        """Not told: on a disk one has to write to know what time it is there."""
        return None

    def remove(self, path: str, tag: str | None = None) -> None:
        self._own.pop(path, None)

    def prune(self, path: str) -> None:
        return

    def clean(self) -> int:
        return 0

    def _inside(self, path: str) -> list[str]:
        return [file for file in self._own if not path or file.startswith(f"{path}/")]


def open_root(root: str | Path, *, create: bool, write: bool = True) -> Files:
    """The files of the root, which is made when absent and `create`; without `write` in this
    process's memory alone.

    UserError for a root of another schema version, a folder that holds something else, or no root.
    """
    files: Files = files_of(root) if write else Unwritten(files_of(root))
    if files.local is not None and files.local.exists() and not files.local.is_dir():
        raise UserError(f"{root}: a file, not a dataset root; choose a folder")
    if not files.exists(HEADER):
        others = set(files.names("")) - IGNORED
        # Asked again, because another writer may have made the root in between.
        if others >= OURS and not files.exists(HEADER):
            raise UserError(
                f"{root}: {HEADER} is missing, and all else of a dataset is there. "
                f"{run_doctor(root)}"
            )
        if others and not files.exists(HEADER):
            raise UserError(
                f"{root}: not a FocusDPO dataset root, but it holds "
                f"{', '.join(sorted(others)[:3])}; choose an empty or new folder"
            )
        if not create:
            raise UserError(f"{root}: no dataset here; run `focusdpo build-dataset` first")
        files.write(HEADER, header(), replace=False)
    _check_version(files)
    return files


def header() -> bytes:
    """What dataset.json holds."""
    about = {"kind": "focusdpo dataset", "schema_version": SCHEMA_VERSION}
    return f"{json.dumps(about)}\n".encode()


def header_damage(files: Files) -> str | None:
    """What is wrong with the dataset.json of a folder that has all else of a dataset; None when
    nothing is, or it is of another layout, and no version says otherwise."""
    if not set(files.names("")) >= OURS:
        return None
    try:
        data = files.read(HEADER)
    except FileNotFoundError:
        return "missing"
    try:
        version = parsed(data)["schema_version"]
    except (ValueError, KeyError, TypeError):
        version = None
    if data == header():
        return None
    other = isinstance(version, int) and version != SCHEMA_VERSION
    return None if other and _schemas(files) != {SCHEMA_VERSION} else "damaged"


def _schemas(files: Files) -> set[object]:
    """What the versions of a root say of its layout, as far as they can be read."""
    schemas = set()
    for name in files.names("versions"):
        try:
            schemas.add(parsed(files.read(f"versions/{name}/manifest.json"))["schema_version"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue
    return schemas


def _check_version(files: Files) -> None:
    where = files.address(HEADER)
    try:
        version = parsed(files.read(HEADER))["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        what_to_do = f"remove {where} and build again"
        if set(files.names("")) >= OURS:
            what_to_do = run_doctor(files.root)
        raise UserError(f"{where}: damaged ({error}). {what_to_do}") from error
    if version != SCHEMA_VERSION and header_damage(files):
        raise UserError(
            f"{where}: damaged (schema version {version}, but its versions have {SCHEMA_VERSION}). "
            f"{run_doctor(files.root)}"
        )
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema version {version}, this focusdpo reads {SCHEMA_VERSION}; build into "
            "a new root, or use the focusdpo that made this one"
        )
