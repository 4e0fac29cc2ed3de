"""Probing patch tokens for segmentation, scored at the resolution of the mask.

Each patch is a row; its target is the share of every class among its pixels, void left out, and a patch without a
labelled pixel is no row. Scores of the patches are upsampled bilinearly to the mask (align_corners=False), the best
class wins, void pixels do not count.

Counts per image and mIoU are those of miou.py.

Shapes: B images, C channels, K classes, L candidates, (h, w) the patch grid, (H, W) a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .. import miou
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
    candidates, _, _, classes = scores.shape
    counts = []
    for image, mask in enumerate(targets):
        check_mask(mask, classes)
        maps = scores[:, image].transpose(1, 2).reshape(candidates, classes, *grid)
        best = [_best(each, (mask.shape[0], mask.shape[1])) for each in maps]
        counts.append(miou.count(torch.stack(best), mask, classes, VOID))
    return torch.stack(counts, dim=1)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, align_corners=False: (..., h, w) -> (..., H, W).

    As two products with the weights of either axis: the same sums as torch's interpolate, in a third of its time here.
    """
    rows, columns = (
        interpolate(torch.eye(old)[None], size=new, mode="linear", align_corners=False)[0]
        for old, new in zip(maps.shape[-2:], size, strict=True)
    )
    return rows.T @ (maps @ columns)


def _best(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W): the best class of every pixel; not by argmax, which takes ten times as long here."""
    return upsample(maps.float(), size).max(0).indices.int()


def score(counts: Tensor) -> Tensor:
    """mIoU in per cent from summed counts (..., 3 K)."""
    return miou.miou(counts)
