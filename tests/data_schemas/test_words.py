"""English in texts that count."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from focusdpo.data_schemas.errors import counted

REPOSITORY = Path(__file__).parents[2]
NOUNS = "pair|shard|subject|partition|step|scene|decision|picture|artefact|file|cell|place|row"


def test_numbers() -> None:
    assert [counted(count, "shard") for count in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]
    assert counted(1, "box") == "1 box" and counted(3, "box") == "3 boxes"
    assert counted(2, "entry") == "2 entries" and counted(2, "day") == "2 days"


@pytest.mark.parametrize("folder", ["flows/commands", "flows/build", "flows/train"])
def test_what_commands_say_counts_by_the_helper(folder: str) -> None:
    """No text says "1 shards": a number in braces is not followed by a plural. Columns of a table
    (a width after the colon) are read as columns."""
    fixed = re.compile(rf"\{{[^{{}}:]*\}} (?:{NOUNS})s\b")
    wrong = [
        f"{file.name}: {found[0]}"
        for file in sorted((REPOSITORY / folder).glob("*.py"))
        for found in fixed.finditer(file.read_text())
        if "max(" not in found[0]
    ]
    assert wrong == []
