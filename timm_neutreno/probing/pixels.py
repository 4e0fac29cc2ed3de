"""Which class wins how many pixels of a mask, when the scores of patches are upsampled to it.

Upsampling is bilinear (align_corners=False), and the best class of a pixel wins. The pixels between four neighbouring
patch centres are a cell. Their scores are weighted means of those at the four, so a class that is above another at none
of the four is above it nowhere between them. In most cells that leaves one class, and their labels are counted at once;
in the others only the classes that are left are upsampled. The counts are those of interpolate and argmax.

Shapes: L candidates, K classes, (h, w) patches, (H, W) pixels; a candidate has (h + 1) (w + 1) cells, the outer ones
between a patch centre and the border; N cells of all candidates, n of them at once; P pixels of the largest cell.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

AT_ONCE = 2**19  # numbers of one kind that are held at once: few enough for the processor's cache


def count(maps: Tensor, mask: Tensor) -> Tensor:
    """Hit, predicted and labelled pixels of every class, (L, 3 K) float64, as miou.py has them.

    Args:
        maps: Scores of the patches, (L, K, h, w).
        mask: Class of every pixel, or -1 where it does not count, (H, W).
    """
    candidates, classes, height, width = maps.shape
    (rows, down), (columns, right) = _cells(mask.shape[0], height), _cells(mask.shape[1], width)
    labels = _by_cell(mask.int() + 1, rows, columns)  # 0 does not count
    corners = _corners(maps.float())
    best = corners.sum(0).max(0).indices  # (N,): never left out
    above = corners - corners.gather(1, best.expand(4, 1, -1))
    rivals = (above > 0).any(0)  # (K, N)
    number = rivals.sum(0)
    cell = torch.arange(len(labels)).repeat(candidates)  # (N,): which of its candidate's
    first = torch.arange(0, candidates * classes, classes).repeat_interleave(len(labels))
    confusion = torch.zeros(candidates * classes, classes + 1, dtype=torch.long)  # predicted, label
    alone = number == 0
    confusion.index_add_(0, (first + best)[alone], _histograms(labels, classes + 1)[cell[alone]])
    for m in number.unique().tolist():
        at_once = max(1, AT_ONCE // ((m + 1) * max(labels.shape[1], classes + 1)))
        for some in (number == m).nonzero()[:, 0].split(at_once) if m else ():
            rival = rivals[:, some].T.nonzero()[:, 1].view(-1, m)  # (n, m)
            here = cell[some]
            scores = _upsample(above[:, rival.T, some], down[here // (width + 1)], right[here % (width + 1)])
            found = _histograms(labels[here].add_(_winner(scores), alpha=classes + 1), (m + 1) * (classes + 1))
            winners = first[some, None] + torch.cat([best[some, None], rival], dim=1)
            confusion.index_add_(0, winners.flatten(), found.view(-1, classes + 1))
    confusion = confusion.view(candidates, classes, classes + 1)[..., 1:]
    return torch.cat([confusion.diagonal(dim1=1, dim2=2), confusion.sum(2), confusion.sum(1)], dim=1).double()


def _cells(pixels: int, patches: int) -> tuple[Tensor, Tensor]:
    """Along an axis: the pixels of every cell, and how far each lies from the cell's first corner to its second.

    Both are (patches + 1, most pixels of a cell); where a cell has fewer, the pixel is `pixels`, one beyond the last.
    """
    position = (torch.arange(pixels) + 0.5) * patches / pixels + 0.5
    cell = position.int()
    start = torch.searchsorted(cell, torch.arange(patches + 2, dtype=torch.int32))
    pixel = start[:-1, None] + torch.arange(int(start.diff().max()))
    pixel = pixel.where(pixel < start[1:, None], pixels)
    return pixel, pad(position - cell, (0, 1))[pixel]


def _by_cell(labels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(H, W) -> (cells, P), filled up with zeros; within a cell column by column."""
    strips = pad(labels, (0, 1, 0, 1))[rows.flatten()].unflatten(0, rows.shape).transpose(1, 2)
    return strips[:, columns.flatten()].reshape(rows.shape[0] * columns.shape[0], -1)


def _corners(maps: Tensor) -> Tensor:
    """(L, K, h, w) -> (4, K, N): top left, top right, bottom left, bottom right; beyond the border the nearest."""
    padded = pad(maps.transpose(0, 1), (1, 1, 1, 1), mode="replicate")
    top, bottom = padded[..., :-1, :], padded[..., 1:, :]
    return torch.stack([top[..., :-1], top[..., 1:], bottom[..., :-1], bottom[..., 1:]]).flatten(2)


def _upsample(corners: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Corners (4, m, n), weights (n, rows) and (n, columns) -> (m, n, P), column by column."""
    left_side, right_side = (torch.lerp(corners[i, ..., None], corners[i + 2, ..., None], down) for i in (0, 1))
    return torch.lerp(left_side[:, :, None], right_side[:, :, None], right[..., None]).flatten(2)


def _winner(above: Tensor) -> Tensor:
    """Scores of m rivals above the best's, (m, n, P) -> (n, P) int32: 0 where the best wins, or 1 + the rival's index.

    Comparisons give floats, since booleans take longer on a CPU, and max with indices longer still.
    """
    winner, higher = torch.zeros_like(above[0]), torch.empty_like(above[0])
    top = torch.zeros(())
    for index, rival in enumerate(above, start=1):
        torch.gt(rival, top, out=higher)
        torch.maximum(winner, higher.mul_(index), out=winner)
        top = torch.maximum(rival, top)
    return winner.int()


def _histograms(values: Tensor, bins: int) -> Tensor:
    """How often each of 0 to bins - 1 occurs in every row: (n, P) int32 -> (n, bins)."""
    first = torch.arange(0, len(values) * bins, bins, dtype=torch.int32)[:, None]
    return torch.bincount((values + first).flatten(), minlength=len(values) * bins).view(-1, bins)
