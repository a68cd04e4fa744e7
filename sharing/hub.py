"""A folder to be given away, whole or not at all, and its way to the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from focusdpo.data_schemas.environment import is_dead, me
from focusdpo.data_schemas.errors import UserError
from focusdpo.store.local import FULL

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
    except OSError as error:
        if error.errno in FULL:  # a write tells no name, or one below the passing folder
            error.filename, error.filename2 = str(out), None
        raise
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
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{checksum}  {path.relative_to(folder).as_posix()}\n")
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


Kind = Literal["dataset", "model"]
ANSWERS = {
    401: "the token is not valid; make one at https://huggingface.co/settings/tokens",
    403: "the token may not write there; give it the right to write, or choose another --repo",
    404: "no such repository or owner; check --repo",
    409: "somebody else changed the repository meanwhile; run the same command again",
    429: "the Hub asks to wait; run the same command again later",
}

log = logging.getLogger(__name__)


def check_hub(repo: str) -> str:
    """The token of whoever is signed in. UserError, before anything is made, for a bad name of a
    repository, offline mode, or no token."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--repo {repo}: not a repository's name ({error})") from error
    if repo.count("/") != 1:
        raise UserError(f"--repo {repo}: write OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            "--to hub: HF_HUB_OFFLINE is set, so nothing is sent; unset it, or export with --to dir"
        )
    token = get_token()
    if token is None:
        raise UserError("--to hub: not signed in; run `hf auth login` or set HF_TOKEN")
    return token


def upload(folder: Path, repo: str, kind: Kind, *, public: bool = False, message: str) -> str:
    """Make the repository when it is absent (private unless `public`) and put the folder's files in
    it, in place of all that was there; the address of the commit. The same files again make no
    commit. UserError for what the Hub or the network refuses."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    token = check_hub(repo)
    api = HfApi(token=token, library_name="focusdpo")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    new = {path.relative_to(folder).as_posix(): path for path in paths}
    with _told(repo, token):
        # One that is there keeps who may see it.
        api.create_repo(repo, repo_type=kind, private=not public, exist_ok=True)
        old = set(api.list_repo_files(repo, repo_type=kind)) - {".gitattributes"}
        done = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, str(path)) for name, path in new.items()),
                *(CommitOperationDelete(name) for name in sorted(old - set(new))),
            ],
            commit_message=message,
            repo_type=kind,
        )
    log.info("%s: %d files", repo, len(new))
    return str(done.commit_url)


@contextmanager
def _told(repo: str, token: str) -> Iterator[None]:
    """What the Hub or the network refuses as UserError, without the token."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        what = ANSWERS.get(status, f"the Hub answered {status}; run the same command again later")
        detail = (error.server_message or "").replace(token, "***")
        raise UserError(f"{repo}: {what}" + (f" ({detail})" if detail else "")) from error
    except (HTTPError, OSError) as error:
        text = str(error).replace(token, "***")
        raise UserError(
            f"{repo}: the Hub cannot be reached ({text}); nothing was published, run the same "
            "command again when the network is there"
        ) from error
    except ValueError as error:  # the card's front matter was refused
        raise UserError(f"{repo}: {str(error).replace(token, '***').strip()}") from error
