"""A diffusers pipeline's folder: whether its models are whole. Headers and JSON alone are read;
torch is imported only to learn which tensors the models want."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.checkpoints import (
    digest_files,
    read_headers,
    read_json,
    require_class,
    require_tensors,
    weight_files,
)
from focusdpo.data_schemas.errors import UserError

_VARIANT = re.compile(r"\.(\w+)(-\d{5}-of-\d{5})?\.safetensors$")
_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
_SHARED = ("position_ids", "encoder.embed_tokens.weight")
"""A buffer that is no longer stored, and the second name of T5's one embedding."""


def part_files(folder: Path, field: str, variant: str | None = None) -> list[Path]:
    """The weight files of a model's folder: those of a variant ("fp16": *.fp16.safetensors), or
    those with plain names. UserError where there are none, with the other names that are there."""
    files = weight_files(folder, field)
    names = [_VARIANT.search(file.name) for file in files]
    variants = [None if name is None else name.group(1) for name in names]
    wanted = [file for file, found in zip(files, variants, strict=True) if found == variant]
    if not wanted:
        kind = "plain *.safetensors" if variant is None else f"*.{variant}.safetensors"
        raise UserError(
            f"{field}: {folder} holds no {kind}, but {files[0].name}; set variant to what is there "
            "(null: plain names), or download the other files"
        )
    return wanted


def check_part(folder: Path, wanted: str, field: str, variant: str | None = None) -> str:
    """A model's class and tensors in a line. UserError for another class, missing files, a pickle,
    a file that was cut off, and tensors that are missing, unexpected or of another shape."""
    require_class(folder, wanted, field)
    files = part_files(folder, field, variant)
    found = read_headers(files, field)
    shapes = _shapes(folder, wanted, field)
    is_encoder = wanted in _ENCODERS
    names, expected = (_plain(found), _plain(shapes)) if is_encoder else (dict(found), shapes)
    what = f"the {wanted} that {folder}/config.json describes"
    require_tensors(names, expected, field, what, exact=not is_encoder)
    weights = sum(prod(about.shape) for about in found.values())
    return f"{wanted}, {weights / 1e6:,.1f} M weights in {len(files)} files"


def folder_digest(
    folder: Path, parts: Mapping[str, str], settings: str, field: str, variant: str | None = None
) -> str:
    """Hash of the weights of `parts`, of all configs and tokenisers, and of the settings."""
    files = [file for name in parts for file in part_files(folder / name, field, variant)]
    small = sorted(
        file
        for pattern in ("*/config.json", "scheduler/*.json", "tokenizer*/*")
        for file in folder.glob(pattern)
        if file.is_file()
    )
    texts = [digest_files([f], f.relative_to(folder).as_posix()) for f in small]
    return digest_files(files, settings, *texts)


def weight_bytes(
    folder: Path, parts: Mapping[str, str], width: int, field: str, variant: str | None = None
) -> int:
    """Bytes of the weights of `parts` when each takes `width`."""
    return width * sum(
        prod(about.shape)
        for name in parts
        for about in read_headers(part_files(folder / name, field, variant), field).values()
    )


def _plain(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Without what differs between versions of transformers, CLIP's prefix among it."""
    return {
        name.removeprefix("text_model."): value
        for name, value in tensors.items()
        if not name.endswith(_SHARED)
    }


def _shapes(folder: Path, kind: str, field: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors by its config, without memory for weights."""
    import diffusers
    import torch
    import transformers

    about = read_json(folder / "config.json", field)
    try:
        with torch.device("meta"):
            if kind in _ENCODERS:
                model_class = getattr(transformers, kind)
                model = model_class(model_class.config_class.from_dict(about))
            else:
                model = getattr(diffusers, kind).from_config(about)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{field}: {folder}/config.json describes no {kind}: {error}") from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
