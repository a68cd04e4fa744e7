"""A folder to be given away: it appears whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from focusdpo.data_schemas.errors import UserError
from focusdpo.pipeline.processes import is_dead, me

SUMS = "SHA256SUMS"
_MARK = ".partial~"


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write into, renamed to `out` when the block ends well; what
    dead writers of the same folder have left is removed. UserError when `out` is not free."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out}: there is something already; give a new folder, or remove this one first"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{out.name}{_MARK}"
        for old in out.parent.iterdir():
            if old.name.startswith(prefix) and is_dead(old.name.removeprefix(prefix)):
                shutil.rmtree(old)
        temp = out.parent / f"{prefix}{me()}"
        temp.mkdir()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    try:
        yield temp
        temp.replace(out)
    finally:
        if temp.exists():
            shutil.rmtree(temp)


def write_sums(folder: Path) -> None:
    """`SHA256SUMS` of all files, for `sha256sum --check`."""
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{found}  {path.relative_to(folder).as_posix()}\n")
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
