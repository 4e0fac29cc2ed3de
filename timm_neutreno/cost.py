"""What NeuTRENO costs: floating-point operations, memory and time of a patched model over the plain one. Paper, G.4.

The paper reports 1.00005, 1.000002 and 1.00013. Counting its three operations per value and layer gives 1.0005 for
DeiT-tiny, ten times as much: the counter it used takes elementwise operations for free. This one does not.
"""

from __future__ import annotations

import copy
import statistics
import time
import weakref
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .smoothing.measure import evaluating, prepare
from .surgery import patch

# operations that move numbers without computing; the rest, unless it is a matrix product, counts one per number made
FREE = {
    "view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "t", "unbind", "select", "slice", "split",
    "split_with_sizes", "unsqueeze", "squeeze", "cat", "stack", "clone", "detach", "alias", "copy", "_to_copy",
    "empty", "zeros", "ones", "arange", "index", "repeat", "chunk", "unflatten", "as_strided", "contiguous",
    "lift_fresh",
}  # fmt: skip
OPERATIONS_PER_NUMBER = {  # where one number made takes several; a softmax: maximum, minus, exp, sum, divide
    "addcmul": 2, "_softmax": 5, "_safe_softmax": 5, "native_layer_norm": 7, "gelu": 8,
}  # fmt: skip


class Counted(NamedTuple):
    """Of one forward pass.

    Attributes:
        matmul_flops: Of matrix products and convolutions, a multiplication and an addition each.
        elementwise_flops: Of everything else that computes.
        peak_bytes: Most memory that tensors made during the pass held at one time.
    """

    matmul_flops: int
    elementwise_flops: int
    peak_bytes: int

    @property
    def flops(self) -> int:
        return self.matmul_flops + self.elementwise_flops


class Counter(TorchDispatchMode):
    """Sees every operation. Adds up its flops, and the storages that it makes until they are freed."""

    def __init__(self):
        super().__init__()
        self.matmul = self.elementwise = self.live = self.peak = 0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._known.add(tensor.untyped_storage())  # weights and images: not made here
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            self._hold(tensor.untyped_storage())
        self._count(func, args, kwargs, out)
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, nbytes: int) -> None:
        self.live -= nbytes

    def _count(self, func, args, kwargs, out) -> None:
        packet = func._overloadpacket
        name = packet._qualified_op_name.split("::")[1].removesuffix("_")  # in place or not
        if packet in flop_registry:
            self.matmul += int(flop_registry[packet](*args, **kwargs, out_val=out))
            if name in ("addmm", "baddbmm", "convolution"):  # the bias, which the registry leaves out
                self.elementwise += out.numel()
        elif name not in FREE:
            scaled = name in ("add", "sub") and kwargs.get("alpha", 1) != 1  # a + alpha * b
            made = next((tensor.numel() for tensor in _tensors(out)), 0)
            self.elementwise += (2 if scaled else OPERATIONS_PER_NUMBER.get(name, 1)) * made


def _tensors(tree) -> list[Tensor]:
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def count(model: nn.Module, images: Tensor) -> Counted:
    """Count one forward pass, in eval mode and without gradients.

    Attention is taken apart into its products and softmax (the math path), so that flops are the same on every device;
    its memory is then that of the unfused path.

    Args:
        model: Any model.
        images: (B, 3, height, width).
    """
    counter, images = Counter(), prepare(model, images)
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), counter:
        model(images)
    return Counted(counter.matmul, counter.elementwise, counter.peak)


class Ratios(NamedTuple):
    """Of a patched model to the plain one, forward pass in eval mode.

    Attributes:
        flops: Counted, elementwise operations included.
        peak_bytes: Counted, unfused attention; what the pass makes, without weights and images.
        seconds: Median over pairs of runs, one model right after the other.
        seconds_quartiles: Of the same pairs: below 1 and above 1 means that the difference is in the noise.
        flops_added_per_image: Number of operations that the fidelity term takes.
        pairs: How many.
    """

    flops: float
    peak_bytes: float
    seconds: float
    seconds_quartiles: tuple[float, float]
    flops_added_per_image: float
    pairs: int


def efficiency(model: nn.Module, images: Tensor, *, fidelity: float = 0.6, pairs: int = 20) -> Ratios:
    """Compare a plain model with its NeuTRENO twin, which is made of a copy.

    Args:
        model: A timm ViT that is not patched.
        images: A batch, (B, 3, height, width).
        fidelity: The twin's constant fidelity.
        pairs: Timed pairs; at least 2.

    Raises:
        ValueError: If the model is patched already, or `pairs` is below 2.
        UnsupportedModelError: If it cannot be patched.
    """
    if pairs < 2:
        raise ValueError(f"pairs must be at least 2 to have a spread, got {pairs}.")
    patched, images = patch(copy.deepcopy(model), fidelity=fidelity), prepare(model, images)
    a, b = count(model, images), count(patched, images)
    ratios = paired_ratios(lambda: patched(images), lambda: model(images), pairs, (model, patched))
    low, middle, high = statistics.quantiles(ratios, n=4)
    added = (b.flops - a.flops) / len(images)
    return Ratios(b.flops / a.flops, b.peak_bytes / a.peak_bytes, middle, (low, high), added, pairs)


def paired_ratios(first, second, pairs: int, models: tuple[nn.Module, ...]) -> list[float]:
    """Seconds of `first()` over those of `second()`, run in pairs, in changing order, after a warm-up."""
    from contextlib import ExitStack

    ratios = []
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        for pair in range(pairs + 1):
            if pair % 2:
                a, b = _seconds(first), _seconds(second)
            else:
                b, a = _seconds(second), _seconds(first)
            ratios.append(a / b)
    return ratios[1:]


def _seconds(run) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
