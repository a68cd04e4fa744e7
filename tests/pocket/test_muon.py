"""The generator's optimizer against what it is made of."""

import pytest
import torch
from torch import nn

from focusdpo.pocket.fitting.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(24, 24), (24, 60), (60, 24)])
def test_orthogonalised_matrices_keep_directions_and_lose_scales(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    flat = orthogonalise(matrices)
    for matrix, result in zip(matrices, flat, strict=True):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        inner = left.T @ result @ right.T
        # Diagonal in the matrix's own singular directions; tiny values need more steps.
        torch.testing.assert_close(inner, torch.diag(inner.diagonal()), atol=1e-3, rtol=0)
        large = values > 0.1 * values.max()
        assert (inner.diagonal()[large] > 0.6).all() and (inner.diagonal() < 1.3).all()


def test_others_get_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 4), nn.Linear(5, 4)
    theirs.load_state_dict(ours.state_dict())
    first = Muon([], ours.parameters(), lr=1e-2, weight_decay=0.1)
    second = torch.optim.AdamW(theirs.parameters(), 1e-2, (0.9, 0.99), 1e-8, 0.1)
    for step in range(5):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        for model, optimizer in ((ours, first), (theirs, second)):
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_update_has_the_size_of_an_adamw_step() -> None:
    """Root mean square 0.2 lr, whatever the gradient's scale (arXiv 2502.16982, 2.2)."""
    for scale in (1e-4, 1e4):
        weight = nn.Parameter(torch.zeros(64, 128))
        optimizer = Muon([weight], [], lr=1e-2, weight_decay=0.0)
        weight.grad = torch.randn(64, 128, generator=torch.Generator().manual_seed(1)) * scale
        optimizer.step()
        size = float(weight.detach().square().mean().sqrt())
        assert size == pytest.approx(0.2 * 1e-2, rel=0.25)
