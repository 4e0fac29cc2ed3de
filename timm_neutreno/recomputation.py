"""Keep autograd from saving the sum of the formula: from what it saves anyway, one pass makes the sum anew.

SDPA saves its output u, and `proj` its input. Without the fidelity term they are one tensor; with it, every layer
would keep one (B, H, N, D) tensor more than timm's. u, v and v0 are saved by SDPA, so the backward pass of `proj` takes
the sum from them, by the same operations and so to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def is_kept(u: Tensor) -> bool:
    """Whether the operation that made `u` saves it for its own backward pass, as fused attention does.

    Under torch.compile nobody knows: its partitioner decides what is kept.
    """
    return not torch.compiler.is_compiling() and hasattr(type(u.grad_fn), "_raw_saved_output")


def recomputed(result: Tensor, function: Callable[..., Tensor], *inputs: Any) -> AbstractContextManager:
    """A context in which autograd, where it would save `result` or a view of it, calls function(*inputs) later instead.

    Does nothing where that would not save memory or is not ours to decide: without gradients, in a checkpointed
    region, under offloading or other hooks for saved tensors, in torch.func. Under torch.compile ask `is_kept` first.

    Args:
        result: What function(*inputs) gave.
        function: Deterministic.
        *inputs: Tensors that autograd keeps anyway, and numbers.

    Raises:
        RuntimeError: In the backward pass, if a tensor was changed in place since, as autograd itself does.
    """
    if not result.requires_grad or not _may_hook(result):
        return nullcontext()
    storage = result.untyped_storage().data_ptr()
    kept = [(x, x._version) for x in inputs if isinstance(x, Tensor)]

    def pack(x: Tensor) -> tuple:
        if type(x) is Tensor and x.untyped_storage().data_ptr() == storage:
            return None, (x.size(), x.stride(), x.storage_offset())
        return x, x._version

    def unpack(saved: tuple) -> Tensor:
        x, view = saved
        if x is not None:
            _check_unchanged([saved])
            return x
        _check_unchanged(kept)
        return function(*inputs).as_strided(*view)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _check_unchanged(saved: list[tuple[Tensor, int]]) -> None:
    """As autograd does, except where hooks are."""
    for x, version in saved:
        if x._version != version:
            raise RuntimeError(
                f"A tensor of shape {tuple(x.shape)} that the gradient of NeuTRENO attention needs was changed in "
                f"place after the forward pass (version {x._version}, expected {version}): an optimizer step or an "
                "operation such as add_ came before the backward pass. Move it after, or clone."
            )


def _may_hook(x: Tensor) -> bool:
    graph: Any = torch._C._autograd
    plain = type(x) is Tensor and not x.is_meta and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    return plain and graph._saved_tensors_hooks_is_enabled() and graph._top_saved_tensors_default_hooks(True) is None
