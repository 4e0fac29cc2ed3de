"""The switch of the Triton kernels, and when they may stand in for SDPA and the addition. Off by default.

They compute the same formula with other rounding. Where they do not apply (mask, dropout, another kind of attention,
float64, CPU, tracing, export), the normal path runs, as if the switch were off.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .projections import Projected

if TYPE_CHECKING:
    from .attention import FidelityMix

_enabled = os.environ.get("NEUTRENO_FUSED_ATTN", "0") == "1" and importlib.util.find_spec("triton") is not None


def use_fused_attention(enable: bool = True) -> None:
    """Let NeuTRENO models on CUDA compute attention and fidelity term in one Triton kernel. For the whole process.

    Experimental: checked against float64 by Triton's interpreter, not yet run or timed on a GPU. Also switched on by
    the environment variable NEUTRENO_FUSED_ATTN=1, which does nothing where Triton is missing.

    Args:
        enable: Whether.

    Raises:
        RuntimeError: If Triton is not installed.
    """
    global _enabled
    if enable and importlib.util.find_spec("triton") is None:
        raise RuntimeError("Fused attention needs Triton, which CUDA builds of torch for Linux install; it is missing.")
    _enabled = enable


def fused_attention(module: Any, p: Projected, mix: FidelityMix) -> Tensor | None:
    """Attention and fidelity term in one kernel, (B, H, N, D); None where the normal path has to run.

    Args:
        module: A module that `projections.attend` is right for: plain softmax attention, scaled by 1 / sqrt(D).
        p: Its projections.
        mix: The formula of this call.
    """
    v0 = mix.v0
    if v0 is None or p.mask is not None or p.is_causal or not module.fused_attn:
        return None
    if module.training and module.attn_drop.p > 0.0:
        return None
    from . import triton_attention as kernels

    tensors = (p.q, p.k, p.v, v0)
    same = all(x.shape == v0.shape and x.device == v0.device for x in tensors)
    autocast = torch.is_autocast_enabled(v0.device.type)  # makes one dtype of several
    known = all(x.dtype in kernels.DTYPES and (autocast or x.dtype == v0.dtype) for x in tensors)
    if not (same and known and 1 <= v0.shape[-1] <= kernels.MAX_D):
        return None
    if not (v0.is_cuda or kernels.INTERPRETED) or torch.compiler.is_exporting():
        return None
    fidelity = mix.holder.fidelity  # type: ignore[union-attr]
    return kernels.neutreno_attention(*tensors, fidelity)  # type: ignore[arg-type]


def is_enabled() -> bool:
    return _enabled
