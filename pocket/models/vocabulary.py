"""Words of the pocket world and the prompt encoder: embeddings learned with the generator.

Letters: B prompts, T = LENGTH tokens, D width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from focusdpo.data_schemas.prompts import NUMBERS
from focusdpo.pocket.classes import BACKGROUNDS, class_names
from focusdpo.pocket.world.grammar import plurals

LENGTH = 12
"""The longest caption of four different subjects takes ten."""
PAD, UNKNOWN, OBJECT = "<pad>", "<unk>", "object"
PLURAL = "<plural>"
"""Follows the class word of a plural."""
_GRAMMAR = ("and", "on", ",", *NUMBERS.values(), PLURAL, "with", "together", "picture")
_SILENT = ("a", "an", "the", "of", "it", ":")
"""Said in captions and left out: they tell nothing."""


@cache
def words() -> tuple[str, ...]:
    """All tokens in the order of their ids; a class name is one token, spaces and all."""
    return (PAD, UNKNOWN, OBJECT, *_GRAMMAR, *class_names(), *BACKGROUNDS)


@cache
def _lookup() -> tuple[dict[tuple[str, ...], tuple[int, ...]], int]:
    """Parts of a prompt -> their ids, and how many parts the longest has."""
    index = {word: i for i, word in enumerate(words())}
    table: dict[tuple[str, ...], tuple[int, ...]] = {
        tuple(word.split()): (i,) for word, i in index.items() if i > 1
    }
    many = {**plurals(), "objects": OBJECT}
    table |= {tuple(form.split()): (index[word], index[PLURAL]) for form, word in many.items()}
    table |= {(word,): () for word in _SILENT}
    return table, max(len(key) for key in table)


@cache
def read(prompt: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ids of a whole prompt, the longest matching part first, and the words that the world does not
    know, which become <unk>."""
    table, longest = _lookup()
    parts = re.findall(r"[,:]|[^\s,:.]+", prompt.lower())
    ids: list[int] = []
    unknown: list[str] = []
    at = 0
    while at < len(parts):
        for length in range(min(longest, len(parts) - at), 0, -1):
            match = table.get(tuple(parts[at : at + length]))
            if match is not None:
                break
        else:
            match = (1,)
            unknown.append(parts[at])
        ids += match
        at += length
    return tuple(ids), tuple(unknown)


def token_ids(prompt: str) -> tuple[int, ...]:
    """Ids of a prompt; what exceeds LENGTH is cut, what lacks is padded."""
    ids, _ = read(prompt)
    return (ids + (0,) * LENGTH)[:LENGTH]


def tokenize(prompts: Sequence[str]) -> Tensor:
    """(B, T) int64."""
    return torch.tensor([token_ids(prompt) for prompt in prompts], dtype=torch.long)


class PromptEncoder(nn.Module):
    """Word and position embeddings; the pooled prompt is their mean over words."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(LENGTH, width)
        nn.init.normal_(self.word.weight, std=0.7)
        nn.init.normal_(self.position.weight, std=0.3)

    def forward(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, T, D) and pooled (B, D)."""
        embeds = self.word(ids_BT) + self.position.weight
        real = (ids_BT > 0).float()[..., None]
        pooled = (embeds * real).sum(1) / real.sum(1).clamp_min(1)
        return embeds, pooled
