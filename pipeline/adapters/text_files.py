"""The files of a checkpoint that decide how text becomes tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def require_bert_tokens(tokenizer: Any, folder: Path, field: str) -> None:
    """UserError unless the tokens that part Grounding DINO's phrases have the ids it was trained
    with; a damaged vocabulary is read without complaint and would find nothing."""
    wanted = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in wanted}
    if found != wanted:
        raise UserError(
            f"{field}: the tokenizer in {folder} is not that of bert-base-uncased: it numbers "
            f"{found}, expected {wanted}; download its files again"
        )
