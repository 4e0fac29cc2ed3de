"""How alike the tokens of one layer are: pure functions, (B, N, C) -> one float64 value per image, (B,).

They run in float64 on whatever dtype comes in: the differences of nearly equal tokens are what is measured here, and
next to a transformer block an O(N C) pass costs little even in float64.

Sources. Cosine similarity: NeuTRENO (arXiv 2312.00751), App. E.3. Low and high frequency: Wang et al., ICLR 2022
(arXiv 2203.05962). The three notions of smoothing (input convergence, angle convergence, rank collapse): Dovonon,
Bronstein, Kusner (arXiv 2401.04301); its exact norms could not be read, so those below are ours and stated.

Shapes: B images, N >= 2 tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _float64(x: Tensor) -> Tensor:
    """x in float64; on the CPU, if it is on Apple's GPU, which has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def _directions(x: Tensor) -> Tensor:
    """Tokens at length one, float64; a zero token stays zero, and so has similarity 0 to every other."""
    x = _float64(x)
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norms.masked_fill(norms == 0, 1)


def cosine_similarity(x: Tensor) -> Tensor:
    """1 / (N (N - 1)) * sum_{i != j} cos(x_i, x_j), in [-1 / (N - 1), 1]. NeuTRENO, App. E.3.

    With e_i = x_i / |x_i| the double sum is |sum_i e_i|^2 - sum_i |e_i|^2: O(N C) instead of an N x N matrix.

    Args:
        x: Tokens, (B, N, C), any floating dtype.
    """
    N = x.shape[1]
    e = _directions(x)
    return (e.sum(dim=1).square().sum(dim=-1) - e.square().sum(dim=(1, 2))) / (N * (N - 1))


def hfc_lfc(x: Tensor) -> Tensor:
    """|X - m|_F / |1 m^T|_F with m the mean token: varying part over constant part; 0 when all tokens are equal.

    Input convergence of 2401.04301 (its Definition 1, after 2203.05962): the ratio goes to 0 with depth. Infinite if
    the mean token is zero.
    """
    x = _float64(x)
    mean = x.mean(dim=1, keepdim=True)
    return torch.linalg.vector_norm(x - mean, dim=(1, 2)) / torch.linalg.vector_norm(mean.expand_as(x), dim=(1, 2))


def angle(x: Tensor) -> Tensor:
    """Mean angle, in degrees, between a token and the mean direction of the tokens; 0 when all point one way.

    Angle convergence of 2401.04301: the tokens align, whatever their lengths. The angle is taken to the mean of the
    tokens at length one (ours), as 2 atan2(|a - b|, |a + b|), which keeps its digits near 0 where arccos loses them.
    """
    e = _directions(x)
    mean = _directions(e.mean(dim=1, keepdim=True))
    apart = torch.linalg.vector_norm(e - mean, dim=-1)
    along = torch.linalg.vector_norm(e + mean, dim=-1)
    return torch.rad2deg(2 * torch.atan2(apart, along)).mean(dim=1)


def rank_one_distance(x: Tensor) -> Tensor:
    """|X - s_1 u_1 v_1^T|_F / |X|_F = sqrt(sum_{i >= 2} s_i^2 / sum_i s_i^2), in [0, 1); 0 for a rank-one X.

    Rank collapse of 2401.04301 (the relative Frobenius norm is our choice).
    """
    energy = torch.linalg.svdvals(_float64(x)).square()
    return (energy[:, 1:].sum(dim=-1) / energy.sum(dim=-1)).sqrt()


def effective_rank(x: Tensor) -> Tensor:
    """exp(entropy of s_i / sum_j s_j) of the singular values, in [1, min(N, C)]. Roy & Vetterli, EUSIPCO 2007."""
    s = torch.linalg.svdvals(_float64(x))
    p = s / s.sum(dim=-1, keepdim=True)
    return torch.special.entr(p).sum(dim=-1).exp()
