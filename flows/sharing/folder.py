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
def whole_folder(out: Path, *, replaces: str | None = None) -> Iterator[Path]:
    """A new folder beside `out` to write into, renamed to `out` when the block ends well; what
    dead writers of the same folder have left is removed. UserError when `out` is not free; one
    that has a file `replaces` is an earlier result and gives way."""
    out = Path(out)
    earlier = replaces is not None and (out / replaces).is_file()
    if out.exists() and not earlier and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out}: there is something already; give a new folder, or remove this one first"
        )
    try:
        temp = _beside(out)
        temp.mkdir()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    old = temp.with_name(f"{temp.name}~old")
    try:
        yield temp
        if earlier:
            out.replace(old)
        temp.replace(out)
    finally:
        for left in (temp, old):
            if left.exists():
                shutil.rmtree(left)


def _beside(out: Path) -> Path:
    """The name to write under, which says whose it is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}{_MARK}"
    for old in out.parent.iterdir():
        if old.name.startswith(prefix) and is_dead(old.name.removeprefix(prefix)):
            shutil.rmtree(old)
    return out.parent / f"{prefix}{me()}"


def write_sums(folder: Path) -> None:
    """`SHA256SUMS` of all files, for `sha256sum --check`."""
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{found}  {path.relative_to(folder).as_posix()}\n")
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
