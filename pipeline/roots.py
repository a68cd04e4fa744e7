"""What makes a folder a dataset root: dataset.json with the version of its layout."""

from __future__ import annotations

import json
from pathlib import Path

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.runs import SCHEMA_VERSION
from focusdpo.pipeline.files import TEMP, LocalFiles

HEADER = "dataset.json"
IGNORED = {TEMP, "lost+found", ".DS_Store"}
"""Names that do not make a folder somebody else's."""


def open_root(root: str | Path, *, create: bool) -> LocalFiles:
    """The files of the root, which is made when absent and `create`.

    UserError for a root of another schema version, a folder that holds something else, or no root.
    """
    files = LocalFiles(root)
    path = Path(root)
    if path.exists() and not path.is_dir():
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
        files.write(HEADER, f"{_header()}\n".encode())
    _check_version(files)
    return files


def _header() -> str:
    return json.dumps({"kind": "focusdpo dataset", "schema_version": SCHEMA_VERSION})


def _check_version(files: LocalFiles) -> None:
    where = f"{files.root}/{HEADER}"
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
