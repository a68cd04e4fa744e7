"""What makes a folder or prefix a dataset root: dataset.json with the version of its layout."""

from __future__ import annotations

import json
from pathlib import Path

from focusdpo.data_schemas.addresses import split_address
from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import SCHEMA_VERSION
from focusdpo.pipeline.files import LOCK, TEMP, Files, LocalFiles

HEADER = "dataset.json"
LEASES = ".leases"
IGNORED = {TEMP, LOCK, LEASES, "lost+found", ".DS_Store"}
"""Names that do not make a folder somebody else's."""


def files_of(root: str | Path) -> Files:
    """The files at a path, file:///path, s3://bucket/prefix, memory://name, or another object store
    that fsspec knows. UserError for an address that is none of these."""
    protocol, rest = split_address(root)
    if not protocol:
        return LocalFiles(rest)
    from focusdpo.pipeline.fsspec_objects import WHOLE, FsspecObjects
    from focusdpo.pipeline.remote_config import RemoteConfig
    from focusdpo.pipeline.remote_files import RemoteFiles
    from focusdpo.pipeline.s3_objects import S3Objects

    config = RemoteConfig.from_environment()
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise UserError(f"{protocol}://: which bucket? write {protocol}://BUCKET/PREFIX")
    if protocol in {"s3", "s3a"}:
        return RemoteFiles(f"s3://{rest}", S3Objects(bucket, prefix, config), config)
    if protocol not in WHOLE:
        raise UserError(
            f"{root}: '{protocol}' is not known to show a file only when all of it has come; use "
            f"s3:// or one of {', '.join(sorted(WHOLE))}, or mount it and give the path"
        )
    return RemoteFiles(f"{protocol}://{rest}", FsspecObjects(protocol, rest), config)


def open_root(root: str | Path, *, create: bool) -> Files:
    """The files of the root, which is made when absent and `create`.

    UserError for a root of another schema version, a folder that holds something else, or no root.
    """
    files = files_of(root)
    if files.local is not None and files.local.exists() and not files.local.is_dir():
        raise UserError(f"{root}: a file, not a dataset root; choose a folder")
    if not files.exists(HEADER):
        others = set(files.names("")) - IGNORED
        # Asked again, because another writer may have made the root in between.
        if others and not files.exists(HEADER):
            raise UserError(
                f"{root}: not a FocusDPO dataset root, but it holds {sorted(others)[:3]}; "
                "choose an empty or new folder"
            )
        if not create:
            raise UserError(f"{root}: no dataset here; run `focusdpo build-dataset` first")
        files.write(HEADER, f"{_header()}\n".encode(), replace=False)
    _check_version(files)
    return files


def _header() -> str:
    return json.dumps({"kind": "focusdpo dataset", "schema_version": SCHEMA_VERSION})


def _check_version(files: Files) -> None:
    where = files.address(HEADER)
    try:
        version = json.loads(files.read(HEADER))["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{where}: damaged ({error}); write {_header()} into it if this version of focusdpo "
            "made the root"
        ) from error
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema version {version}, this focusdpo reads {SCHEMA_VERSION}; build into "
            "a new root, or use the focusdpo that made this one"
        )
