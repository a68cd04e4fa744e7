"""What a backbone's encoders make of pictures, references and prompts: made once, then found.

An entry is some tensors under a key of its content: a picture's pixels, a reference's pixels, mask
and how many references stand beside it, a prompt's text, a sample's bytes in its shard. Entries lie
in main memory up to a bound and, with a folder, on disk, where runs share them:

    <folder>/<encoder>/<key>.safetensors

Each is encoded alone, so that it depends on its own content and not on its neighbours: a run that
finds some of its entries trains on the same bits as one that makes all of them. What does not fit
is encoded anew when it is wanted; what fits stays.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import Backbone, Prompts, References
from focusdpo.store.cache import NO_ROOM
from focusdpo.store.local import make_folder

log = logging.getLogger(__name__)

VERSION = 1
"""Of entries and their keys."""
_SUFFIX = ".safetensors"
_ABANDONED = 24 * 3600.0
"""Seconds after which an unfinished file counts as a dead writer's."""


@dataclass(frozen=True)
class Entry:
    """Tensors on the CPU, and words about them."""

    tensors: dict[str, Tensor]
    about: dict[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def key_of(kind: str, *parts: Any) -> str:
    """32 hexadecimal digits of what is encoded; arrays count with their shape and bytes."""
    hasher = hashlib.blake2b(f"{VERSION} {kind}".encode(), digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            hasher.update(f"|{part.dtype} {part.shape}|".encode())
            hasher.update(np.ascontiguousarray(part).data)
        else:
            hasher.update(f"|{part}".encode())
    return hasher.hexdigest()


class EncodedFolder:
    """Entries of one encoder on a disk, of which all encoders together take at most `limit` bytes.

    Where there is no room, entries that this run has not asked for go first, the longest unused of
    them first. Safe for threads and processes: an entry appears whole, and one that is gone is
    made again. UserError where the folder cannot be made."""

    def __init__(self, folder: Path, encoder: str, limit: int) -> None:
        self._top, self._folder, self._limit = folder, folder / encoder, limit
        self._lock = threading.Lock()
        self._used: set[Path] = set()
        self._full = False
        make_folder(self._folder)
        sizes = {path: size for path, size, _ in self._entries()}
        self._taken = sum(sizes.values())
        ours = sum(path.parent == self._folder for path in sizes)
        if sizes and not ours:
            log.warning(
                "%s: %.1f GiB there are of other encoders or other settings of this backbone, and "
                "none of it fits this run: all is encoded anew. What is not used goes when room is "
                "needed; remove the folder to free it now",
                folder,
                self._taken / 2**30,
            )

    def __contains__(self, key: str) -> bool:
        """Whether an entry is there; it is then in use."""
        path = self._path(key)
        there = path.is_file()
        if there:
            self._use(path)
        return there

    def read(self, key: str) -> Entry | None:
        """The entry, which is then in use; None where it is not there. One that is damaged is told
        of and taken away."""
        from safetensors import SafetensorError, safe_open

        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                about = dict(file.metadata() or {})
                entry = Entry({name: file.get_tensor(name) for name in file.keys()}, about)  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            log.warning("%s is damaged (%s): it is encoded anew", path, error)
            path.unlink(missing_ok=True)
            return None
        self._use(path)
        return entry

    def write(self, key: str, entry: Entry) -> bool:
        """Keep an entry; False where there is no room for it."""
        from safetensors.torch import save

        path = self._path(key)
        if path.is_file():
            self._use(path)
            return True
        tensors = {name: tensor.contiguous() for name, tensor in entry.tensors.items()}
        data = save(tensors, entry.about)
        if self._full or not self._make_room(len(data)):
            return self._no_room("train.encoded.gib is reached")
        part = path.with_name(f".{key}.{uuid.uuid4().hex[:8]}")
        try:
            with part.open("wb") as sink:
                sink.write(data)
                sink.flush()
                os.fsync(sink.fileno())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            if error.errno not in NO_ROOM:
                raise
            return self._no_room(str(error.strerror))
        with self._lock:
            self._taken += len(data)
            self._used.add(path)
        return True

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"

    def _use(self, path: Path) -> None:
        """From now on it stays; its time tells other runs that it was wanted."""
        with self._lock:
            known = path in self._used
            self._used.add(path)
        if not known:
            with suppress(OSError):  # taken away meanwhile, or another's
                os.utime(path)

    def _no_room(self, why: str) -> bool:
        if not self._full:
            self._full = True
            log.warning(
                "%s: no room for more (%s). What is there stays, the rest is encoded when it is "
                "wanted; raise train.encoded.gib, free some space or set train.encoded.folder",
                self._top,
                why,
            )
        return False

    def _make_room(self, size: int) -> bool:
        with self._lock:
            if self._taken + size <= self._limit:
                return True
            for path, taken, _ in sorted(self._entries(), key=lambda entry: entry[2]):
                if path not in self._used:
                    path.unlink(missing_ok=True)
                    self._taken -= taken
                if self._taken + size <= self._limit:
                    return True
            return False

    def _entries(self) -> Iterator[tuple[Path, int, float]]:
        """Path, size and time of every encoder's entries; what dead writers left goes."""
        for path in self._top.glob("*/*"):
            try:
                about = path.stat()
            except FileNotFoundError:
                continue
            if path.name.startswith("."):
                if time.time() - about.st_mtime > _ABANDONED:
                    path.unlink(missing_ok=True)
            elif path.suffix == _SUFFIX:
                yield path, about.st_size, about.st_mtime


class Encodings:
    """A backbone's encodings by key. What is asked for is looked up in memory, then on disk, else
    encoded; finding is safe in threads, encoding is for the thread that owns the models."""

    def __init__(
        self, backbone: Backbone, memory: int = 0, folder: EncodedFolder | None = None
    ) -> None:
        """`memory`: bytes of entries that are kept there."""
        self._backbone, self._folder = backbone, folder
        self._room = memory
        self._kept: dict[str, Entry] = {}
        self._lock = threading.Lock()
        # What the backbone does itself, also while `in_place` puts `prompts` before it.
        self._encode_prompts = backbone.encode_prompts
        self._alone = "count" in inspect.signature(backbone.encode_references).parameters
        self.made = 0
        """Pictures, references and prompts that were encoded, not found."""

    @property
    def keeps(self) -> bool:
        """Whether anything that is encoded now could be found later."""
        return self._room > 0 or self._folder is not None

    def find(self, key: str) -> Entry | None:
        """An entry, where there is one."""
        if (kept := self._kept.get(key)) is not None:
            return kept
        entry = None if self._folder is None else self._folder.read(key)
        if entry is not None:
            self._remember(key, entry)
        return entry

    def has(self, key: str) -> bool:
        """Whether `find` would give one, without reading it."""
        return key in self._kept or (self._folder is not None and key in self._folder)

    def keep(self, key: str, entry: Entry) -> Entry:
        """Keep what was made, as far as there is room."""
        self._remember(key, entry)
        if self._folder is not None:
            self._folder.write(key, entry)
        return entry

    def _remember(self, key: str, entry: Entry) -> None:
        with self._lock:
            if key not in self._kept and entry.nbytes <= self._room:
                self._kept[key] = entry
                self._room -= entry.nbytes

    def picture(self, pixels: np.ndarray) -> tuple[str, Entry]:
        """uint8 (H, W, 3) -> its key and `latents` (N, C), float32."""
        key = key_of("picture", pixels)
        return key, self._found_or(key, lambda: self._picture(pixels))

    def _picture(self, pixels: np.ndarray) -> Entry:
        latents_BNC = self._backbone.encode_images(self._image(pixels))
        return Entry({"latents": latents_BNC[0].float().cpu()})

    def references(
        self, images: Sequence[np.ndarray], masks: Sequence[np.ndarray]
    ) -> tuple[list[str], list[Entry]]:
        """A scene's references, uint8 (h, w, 3) and bool (h, w) each -> keys and entries. Each has
        an entry of its own, or all have one where the backbone encodes them only together."""
        count = len(images)
        sets = [(r,) for r in range(count)] if self._alone else [tuple(range(count))]
        keys, entries = [], []
        for slots in sets if count else ():
            shown, hidden = [images[r] for r in slots], [masks[r] for r in slots]
            key = key_of("reference", count, *shown, *hidden)
            keys.append(key)
            entries.append(
                self._found_or(key, lambda s=shown, h=hidden: self._references(s, h, count))  # type: ignore[misc]
            )
        return keys, entries

    def _references(
        self, images: Sequence[np.ndarray], masks: Sequence[np.ndarray], count: int
    ) -> Entry:
        device = _device(self._backbone)
        references = self._backbone.encode_references(
            [self._image(image) for image in images],
            [torch.from_numpy(np.asarray(mask))[None].to(device).float() for mask in masks],
            **({"count": count} if self._alone else {}),
        )
        tensors: dict[str, Tensor] = {}
        for name in _PER_REFERENCE:
            for slot, tensor_B in enumerate(getattr(references, name)):
                tensors[f"{name}.{slot}"] = tensor_B[0].cpu().contiguous()
        grids = ";".join(f"{rows},{columns}" for rows, columns in references.grids)
        return Entry(tensors, {"grids": grids})

    def prompts(self, texts: Sequence[str]) -> Prompts:
        """As the backbone's `encode_prompts`, on its device."""
        return join_prompts(self.texts(texts), _device(self._backbone))

    def texts(self, texts: Sequence[str]) -> list[Entry]:
        """`embeds` (T, D) and `pooled` (D) of each text; the new ones are encoded in one call."""
        entries = {
            text: entry for text in set(texts) if (entry := self.find(key_of("prompt", text)))
        }
        missing = [text for text in dict.fromkeys(texts) if text not in entries]
        if missing:
            made = self._encode_prompts(missing)
            self.made += len(missing)
            rows = zip(made.embeds_BTD.cpu(), made.pooled_BD.cpu(), strict=True)
            for text, (embeds, pooled) in zip(missing, rows, strict=True):
                # A copy: a row of the call's tensor would keep all of it alive.
                entry = Entry({"embeds": embeds.clone(), "pooled": pooled.clone()})
                entries[text] = self.keep(key_of("prompt", text), entry)
        return [entries[text] for text in texts]

    def _found_or(self, key: str, make: Callable[[], Entry]) -> Entry:
        if (entry := self.find(key)) is not None:
            return entry
        self.made += 1
        return self.keep(key, make())

    def _image(self, pixels: np.ndarray) -> Tensor:
        """uint8 (H, W, 3) -> (1, 3, H, W) in [-1, 1]."""
        whole = torch.from_numpy(np.ascontiguousarray(pixels)).to(_device(self._backbone))
        return whole.permute(2, 0, 1)[None].float() / 127.5 - 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, whatever paints with this backbone finds its prompts here, too: then no text
        encoder is needed to sample pictures of prompts that are known."""
        known: Any = self._backbone
        before = vars(known).get("encode_prompts")
        known.encode_prompts = self.prompts
        try:
            yield
        finally:
            del known.encode_prompts
            if before is not None:
                known.encode_prompts = before


_PER_REFERENCE = ("tokens", "masks", "embeds")


def _device(backbone: Backbone) -> torch.device:
    return next(backbone.transformer.parameters()).device


def join_prompts(entries: Sequence[Entry], device: torch.device | None = None) -> Prompts:
    """Prompts' entries as one batch. UserError where their lengths differ."""
    shapes = {tuple(entry.tensors["embeds"].shape) for entry in entries}
    if len(shapes) > 1:
        raise UserError(
            f"prompts of one batch were encoded to different shapes, {sorted(shapes)}; the "
            "backbone must pad them to one length"
        )
    embeds, pooled = (torch.stack([e.tensors[n] for e in entries]) for n in ("embeds", "pooled"))
    return (
        Prompts(embeds, pooled) if device is None else Prompts(embeds.to(device), pooled.to(device))
    )


def join_references(pairs: Sequence[Sequence[Entry]]) -> References:
    """The references' entries of each of B pairs as one batch on the CPU; their shapes agree."""
    per_pair = [_slots(entries) for entries in pairs]
    fields: dict[str, Any] = {
        name: tuple(
            torch.stack(tensors)
            for tensors in zip(*(slots[name] for slots in per_pair), strict=True)
        )
        for name in _PER_REFERENCE
    }
    return References(grids=_grids(pairs[0]), **fields)


def _slots(entries: Sequence[Entry]) -> dict[str, list[Tensor]]:
    """Name -> a tensor per slot."""
    slots: dict[str, list[Tensor]] = {name: [] for name in _PER_REFERENCE}
    for entry in entries:
        for name, tensors in slots.items():
            keys = (key for key in entry.tensors if key.startswith(f"{name}."))
            tensors += [entry.tensors[key] for key in sorted(keys, key=_slot_of)]
    return slots


def _slot_of(name: str) -> int:
    return int(name.rpartition(".")[2])


def _grids(entries: Sequence[Entry]) -> tuple[tuple[int, int], ...]:
    texts = [text for entry in entries for text in entry.about["grids"].split(";") if text]
    return tuple(
        (int(rows), int(columns)) for rows, _, columns in (t.partition(",") for t in texts)
    )
