"""k-NN probe: the mean target of the k train rows with the highest cosine similarity.

Shapes: R rows, C features, K classes, L candidates (here: numbers of neighbours).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .errors import DataError

NEIGHBORS = (1, 3, 5, 10, 20)
PATCHES = 20_000  # train patches that are kept; of images all are
BLOCK = 256  # rows compared at once
GROUP = 25  # train rows that are searched together


class Bank:
    """Train rows for k-NN: all of them, or `size` drawn at random, whatever the number that passes by.

    Every row gets a random key, and the rows with the smallest keys stay. The keys depend on the seed and the order of
    the rows alone, so that every model keeps the same rows.

    Args:
        size: Rows to keep; None for all.
        seed: Of the keys.
    """

    def __init__(self, size: int | None = None, seed: int = 0):
        self.size = size
        self.random = torch.Generator().manual_seed(seed)
        self.last = torch.tensor(torch.inf)  # the largest key that stays
        self.keys: list[Tensor] = []
        self.x: list[Tensor] = []
        self.y: list[Tensor] = []

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows: features (R, C) and targets (R, K)."""
        keys = torch.rand(len(x), generator=self.random, dtype=torch.float64)
        if self.size is not None and self.rows >= self.size:  # only rows that may stay
            stays = keys < self.last
            keys, x, y = keys[stays], x[stays], y[stays]
        for rows, new in ((self.keys, keys), (self.x, normalize(x.float(), dim=1)), (self.y, y.float())):
            rows.append(new)
        if self.size is not None and self.rows >= 1.25 * self.size:
            self._drop()

    @property
    def rows(self) -> int:
        """How many are held at the moment."""
        return sum(map(len, self.keys))

    def _drop(self) -> None:
        keys = torch.cat(self.keys)
        kept = keys.argsort()[: self.size].sort().values  # in the order in which they came
        self.x, self.y, self.keys = [torch.cat(self.x)[kept]], [torch.cat(self.y)[kept]], [keys[kept]]
        self.last = self.keys[0].max()

    def solve(self, neighbors: Sequence[int] = NEIGHBORS) -> Neighbors:
        """The probe for every number of neighbours.

        Raises:
            DataError: If there are fewer train rows than neighbours.
        """
        if self.size is not None and self.rows > self.size:
            self._drop()
        if self.rows < max(neighbors):
            raise DataError(
                f"there are {self.rows} labelled train rows, fewer than {max(neighbors)} neighbours: ask for fewer "
                "neighbours, or give more images."
            )
        return Neighbors(torch.cat(self.x), torch.cat(self.y), tuple(neighbors))


class Neighbors:
    """k-NN probes of several numbers of neighbours.

    Args:
        x: (rows, C) float32 of length one.
        y: (rows, K) float32.
        neighbors: The numbers.
    """

    def __init__(self, x: Tensor, y: Tensor, neighbors: tuple[int, ...]):
        self.x, self.y, self.neighbors = x, y, neighbors

    def __call__(self, x: Tensor) -> Tensor:
        """Scores (L, R, K) of rows (R, C): means of targets."""
        parts = []
        for queries in normalize(x.float(), dim=1).split(BLOCK):
            nearest = _highest(queries @ self.x.T, max(self.neighbors))
            sums = self.y[nearest].cumsum(1)  # (R, k, K)
            parts.append(torch.stack([sums[:, k - 1] / k for k in self.neighbors]))
        return torch.cat(parts, dim=1)

    def choose(self, index: int) -> Neighbors:
        """The probe with only this candidate."""
        return Neighbors(self.x, self.y, self.neighbors[index : index + 1])


def _highest(similarity: Tensor, k: int) -> Tensor:
    """The columns of the k highest values of every row: (R, N) -> (R, k).

    They lie in the k groups of columns whose highest values are highest, so that topk, which is slow for all columns,
    need only search these.
    """
    groups = similarity.shape[1] // GROUP
    if groups <= k:
        return similarity.topk(k, dim=1).indices
    grouped = similarity[:, : groups * GROUP].unflatten(1, (GROUP, groups))  # a group's columns lie `groups` apart
    best = grouped.amax(1).topk(k, dim=1).indices
    columns = (best[:, None] + torch.arange(0, groups * GROUP, groups)[:, None]).flatten(1)
    rest = torch.arange(groups * GROUP, similarity.shape[1]).expand(len(similarity), -1)
    columns = torch.cat([columns, rest], dim=1)
    return columns.gather(1, similarity.gather(1, columns).topk(k, dim=1).indices)
