"""Pairs of one shape, ready for a forward pass.

Shapes: B pairs, R subjects, N target tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from focusdpo.data_schemas.errors import UserError
from focusdpo.model.backbone import Prompts, References
from focusdpo.model.focus import FocusPriors
from focusdpo.model.patch_quality import PatchQuality


@dataclass(frozen=True)
class PairBatch:
    """Pairs with the same number of subjects, ready for a forward pass."""

    keys: tuple[str, ...]
    win_BNC: Tensor
    lose_BNC: Tensor
    priors: FocusPriors
    """Shared by winner and loser; the detail is the winner's."""
    lose_detail_BN: Tensor
    """The loser's own complexity."""
    prompts: Prompts
    references: References
    quality: PatchQuality | None = None
    """Where the objective weighs by patch quality."""

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: slice) -> PairBatch:
        """Some of the pairs."""
        return PairBatch(
            self.keys[rows],
            self.win_BNC[rows],
            self.lose_BNC[rows],
            FocusPriors(
                self.priors.prior_BN[rows],
                self.priors.subjects_BRN[rows],
                self.priors.detail_BN[rows],
            ),
            self.lose_detail_BN[rows],
            self.prompts.take(rows),
            self.references.take(rows),
            self.quality and PatchQuality(self.quality.win_BN[rows], self.quality.lose_BN[rows]),
        )

    def branch_priors(self, detail_image: Literal["winner", "each"] = "winner") -> FocusPriors:
        """Priors of the 2B images, winners first: `FocusConfig.detail_image` says whose detail."""
        both = self.priors.repeat(2)
        if detail_image == "winner":
            return both
        return replace(both, detail_BN=torch.cat([self.priors.detail_BN, self.lose_detail_BN]))

    def tensors(self) -> list[Tensor]:
        """All tensors, to count bytes."""
        return [
            self.win_BNC,
            self.lose_BNC,
            self.priors.prior_BN,
            self.priors.subjects_BRN,
            self.priors.detail_BN,
            self.lose_detail_BN,
            *self.prompts.tensors(),
            *self.references.tensors(),
            *((self.quality.win_BN, self.quality.lose_BN) if self.quality else ()),
        ]


def join(batches: Sequence[PairBatch]) -> PairBatch:
    """Batches laid end to end. UserError where their shapes differ."""
    first = batches[0]
    shapes = [[tuple(t.shape[1:]) for t in batch.tensors()] for batch in batches]
    for batch, shape in zip(batches, shapes, strict=True):
        if shape != shapes[0]:
            raise UserError(
                f"pairs {first.keys[0]} and {batch.keys[0]} differ in image or reference sizes; "
                "build the dataset with one size"
            )

    def cat(pick: Callable[[PairBatch], Tensor]) -> Tensor:
        return torch.cat([pick(batch) for batch in batches])

    def cat_each(pick: Callable[[References], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        slots = zip(*(pick(batch.references) for batch in batches), strict=True)
        return tuple(torch.cat(parts) for parts in slots)

    return PairBatch(
        sum((batch.keys for batch in batches), ()),
        cat(lambda b: b.win_BNC),
        cat(lambda b: b.lose_BNC),
        FocusPriors(
            cat(lambda b: b.priors.prior_BN),
            cat(lambda b: b.priors.subjects_BRN),
            cat(lambda b: b.priors.detail_BN),
        ),
        cat(lambda b: b.lose_detail_BN),
        Prompts(cat(lambda b: b.prompts.embeds_BTD), cat(lambda b: b.prompts.pooled_BD)),
        References(
            cat_each(lambda r: r.tokens),
            cat_each(lambda r: r.masks),
            first.references.grids,
            cat_each(lambda r: r.embeds),
        ),
        first.quality
        and PatchQuality(
            torch.cat([b.quality.win_BN for b in batches if b.quality]),
            torch.cat([b.quality.lose_BN for b in batches if b.quality]),
        ),
    )
