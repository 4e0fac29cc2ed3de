"""Paired bootstrap over images: how sure a difference of two models on the same images is.

Images are drawn with replacement, the same draw for both models, and the score of each draw is that of its summed
counts (so mIoU stays that of a data set). The interval is the percentile interval (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, ch. 13). It takes images as independent: frames of one video are not, and then it
is too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

RESAMPLES = 10_000
DRAWS_AT_ONCE = 2_000_000  # images drawn at once: bounds the memory


class Difference(NamedTuple):
    """A difference of scores on the test images, with its interval."""

    value: float
    low: float
    high: float


def paired_differences(
    reference: Tensor,
    others: Sequence[Tensor],
    score: Callable[[Tensor], Tensor],
    levels: Sequence[float] = (0.95,),
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[list[Difference]]:
    """How much others score above the reference.

    Args:
        reference: Counts of each image, (n, S), float64.
        others: Counts of the same images by other models.
        score: Summed counts (..., S) -> scores (...).
        levels: Of the intervals, between 0 and 1.
        resamples: Number of draws; the same draws for all.
        seed: Of the draws.

    Returns:
        For each of the others a difference for each level.
    """
    images = len(reference)
    random = torch.Generator().manual_seed(seed)
    at_once = max(1, DRAWS_AT_ONCE // images)
    draws: list[list[Tensor]] = [[] for _ in others]
    for start in range(0, resamples, at_once):
        number = min(at_once, resamples - start)
        picked = torch.randint(images, (number, images), generator=random)
        weights = torch.zeros(number, images, dtype=torch.float64)
        weights.scatter_add_(1, picked, torch.ones_like(weights))
        base = score(weights @ reference)
        for drawn, other in zip(draws, others, strict=True):
            drawn.append(score(weights @ other) - base)
    results = []
    for drawn, other in zip(draws, others, strict=True):
        value = float(score(other.sum(0)) - score(reference.sum(0)))
        every = torch.cat(drawn)
        ends = [torch.quantile(every, torch.tensor([0.5 - v / 2, 0.5 + v / 2], dtype=torch.float64)) for v in levels]
        results.append([Difference(value, float(low), float(high)) for low, high in ends])
    return results
