"""Probing images of one class each, on one vector per image.

Counts per image: (hit, 1). Shapes: B images, C channels, K classes, L candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import DataError
from .features import Tokens

METRIC = "top1"
UNIT = "% top-1"


def inputs(tokens: Tokens, pool: str) -> Tensor:
    """(B, 1, C): the class token, or the mean patch token."""
    if pool == "class" and tokens.class_token is not None:
        return tokens.class_token[:, None]
    return tokens.patches.flatten(1, 2).mean(1, keepdim=True)


def soft_targets(targets: Tensor | Sequence, grid: tuple[int, int], classes: int) -> Tensor:
    """(B, 1, K): one-hot.

    Raises:
        DataError: If a label is no class.
    """
    labels = torch.as_tensor(targets)
    if bad := [int(label) for label in labels if not 0 <= int(label) < classes]:
        raise DataError(f"the label {bad[0]} lies beyond the {classes} classes 0 to {classes - 1} of the train images.")
    return torch.nn.functional.one_hot(labels.long(), classes)[:, None].float()


def count(scores: Tensor, targets: Tensor | Sequence, grid: tuple[int, int]) -> Tensor:
    """(L, B, 2) from scores (L, B, 1, K): whether the best class is the right one, and 1."""
    hit = (scores[:, :, 0].max(-1).indices == torch.as_tensor(targets)).double()
    return torch.stack([hit, torch.ones_like(hit)], dim=-1)


def score(counts: Tensor) -> Tensor:
    """Accuracy in per cent from summed counts (..., 2)."""
    return 100 * counts[..., 0] / counts[..., 1]
