"""Muon for hidden matrices, AdamW for all else, in one optimizer. Unlike torch.optim.Muon it
orthogonalises in float32 where asked to: bfloat16 is very slow on CPUs without AVX512-BF16.

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the
update's scale is that of "Muon is Scalable for LLM Training", arXiv 2502.16982, section 2.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Coefficients of the quintic iteration in the source.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(
    matrices_KMN: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Roughly the nearest semi-orthogonal matrices: singular values come to about 0.7 to 1.2.
    `dtype` is what it computes in; the result has the matrices' own."""
    tall = matrices_KMN.shape[-2] > matrices_KMN.shape[-1]
    x = matrices_KMN.mT if tall else matrices_KMN
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT  # baddbmm: sums within the products, not as passes over memory
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x.mT if tall else x).to(matrices_KMN.dtype)


class Muon(torch.optim.Optimizer):
    """`hidden` are matrices: their momentum is orthogonalised, at a scale where an AdamW learning
    rate fits, computed in `dtype`. `others` get AdamW."""

    def __init__(
        self,
        hidden: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._dtype = dtype
        groups: list[dict[str, Any]] = [
            {"params": list(hidden), "orthogonal": True},
            {"params": list(others), "orthogonal": False},
        ]
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "betas": betas,
            "eps": 1e-8,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            if group["orthogonal"]:
                self._muon(parameters, group)
            else:
                self._adam(parameters, group)

    def _muon(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            shapes.setdefault(parameter.shape, []).append(parameter)
        for shape, alike in shapes.items():
            average = [self._state(p, "exp_avg") for p in alike]
            gradients = [p.grad for p in alike if p.grad is not None]
            torch._foreach_lerp_(average, gradients, 1 - group["momentum"])
            nesterov = torch.stack(gradients).lerp_(torch.stack(average), group["momentum"])
            scale = 0.2 * max(shape) ** 0.5 * group["lr"]
            updates = orthogonalise(nesterov, dtype=self._dtype) * scale
            torch._foreach_sub_([p.data for p in alike], list(updates.unbind()))

    def _adam(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        first = [self._state(p, "exp_avg") for p in parameters]
        second = [self._state(p, "exp_avg_sq") for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        low, high = group["betas"]
        torch._foreach_lerp_(first, gradients, 1 - low)
        torch._foreach_mul_(second, high)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - high)
        for parameter, mean, square in zip(parameters, first, second, strict=True):
            step = self._state(parameter, "step")
            step += 1
            count = step.item()
            size = group["lr"] / (1 - low**count)
            spread = (square / (1 - high**count)).sqrt_().add_(group["eps"])
            parameter.addcdiv_(mean, spread, value=-size)

    def _state(self, parameter: nn.Parameter, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros(()) if name == "step" else torch.zeros_like(parameter)
        value: Tensor = state[name]
        return value
