"""Outside weights on disk: where they lie, whether they are whole, what identifies them.

A source is a local folder or file, or the id of a hub repository ("owner/name" or
"owner/name@revision") that lies in the hub's cache. Nothing is downloaded but by `fetch`, which
pins what it got: the commit of the first download is read from then on, whatever is uploaded later
or downloaded by others. Weights are safetensors; their headers are read with the standard library,
so that looking at 24 GB of them takes milliseconds and no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
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
    name, revision = _split(source)
    folder = _cached(name, revision or pinned(name) or "main")
    if folder is None:
        raise UserError(
            f"{field}: {source} is neither a folder here nor in the hub's cache. Download it with "
            f"`focusdpo fetch` and this preset, or on another machine with "
            f"`hf download {name} --local-dir DIR`, and set {field} to DIR"
        )
    return folder


def _cached(name: str, revision: str) -> Path | None:
    """The snapshot of a revision in the hub's cache, by the cache's public layout. The hub's own
    look-up refuses a snapshot without the files that were left out on purpose; whether those that
    are read are there, each part's checks say."""
    repository = _pin_file(name).parents[1]
    ref = repository / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() else None


PIN = "focusdpo"
"""A ref in the hub's cache, beside the hub's own: the commit that is read."""


def _pin_file(name: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=name, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / folder / "refs" / PIN


def pinned(name: str) -> str | None:
    """The commit of a hub repository that the first `fetch` got; None where none has."""
    file = _pin_file(name)
    return file.read_text().strip() if file.is_file() else None


def fetch(
    source: str, field: str, patterns: Sequence[str] | None = None, *, update: bool = False
) -> Path:
    """Downloads a hub repository (its files that match `patterns`) into the hub's cache, and pins
    the commit: later calls keep it, but with `update`. A local source is left alone. UserError
    that says what to do for a gated or absent repository and for a hub that cannot be reached."""
    if is_local(source):
        return locate(source, field)
    from huggingface_hub import snapshot_download

    name, revision = _split(source)
    wanted = revision or (None if update else pinned(name))
    with _hub_errors(field, name, wanted):
        allowed = list(patterns or []) or None
        folder = Path(snapshot_download(name, revision=wanted, allow_patterns=allowed))
    if revision is None:
        _pin_file(name).parent.mkdir(parents=True, exist_ok=True)
        _pin_file(name).write_text(folder.name)
    return folder


@dataclass(frozen=True, slots=True)
class Download:
    """What a source's wanted files take, in bytes."""

    total: int
    missing: int
    """Of it, what is not in the cache yet."""


def size_of(source: str, field: str, patterns: Sequence[str] | None = None) -> Download:
    """What `fetch` would download, by the hub's own list of files; for what lies here whole, by
    the files themselves. UserError as `fetch`."""
    if is_local(source):
        files = local_files(source, field, patterns)
        return Download(sum(file.stat().st_size for file in files), 0)
    from huggingface_hub import constants, snapshot_download

    name, revision = _split(source)
    revision = revision or pinned(name)
    if constants.HF_HUB_OFFLINE:
        files = local_files(source, field, patterns)
        return Download(sum(file.stat().st_size for file in files), 0)
    with _hub_errors(field, name, revision):
        allowed = list(patterns or []) or None
        listed = snapshot_download(name, revision=revision, allow_patterns=allowed, dry_run=True)
    return Download(
        sum(file.file_size for file in listed),
        sum(file.file_size for file in listed if file.will_download),
    )


def local_files(source: str, field: str, patterns: Sequence[str] | None) -> list[Path]:
    """The wanted files of a source that lie here. UserError as `locate`."""
    place = locate(source, field)
    return [place] if place.is_file() else _matching(place, patterns)


def _matching(folder: Path, patterns: Sequence[str] | None) -> list[Path]:
    from huggingface_hub.utils import filter_repo_objects

    names = [str(f.relative_to(folder)) for f in sorted(folder.rglob("*")) if f.is_file()]
    allowed = list(patterns or []) or None
    return [folder / name for name in filter_repo_objects(names, allow_patterns=allowed)]


@contextmanager
def _hub_errors(field: str, name: str, revision: str | None) -> Iterator[None]:
    """Inside, what the hub refuses is a UserError that says what to do."""
    import huggingface_hub.errors as hub

    try:
        yield
    except hub.GatedRepoError as error:
        raise UserError(
            f"{field}: {name} is gated. Accept its licence at https://huggingface.co/{name}, then "
            "log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise UserError(
            f"{field}: {name} has no revision {revision!r}; `focusdpo fetch --update` takes the "
            "newest"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise UserError(
            f"{field}: the hub has no repository {name}, or your token may not see it; check the "
            "name, or log in with `hf auth login`"
        ) from error
    except (
        hub.LocalEntryNotFoundError,
        hub.HfHubHTTPError,
        hub.OfflineModeIsEnabled,
        hub.DryRunError,
    ) as error:
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
    headers: dict[str, TensorInfo] = {}
    for path in paths:
        headers |= read_header(path, field)
    return headers


def require_tensors(
    headers: Mapping[str, TensorInfo],
    wanted: Mapping[str, tuple[int, ...]],
    field: str,
    what: str,
    *,
    exact: bool = True,
) -> None:
    """UserError unless `headers` holds every wanted name in its shape and, if `exact`, nothing
    else; `what` names the model that was expected."""
    missing = sorted(wanted.keys() - headers.keys())
    more = sorted(headers.keys() - wanted.keys()) if exact else []
    other = [
        f"{name} is {headers[name].shape}, expected {tuple(shape)}"
        for name, shape in sorted(wanted.items())
        if name in headers and headers[name].shape != tuple(shape)
    ]
    _refuse(missing, more, other, field, what)


def load_whole(
    cls: Any,
    folder: Path,
    field: str,
    *,
    exact: bool = True,
    copies: Mapping[str, str] | None = None,
    **settings: Any,
) -> Any:
    """A transformers model from a folder of safetensors. UserError for tensors that are missing, of
    another shape or, if `exact`, not expected. `copies`: tensor -> the one that it equals, for
    those that some files hold once and some twice."""
    model, about = cls.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, by name
        **settings,
    )
    missing, more, other = (
        sorted(map(str, about[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")
    )
    twice = {name: copies[name] for name in missing if name in copies} if copies else {}
    absent = [name for name in missing if name not in twice or twice[name] in missing]
    _refuse(absent, more if exact else [], other, field, f"{cls.__name__} in {folder}")
    tensors = model.state_dict() if twice else {}
    for name, source in twice.items():
        tensors[name].copy_(tensors[source])
    return model


def _refuse(
    missing: Sequence[str], more: Sequence[str], other: Sequence[str], field: str, what: str
) -> None:
    kinds = {"tensors missing": missing, "not expected": more, "of another shape": other}
    problems = [f"{len(n)} {kind}, first: {n[0]}" for kind, n in kinds.items() if n]
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
    """The class that a folder's config names: config.json, model_index.json of a pipeline or
    scheduler_config.json. UserError when it is not a wanted one."""
    wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    indices = (folder / name for name in ("model_index.json", "scheduler_config.json"))
    index = next((file for file in indices if file.is_file()), folder / "config.json")
    about = read_json(index, field)
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


def require_files(folder: Path, sets: Iterable[Sequence[str]], field: str) -> None:
    """UserError unless all files of one of the sets are there."""
    sets = list(sets)
    if not any(all((folder / name).is_file() for name in names) for names in sets):
        raise UserError(
            f"{field}: {folder} lacks {' or '.join(' + '.join(names) for names in sets)}; download "
            "the folder again (`focusdpo fetch` with this preset)"
        )


def part_patterns(stem: str, variant: str | None = None) -> list[str]:
    """Patterns of just the files that `part_files` reads, for `fetch`: `stem` as in
    "unet/diffusion_pytorch_model", whole or in shards, without those of other variants."""
    shard = "?????-of-?????"
    if variant is None:
        names = [f"{stem}.safetensors", f"{stem}-{shard}.safetensors"]
        return [*names, f"{stem}.safetensors.index.json"]
    names = [f"{stem}.{variant}.safetensors", f"{stem}.{variant}-{shard}.safetensors"]
    names.append(f"{stem}-{shard}.{variant}.safetensors")
    return [*names, f"{stem}.safetensors.index.{variant}.json"]


def part_files(folder: Path, field: str, variant: str | None = None) -> list[Path]:
    """The weight files of one model of a pipeline: those of a variant ("fp16": *.fp16.safetensors),
    or those with plain names. UserError where there are none, with what is there."""
    if variant is None:
        wanted = [file for file in weight_files(folder, field) if file.name.count(".") == 1]
    else:
        wanted = sorted(folder.glob(f"*.{variant}*.safetensors"))
    if wanted:
        return wanted
    there = weight_files(folder, field)[0].name
    kind = "plain *.safetensors" if variant is None else f"*.{variant}.safetensors"
    other = repr(there.split(".")[1]) if there.count(".") > 1 else "null"
    raise UserError(
        f"{field}: {folder} holds no {kind} but {there}; set {field.rpartition('.')[0]}.variant to "
        f"{other}, or download the other files"
    )


def check_part(
    folder: Path,
    kind: str,
    field: str,
    variant: str | None = None,
    *,
    unread: Sequence[str] = (),
    also: Sequence[str] = (),
) -> str:
    """A line on one model of a pipeline: its class `kind` and its size. UserError for another
    class than this or `also`, missing files, a pickle, a file that was cut off, and tensors that
    are missing, unexpected or of another shape; those with a part of `unread` in their names do not
    count."""
    require_class(folder, (kind, *also), field)
    files = part_files(folder, field, variant)
    headers = read_headers(files, field)
    # Text and vision encoders are stored under names and with buffers that changed over time.
    is_encoder = kind.startswith(("CLIP", "T5"))
    prefix = "vision_model." if "Vision" in kind else "text_model."
    aside = (*unread, *(("position_ids", "encoder.embed_tokens.weight") if is_encoder else ()))

    def plain(tensors: Mapping[str, Any]) -> dict[str, Any]:
        kept = {n: t for n, t in tensors.items() if not any(part in n for part in aside)}
        return {n.removeprefix(prefix): t for n, t in kept.items()} if is_encoder else kept

    wanted = plain(_shapes(folder, kind, field))
    what = f"the {kind} that {folder}/config.json describes"
    require_tensors(plain(headers), wanted, field, what, exact=not is_encoder)
    return f"{kind}, {num_weights(headers) / 1e6:,.1f} M weights in {len(files)} files"


def _shapes(folder: Path, kind: str, field: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors by its config, without memory for weights."""
    import diffusers
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    about = read_json(folder / "config.json", field)
    try:
        with torch.device("meta"):
            if hasattr(diffusers, kind):
                model = getattr(diffusers, kind).from_config(about)
            else:
                cls = getattr(transformers, kind)
                model = cls(cls.config_class.from_pretrained(folder, local_files_only=True))
    except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise UserError(f"{field}: {folder}/config.json describes no {kind}: {error}") from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def num_weights(tensors: Mapping[str, TensorInfo]) -> int:
    """How many numbers they hold."""
    return sum(prod(about.shape) for about in tensors.values())


def require_memory(needed: float, device: str, field: str, advice: str) -> None:
    """UserError with advice when `needed` bytes of weights do not fit into a GPU's free memory."""
    import torch

    if torch.device(device).type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise UserError(
            f"{field}: {needed / 2**30:.1f} GiB of weights, and {device} has "
            f"{free / 2**30:.1f} GiB free. {advice}"
        )


def is_local(source: str) -> bool:
    """Whether a source is a path here, and no hub id."""
    return Path(source).expanduser().exists() or not _is_hub_id(source)


def _is_hub_id(source: str) -> bool:
    return _HUB_ID.fullmatch(source) is not None


def _split(source: str) -> tuple[str, str | None]:
    name, _, revision = source.partition("@")
    return name, revision or None
