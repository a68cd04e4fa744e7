"""The files of a checkpoint that decide how text becomes tokens."""

from __future__ import annotations

from pathlib import Path

from focusdpo.data_schemas.errors import UserError


def tokenizer_files(folder: Path, field: str) -> list[Path]:
    """Those that the folder holds, in a fixed order. UserError when none has a vocabulary."""
    whole = ("tokenizer.json", "vocab.txt")
    if not any((folder / name).is_file() for name in whole):
        raise UserError(
            f"{field}: {folder} holds neither {' nor '.join(whole)}; download the folder again "
            "(`focusdpo fetch` with this preset)"
        )
    names = (*whole, "tokenizer_config.json", "special_tokens_map.json")
    return [folder / name for name in names if (folder / name).is_file()]
