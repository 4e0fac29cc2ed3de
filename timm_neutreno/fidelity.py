"""The paper's formula, on plain tensors.

NeuTRENO: Mitigating Over-smoothing in Transformers via Regularized Nonlocal Functionals.
Nguyen, Nguyen, Baraniuk, NeurIPS 2023, https://arxiv.org/abs/2312.00751

Self-attention is one gradient step on the nonlocal functional J(u), whose minimum is a constant: tokens grow alike.
Adding lambda/2 * sum_i |u_i - f_i|^2, with f the values of the first layer, to J keeps every token near its own first
value. The step on the sum (Eq. 15, with lambda-tilde the fidelity below) is, per head and for layers l >= 1,

    u_l = softmax(q_l k_l^T / sqrt(d)) v_l + fidelity * (v_0 - v_l)

In layer 0 the term is zero. The authors' code (`DeiT/neutreno.py`) fixes fidelity = 0.6 for ViTs, does not detach v_0,
and adds the term after attention dropout and before the heads are merged; so do we.

Shapes: B images, H heads, N tokens (prefix tokens included), D channels per head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DEFAULT_FIDELITY = 0.6


def check_fidelity(fidelity: float) -> float:
    """Return `fidelity` as a float.

    Raises:
        ValueError: If it is not a finite number.
    """
    try:
        number = float(fidelity)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"fidelity must be a finite number such as {DEFAULT_FIDELITY}, got {fidelity!r}.") from None
    if not math.isfinite(number):
        raise ValueError(f"fidelity must be a finite number such as {DEFAULT_FIDELITY}, got {number}.")
    return number


def fidelity_term(v: Tensor, v0: Tensor, fidelity: float | Tensor) -> Tensor:
    """fidelity * (v0 - v): the second summand of the paper's NeuTRENO attention.

    Args:
        v: Values of this layer, (B, H, N, D).
        v0: Values of the first layer, (B, H, N, D), with their gradient.
        fidelity: The paper's lambda-tilde; a tensor must broadcast against `v`.

    Returns:
        A tensor shaped like `v`.
    """
    return fidelity * (v0 - v)


def add_fidelity_term(u: Tensor, v: Tensor, v0: Tensor, fidelity: float | Tensor) -> Tensor:
    """u + fidelity_term(v, v0, fidelity), in one pass over memory less.

    A tensor fidelity, (1,) for the layer or (H,) for its heads, takes the dtype of `v`, as weights do under autocast.
    With fidelity 0.0 the result equals `u` exactly.

    Args:
        u: Attention output before the heads are merged, (B, H, N, D).
        v: Values of this layer, (B, H, N, D).
        v0: Values of the first layer, (B, H, N, D).
        fidelity: The paper's lambda-tilde.
    """
    if isinstance(fidelity, int | float):
        return torch.add(u, v0 - v, alpha=fidelity)
    return torch.addcmul(u, fidelity.to(v.dtype).view(-1, 1, 1), v0 - v)
