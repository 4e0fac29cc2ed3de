"""Probing patch tokens for segmentation, scored at the resolution of the mask.

Each patch is a row; its target is the share of every class among its pixels, void left out, and a patch without a
labelled pixel is no row. Scores of the patches are upsampled bilinearly to the mask, the best class of every pixel
wins, and void pixels do not count (pixels.py). Counts per image and mIoU are those of miou.py.

Shapes: B images, C channels, K classes, L candidates, (h, w) the patch grid, (H, W) a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import miou
from . import pixels
from .errors import DataError
from .features import Tokens

METRIC = "miou"
UNIT = "mIoU"
VOID = -1  # in targets: a pixel that does not count


def inputs(tokens: Tokens, pool: str) -> Tensor:
    """(B, h w, C): the patch tokens."""
    return tokens.patches.flatten(1, 2)


def soft_targets(targets: Tensor | Sequence[Tensor], grid: tuple[int, int], classes: int) -> Tensor:
    """(B, h w, K): the share of each class among a patch's labelled pixels; zeros where none is labelled.

    A pixel belongs to the patch in which its centre lies.

    Raises:
        DataError: If a label is no class.
    """
    return torch.stack([_shares(mask, grid, classes) for mask in targets])


def _shares(mask: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    check_mask(mask, classes)
    (height, width), (rows, columns) = mask.shape, grid
    row = ((torch.arange(height) + 0.5) * rows / height).int()
    column = ((torch.arange(width) + 0.5) * columns / width).int()
    bins = (row[:, None] * columns + column) * (classes + 1) + mask.int() + 1  # the first bin of a patch is void
    counts = torch.bincount(bins.flatten(), minlength=rows * columns * (classes + 1))
    counts = counts.view(rows * columns, classes + 1)[:, 1:].float()
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


def check_mask(mask: Tensor, classes: int) -> None:
    """Raises DataError unless the mask is (H, W) of class indices and VOID."""
    if mask.ndim != 2 or mask.is_floating_point():
        raise DataError(
            f"a mask must be integers of shape (height, width), got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    low, high = int(mask.min()), int(mask.max())
    if low < VOID or high >= classes:
        raise DataError(
            f"the label {low if low < VOID else high} lies beyond the {classes} classes 0 to {classes - 1} of the "
            f"train masks; {VOID} is void."
        )


def count(scores: Tensor, targets: Tensor | Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """(L, B, 3 K) from scores (L, B, h w, K) and masks (H, W)."""
    counts = []
    for image, mask in enumerate(targets):
        check_mask(mask, scores.shape[-1])
        counts.append(pixels.count(scores[:, image].transpose(1, 2).unflatten(2, grid), mask))
    return torch.stack(counts, dim=1)


def score(counts: Tensor) -> Tensor:
    """mIoU in per cent from summed counts (..., 3 K)."""
    return miou.miou(counts)
