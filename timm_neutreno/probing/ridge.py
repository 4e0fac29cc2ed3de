"""Linear probe: ridge regression in closed form on targets in [0, 1], from statistics that are summed batch by batch.

    min_W,b  |Z W + b - Y|^2 + strength * n * |W|^2        Z: features at mean 0, variance 1 over the n train rows

Memory is O(C (C + K)) however many rows there are. The sums are of deviations from the running mean (Chan, Golub and
LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979), so that a large mean does
not swallow a small variance. One eigendecomposition serves all strengths.

Shapes: R rows, C features, K classes, L candidates (here: ridge strengths).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import DataError

STRENGTHS = tuple(10.0**exponent for exponent in range(-9, 2))


class Ridge:
    """Sufficient statistics of a ridge regression: count, means, and sums of products of deviations, in float64."""

    def __init__(self) -> None:
        self.rows = 0
        self.mean = self.products = torch.zeros(())

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows: features (R, C) and targets (R, K)."""
        if not len(x):
            return
        self.features = x.shape[1]
        batch = torch.cat([x, y], dim=1).double()
        mean = batch.mean(0)
        deviations = batch - mean
        products = deviations[:, : self.features].T @ deviations
        if not self.rows:
            self.rows, self.mean, self.products = len(x), mean, products
            return
        step, total = mean - self.mean, self.rows + len(x)
        self.products += products + torch.outer(step[: self.features], step) * (self.rows * len(x) / total)
        self.mean += step * (len(x) / total)
        self.rows = total

    def solve(self, strengths: Sequence[float] = STRENGTHS) -> Linear:
        """The weights for every strength.

        Raises:
            DataError: If there are no rows.
        """
        if not self.rows:
            raise DataError("there is no labelled train row to fit a linear probe on.")
        covariance = self.products[:, : self.features] / self.rows
        scale = covariance.diagonal().sqrt()
        scale = scale.where(
            scale > 1e-12 * scale.max().clamp(min=1e-300), torch.inf
        )  # a constant feature gets no weight
        covariance = covariance / torch.outer(scale, scale)
        target = self.products[:, self.features :] / self.rows / scale[:, None]
        values, vectors = torch.linalg.eigh(covariance)
        rotated = vectors.T @ target
        solved = torch.stack([vectors @ (rotated / (values.clamp(min=0) + s)[:, None]) for s in strengths])
        weights = solved / scale[:, None]
        bias = self.mean[self.features :] - self.mean[: self.features] @ weights
        return Linear(weights, bias)


class Linear:
    """Linear probes of several candidates.

    Args:
        weights: (L, C, K), float64, for features as they come: the standardisation is folded in.
        bias: (L, K).
    """

    def __init__(self, weights: Tensor, bias: Tensor):
        self.weights, self.bias = weights, bias

    def __call__(self, x: Tensor) -> Tensor:
        """Scores (L, R, K) of rows (R, C)."""
        return x.double() @ self.weights + self.bias[:, None]

    def choose(self, index: int) -> Linear:
        """The probe with only this candidate."""
        return Linear(self.weights[index : index + 1], self.bias[index : index + 1])
