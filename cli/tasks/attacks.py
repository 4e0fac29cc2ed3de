"""Images changed within a budget so that the loss grows: FGSM and PGD, white-box, in the maximum norm.

    x' = x + budget * sign(grad_x loss)                           FGSM: Goodfellow et al., ICLR 2015, arXiv 1412.6572
    x_0 = x + uniform(-budget, budget), x_{i+1} = clip(x_i + step * sign(grad loss)), step = 2.5 * budget / steps
                                                                  PGD: Madry et al., ICLR 2018, arXiv 1706.06083

Pixels and budgets are in [0, 1]. Such attacks find an upper bound of the accuracy under attack, and prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS = 10  # of PGD

Logits = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in [0, 1] -> (B, classes)


def fgsm(logits: Logits, x: Tensor, target: Tensor, budget: float) -> Tensor:
    """One step of the whole budget.

    Args:
        logits: The model, from pixels on.
        x: (B, 3, H, W) in [0, 1].
        target: Right classes, (B,).
        budget: Largest change of a pixel.
    """
    return (x + budget * _ascent(logits, x, target)).clamp(0, 1)


def pgd(
    logits: Logits, x: Tensor, target: Tensor, budget: float, steps: int = STEPS, seed: int = 0
) -> Tensor:  # fmt: skip
    """Many small steps from a random start, each followed by a projection into the budget.

    Args:
        logits: The model, from pixels on.
        x: (B, 3, H, W) in [0, 1].
        target: Right classes, (B,).
        budget: Largest change of a pixel.
        steps: Forward and backward passes.
        seed: Of the start.
    """
    start = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    found = (x + budget * (2 * start - 1)).clamp(0, 1)
    for _ in range(steps):
        found = found + 2.5 * budget / steps * _ascent(logits, found, target)
        found = torch.minimum(torch.maximum(found, x - budget), x + budget).clamp(0, 1)
    return found


def _ascent(logits: Logits, x: Tensor, target: Tensor) -> Tensor:
    """Signs of the loss's gradient, pixel by pixel."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        loss = F.cross_entropy(logits(x).float(), target, reduction="sum")
        return torch.autograd.grad(loss, x)[0].sign()


ATTACKS = {"fgsm": fgsm, "pgd": pgd}
BUDGETS = (1, 4)  # in 1/255
