"""Keep autograd from saving the sum of the formula: from what it saves anyway, one pass makes the sum anew.

SDPA saves its output u, and `proj` its input. Without the fidelity term they are one tensor; with it, every layer
would keep one (B, H, N, D) tensor more than timm's. u, v and v0 are saved by SDPA, so the backward pass of `proj` takes
the sum from them, by the same operations and so to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _View(NamedTuple):
    """Where a saved tensor lay in the storage of the one that is recomputed."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: Any  # torch: int | SymInt


class _Version(NamedTuple):
    """A tensor that has to be the same in the backward pass; autograd does not look after it where hooks are."""

    tensor: Any
    number: int

    def get(self) -> Any:
        if isinstance(self.tensor, Tensor) and self.tensor._version != self.number:
            raise RuntimeError(
                f"A tensor of shape {tuple(self.tensor.shape)} that the gradient of NeuTRENO attention needs was "
                f"changed in place after the forward pass (version {self.tensor._version}, expected {self.number}): an "
                "optimizer step or an operation such as add_ came before the backward pass. Move it after, or clone."
            )
        return self.tensor


def _remember(x: Any) -> _Version:
    return _Version(x, x._version) if isinstance(x, Tensor) else _Version(x, 0)


def is_kept(u: Tensor) -> bool:
    """Whether the operation that made `u` saves it for its own backward pass, as fused attention does.

    Under torch.compile nobody knows: its partitioner decides what is kept.
    """
    return not torch.compiler.is_compiling() and hasattr(u.grad_fn, "_raw_saved_output")


def recomputed(result: Tensor, function: Callable[..., Tensor], *inputs: Any) -> AbstractContextManager:
    """A context in which autograd, where it would save `result` or a view of it, calls function(*inputs) later instead.

    Does nothing where that would not save memory or is not ours to decide: without gradients, in a checkpointed
    region, under offloading or other hooks for saved tensors, in torch.func. Under torch.compile ask `is_kept` first.

    Args:
        result: What function(*inputs) gave.
        function: Deterministic, of detached tensors.
        *inputs: Tensors that autograd keeps anyway, and numbers.

    Raises:
        RuntimeError: In the backward pass, if a tensor was changed in place since, as autograd itself does.
    """
    if not result.requires_grad or not _may_hook(result):
        return nullcontext()
    storage = result.untyped_storage().data_ptr()
    kept = [_remember(x.detach() if isinstance(x, Tensor) else x) for x in inputs]

    def pack(x: Tensor) -> _View | _Version:
        if type(x) is Tensor and x.untyped_storage().data_ptr() == storage:
            return _View(x.size(), x.stride(), x.storage_offset())
        return _remember(x)

    def unpack(saved: _View | _Version) -> Tensor:
        if isinstance(saved, _Version):
            return saved.get()
        return function(*[x.get() for x in kept]).as_strided(*saved)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _may_hook(x: Tensor) -> bool:
    graph: Any = torch._C._autograd
    plain = type(x) is Tensor and not x.is_meta and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    return plain and graph._saved_tensors_hooks_is_enabled() and graph._top_saved_tensors_default_hooks(True) is None
