"""CLIP and T5 as FLUX.1 reads prompts, each prompt encoded once.

Letters: B prompts, T text tokens (padded), D width of T5's embeddings.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import Prompts
from focusdpo.model.checkpoint import make_folder, write_file

log = logging.getLogger(__name__)


@contextmanager
def lent(device: str | torch.device, *modules: nn.Module, back: bool = True) -> Iterator[None]:
    """Inside, the modules are on `device`; with `back` they go home to the CPU afterwards."""
    for module in modules:
        module.to(device)
    try:
        yield
    finally:
        if back:
            for module in modules:
                module.to("cpu")
            if torch.device(device).type == "cuda":
                torch.cuda.empty_cache()


class FluxPrompts:
    """Texts -> CLIP's pooled vector and T5's embeddings, as `FluxPipeline.encode_prompt`.

    Prompts are encoded one by one, so that an embedding depends on its own text alone, and kept:
    the newest `cache_mib` in main memory and, with `folder`, all of them in files that are named by
    a digest of the text and `fingerprint` (of encoders, tokenisers and settings). With `offload`
    the encoders wait on the CPU."""

    def __init__(
        self,
        clip: nn.Module,
        clip_tokenizer: Any,
        t5: nn.Module,
        t5_tokenizer: Any,
        *,
        device: str,
        max_tokens: int = 512,
        offload: bool = False,
        fingerprint: str = "",
        cache_mib: int = 2048,
        folder: Path | None = None,
    ) -> None:
        if folder is not None and not fingerprint:
            raise ValueError("a cache folder needs the encoders' fingerprint")
        self._clip, self._clip_tokenizer = clip, clip_tokenizer
        self._t5, self._t5_tokenizer = t5, t5_tokenizer
        self._device, self._max_tokens, self._offload = device, max_tokens, offload
        self._fingerprint, self._folder = fingerprint, folder
        self._room = cache_mib * 2**20
        self._kept: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        if folder is not None:
            make_folder(folder)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Prompts:
        """Embeddings (B, T, D) and pooled (B, P) on the device, in the encoders' own type."""
        found = {text: known for text in set(prompts) if (known := self._known(text)) is not None}
        missing = [text for text in dict.fromkeys(prompts) if text not in found]
        if missing:
            with lent(self._device, self._clip, self._t5, back=self._offload):
                found |= {text: self._encode(text) for text in missing}
            for text in missing:
                self._store(text, *found[text])
        embeds, pooled = zip(*(found[text] for text in prompts), strict=True)
        return Prompts(torch.cat(embeds).to(self._device), torch.cat(pooled).to(self._device))

    def _encode(self, text: str) -> tuple[Tensor, Tensor]:
        """One prompt's (1, T, D) and (1, P), on the CPU."""
        ids = self._ids(self._t5_tokenizer, text, self._max_tokens, "T5")
        embeds: Tensor = self._t5(ids, output_hidden_states=False)[0]
        ids = self._ids(self._clip_tokenizer, text, self._clip_tokenizer.model_max_length, "CLIP")
        pooled: Tensor = self._clip(ids, output_hidden_states=False).pooler_output
        return embeds.cpu(), pooled.cpu()

    def _ids(self, tokenizer: Any, text: str, length: int, name: str) -> Tensor:
        whole = tokenizer([text], padding="longest", return_tensors="pt").input_ids
        if whole.shape[1] > length:
            log.warning("%s reads the first %d of %d tokens: %s", name, length, len(whole[0]), text)
        ids: Tensor = tokenizer(
            [text], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return ids.to(self._device)

    def _known(self, text: str) -> tuple[Tensor, Tensor] | None:
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._kept[text]
        path = self._file(text)
        if path is None or not path.is_file():
            return None
        pair = _read(path)
        self._keep(text, *pair)
        return pair

    def _store(self, text: str, embeds: Tensor, pooled: Tensor) -> None:
        from safetensors.torch import save

        self._keep(text, embeds, pooled)
        path = self._file(text)
        if path is not None:
            write_file(path, save({"embeds": embeds.contiguous(), "pooled": pooled.contiguous()}))

    def _keep(self, text: str, embeds: Tensor, pooled: Tensor) -> None:
        self._kept[text] = embeds, pooled
        self._room -= embeds.nbytes + pooled.nbytes
        while self._room < 0 and self._kept:
            _, (embeds, pooled) = self._kept.popitem(last=False)
            self._room += embeds.nbytes + pooled.nbytes

    def _file(self, text: str) -> Path | None:
        if self._folder is None:
            return None
        name = hashlib.blake2b(f"{self._fingerprint}\0{text}".encode(), digest_size=16).hexdigest()
        return self._folder / f"{name}.safetensors"


def _read(path: Path) -> tuple[Tensor, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(path.read_bytes())
        return tensors["embeds"], tensors["pooled"]
    except (SafetensorError, KeyError) as error:
        raise UserError(
            f"{path}: a damaged prompt embedding ({error}); remove the file, it is made anew"
        ) from error
