"""One layer's update, repeated with fixed attention A and weights H: does it converge, and to what?

The papers' theory, as runnable checks. Row vectors; A is (N, N) with rows that sum to 1, H = W_V W_proj is (C, C), X is
(N, C). The fidelity term lambda (v_0 - v), with v = X W_V, goes through W_proj as attention does:

    X <- [X +] (A X + fidelity * (X_0 - X)) H

Sources: NeuTRENO (arXiv 2312.00751) and Dovonon et al. (arXiv 2401.04301), whose layer is the one with the residual and
fidelity 0. The exact wording of NeuTRENO's Proposition 1 and Lemmas 1 and 2 could not be read; the statements below are
what its derivation implies, in our words:

    `gradient_step`    (Proposition 1) attention is a gradient step on J, and lowers it for a symmetric kernel.
    `smooth_limit`     (Lemma 1) repeated attention, u <- A u, converges to equal tokens, 1 pi^T u_0.
    `fidelity_limit`   (Lemma 2) with the fidelity term it converges, if at all, to tokens that differ where u_0 does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def iterate(
    x: Tensor, A: Tensor, H: Tensor | None = None, steps: int = 100, *, fidelity: float = 0.0, residual: bool = True
) -> Tensor:
    """Repeat the update and keep every state; measure them with the functions of `tokens`, a step in place of an image.

    States are scaled to Frobenius norm 1 (X_0's share of the update too, so that the directions are those of the plain
    recursion): what grows or dies out exponentially stays in range, and every measure but J is free of scale.

    Args:
        x: First tokens, (N, C).
        A: Attention, (N, N), rows summing to 1.
        H: W_V W_proj, (C, C); None for the identity.
        steps: How many updates.
        fidelity: Weight of the fidelity term.
        residual: Whether the layer adds its input.

    Returns:
        States 0 to `steps`, (steps + 1, N, C) float64.

    Raises:
        ValueError: If the shapes do not fit, rows of A do not sum to 1, or a state is zero or not finite.
    """
    x, A = x.double(), check_attention(A, len(x))
    H = torch.eye(x.shape[1], dtype=torch.float64, device=x.device) if H is None else H.double()
    if H.shape != (x.shape[1],) * 2:
        raise ValueError(f"H must be (C, C) for tokens (N, C) = {tuple(x.shape)}, got {tuple(H.shape)}.")
    x, _ = _scale(x, x, step=0)
    first, states = x, [x]
    for step in range(1, steps + 1):
        update = (A @ x + fidelity * (first - x)) @ H
        x, first = _scale(x + update if residual else update, first, step)
        states.append(x)
    return torch.stack(states)


def _scale(x: Tensor, first: Tensor, step: int) -> tuple[Tensor, Tensor]:
    norm = x.norm()
    if not norm.isfinite() or norm == 0:
        raise ValueError(f"the state is {'zero' if norm == 0 else 'not finite'} after {step} steps: check x, A and H.")
    return x / norm, first / norm


def check_attention(A: Tensor, N: int) -> Tensor:
    """A in float64.

    Raises:
        ValueError: If it is not (N, N), or its rows do not sum to 1.
    """
    A = A.double()
    if A.shape != (N, N) or not torch.allclose(A.sum(dim=1), A.new_ones(N), atol=1e-5):
        raise ValueError(f"A must be ({N}, {N}) with rows that sum to 1, got {tuple(A.shape)}. Take a softmax of it.")
    return A


def gradient_step(u: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """u after one gradient step on J, and the attention output A u that it equals. NeuTRENO, Secs. 2.1 and 2.2.

    J(u) = 1/2 sum_ij k_ij |u_i - u_j|^2 with symmetric k has gradient 2 sum_j k_ij (u_i - u_j), so the step of size
    1 / (2 sum_j k_ij) from u_i is sum_j k_ij u_j / sum_j k_ij: attention with A = k normalised by rows. J does
    not grow in it, because the eigenvalues of A are in (-1, 1].

    Args:
        u: Tokens, (N, C).
        kernel: Symmetric and positive, (N, N), e.g. exp(k k^T / sqrt(D)).

    Returns:
        The two, (N, C) float64, computed in two ways: automatic differentiation of J, and the matrix product.

    Raises:
        ValueError: If the kernel is not symmetric and positive.
    """
    u, kernel = u.detach().double(), kernel.double()
    if not torch.allclose(kernel, kernel.T) or not (kernel > 0).all():
        raise ValueError("the kernel must be symmetric and positive, such as exp(k k^T / sqrt(D)).")
    leaf = u.clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(functional(leaf, kernel), leaf)
    degree = kernel.sum(dim=1, keepdim=True)
    return u - gradient / (2 * degree), kernel / degree @ u


def functional(u: Tensor, kernel: Tensor) -> Tensor:
    """J(u) = 1/2 sum_ij k_ij |u_i - u_j|^2, literally: (N, C), (N, N) -> a number. O(N^2 C) memory."""
    return (kernel * (u[:, None] - u[None]).square().sum(dim=-1)).sum() / 2


def smooth_limit(x: Tensor, A: Tensor) -> Tensor:
    """Where u <- A u ends for positive A: every token is pi^T u_0, with pi A = pi, sum pi = 1. (N, C) float64.

    A is the transition matrix of a random walk and pi its stationary distribution (Perron-Frobenius); the distance
    shrinks by |lambda_2(A)| per step.

    Raises:
        ValueError: If A does not fit, or is not positive, so that the limit may not exist.
    """
    A = check_attention(A, len(x))
    if not (A > 0).all():
        raise ValueError("A must be positive, as a softmax is, for the limit to exist.")
    N = len(x)
    equations = torch.cat([A.T - torch.eye(N, dtype=A.dtype, device=A.device), A.new_ones(1, N)])
    pi = torch.linalg.lstsq(equations, torch.cat([A.new_zeros(N), A.new_ones(1)])[:, None]).solution
    return (pi.T @ x.double()).expand(N, -1)


def fidelity_limit(x: Tensor, A: Tensor, fidelity: float) -> Tensor:
    """Where u <- A u + fidelity (u_0 - u) ends: fidelity ((1 + fidelity) I - A)^-1 u_0, (N, C) float64.

    The matrix is invertible for fidelity > 0, so different u_0 have different limits, and only equal tokens u_0 end as
    equal tokens: no over-smoothing. The recursion converges if all |lambda(A) - fidelity| < 1.

    Raises:
        ValueError: If A does not fit, fidelity is not positive, or the recursion does not converge.
    """
    A = check_attention(A, len(x))
    if not fidelity > 0:
        raise ValueError(f"fidelity must be positive, got {fidelity}; without it see smooth_limit.")
    radius = (torch.linalg.eigvals(A) - fidelity).abs().max().item()
    if radius >= 1:
        raise ValueError(
            f"u <- A u + {fidelity} (u_0 - u) does not converge: A - {fidelity} I has an eigenvalue "
            f"of size {radius:.3f}. Take a smaller fidelity."
        )
    identity = torch.eye(len(x), dtype=A.dtype, device=A.device)
    return fidelity * torch.linalg.solve((1 + fidelity) * identity - A, x.double())
