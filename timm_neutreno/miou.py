"""Mean intersection over union of a data set, from counts that add up over images and processes.

Of every class the pixels that are hit, predicted and labelled: all that mIoU needs of the confusion matrix. Void pixels
do not count. mIoU is that of the summed counts, over the data set and not per image, over classes that occur in mask or
prediction.

Shapes: K classes; counts (..., 3 K), hit, predicted, labelled.
"""

from __future__ import annotations

import torch
from torch import Tensor


def count(predicted: Tensor, mask: Tensor, classes: int, void: int) -> Tensor:
    """The counts of one image, (..., 3 K) float64.

    Args:
        predicted: Class of every pixel, (..., H, W); in front: several predictions for the same mask.
        mask: True class of every pixel, or `void`, (H, W).
        classes: K.
        void: What a pixel has that does not count.
    """
    # void is counted as label 0 and left out: picking the other pixels first takes ten times as long
    label = ((mask + 1).where(mask != void, 0) * classes).int().flatten()
    each = (label + predicted.int().flatten(-2)).view(-1, label.numel())
    confusion = torch.stack([torch.bincount(pairs, minlength=(classes + 1) * classes) for pairs in each])
    confusion = confusion.view(*predicted.shape[:-2], classes + 1, classes)[..., 1:, :]
    return torch.cat([confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-2), confusion.sum(-1)], dim=-1).double()


def iou(counts: Tensor) -> Tensor:
    """(..., K): intersection over union of every class in [0, 1], NaN where it neither occurs nor is predicted."""
    hit, predicted, labelled = counts.unflatten(-1, (3, -1)).unbind(-2)
    return hit / (predicted + labelled - hit)


def miou(counts: Tensor) -> Tensor:
    """(...): the mean over classes, in per cent; 0 if no class occurs."""
    return 100 * iou(counts).nanmean(-1).nan_to_num(0.0)


def pixel_accuracy(counts: Tensor) -> Tensor:
    """(...): labelled pixels whose class is right, in per cent."""
    hit, _, labelled = counts.unflatten(-1, (3, -1)).unbind(-2)
    return 100 * hit.sum(-1) / labelled.sum(-1).clamp(min=1)


def influence(counts: Tensor) -> Tensor:
    """What each image adds to the mIoU of them all, to first order: (n, 3 K) -> (n,), in points; they sum to 0.

    d mIoU = mean_k (d hit_k - IoU_k d union_k) / union_k. The sum of squares of the differences of two models' values
    is the variance of their difference in mIoU over images, the same for both (the infinitesimal jackknife).
    """
    hit, predicted, labelled = counts.unflatten(-1, (3, -1)).unbind(-2)
    union = predicted + labelled - hit
    total = union.sum(0)
    occurs = total > 0
    share = iou(counts.sum(0))
    each = (hit - share * union)[:, occurs] / total[occurs]
    return 100 * each.mean(-1) if occurs.any() else torch.zeros(len(counts), dtype=counts.dtype)
