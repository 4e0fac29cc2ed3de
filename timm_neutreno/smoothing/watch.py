"""Measuring inside one's own loop: hooks that sum up every layer's metrics while images stream through a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ..support import UnsupportedModelError
from .heads import Call
from .layers import Layers, find_attention, find_attention_output, find_outputs, to_tokens
from .metrics import METRICS, SIMILARITIES, check_metrics
from .result import Smoothing


class Recorder:
    """Sums up the metrics of every layer. Made by `watch`."""

    def __init__(self, name: str, metrics: list[str], num_layers: int):
        self.name = name
        self.metrics = metrics
        self.images = 0
        lengths = {m: num_layers - (METRICS[m].of == "layers") for m in metrics}
        self._totals: dict[str, list[list[Tensor]]] = {m: [[] for _ in range(lengths[m])] for m in metrics}
        self._previous: tuple[int, Call] | None = None  # layer and call, for metrics of two layers

    def add(self, metric: str, layer: int, values: Tensor) -> None:
        """Add one batch: `values`, (B,) float64. Stays on the device, so that nothing waits for it."""
        new = torch.stack([torch.full_like(values[0], len(values)), values.sum(), values.square().sum()])
        total = self._totals[metric][layer]
        total[:] = [total[0] + new if total else new]

    def drain(self, metric: str) -> Tensor:
        """Give the sums of one metric away and start anew: (layers, 3) float64 of count, sum and sum of squares."""
        totals = [total.pop() for total in self._totals[metric]]
        return torch.stack(totals)

    def result(self) -> Smoothing:
        """The mean and standard deviation over all images so far.

        Raises:
            ValueError: If no image was seen, or a value is not finite.
        """
        values: dict[str, list[float]] = {}
        spread: dict[str, list[float]] = {}
        for metric in self.metrics:
            totals = [total[0].tolist() for total in self._totals[metric] if total]
            if len(totals) < len(self._totals[metric]):
                raise ValueError(
                    "no images were measured: the batches were empty, or the model ran compiled or in another process, "
                    "where hooks do not fire. Give at least one image, and measure before torch.compile."
                )
            means = [total / count for count, total, _ in totals]
            _check_finite(metric, means)
            values[metric] = means
            spread[metric] = [
                max(squares / count - mean**2, 0.0) ** 0.5
                for (count, _, squares), mean in zip(totals, means, strict=True)
            ]
        return Smoothing(self.name, self.images, values, spread)


def _check_finite(metric: str, means: list[float]) -> None:
    for layer, mean in enumerate(means):
        if mean - mean != 0:  # NaN or infinite
            raise ValueError(
                f"{metric} of blocks.{layer} is {mean}: its activations contain NaN or infinity, or the formula has "
                "no value for them (zero tokens, an exponential too large). In float16 large activations overflow: "
                "measure in float32 or bfloat16 (model.float()), and check the weights and images."
            )


@contextmanager
def watch(model: nn.Module, metrics: Iterable[str] = SIMILARITIES, *, name: str | None = None) -> Iterator[Recorder]:
    """Measure every forward pass of a `with` block, inside one's own loop.

        with watch(model) as seen:
            for images, _ in loader:
                model(images)
        print(seen.result().values["block_similarity"])

    The model's mode, gradients and autocast are left as they are; dropout is measured too if it is on. A block that
    gradient checkpointing runs a second time counts a second time, which leaves the means as they are.

    Args:
        model: A timm ViT-like model, patched or not, or a model of transformers.
        metrics: Names from `METRICS`.
        name: The model's name in the result.

    Raises:
        ValueError: If a metric is unknown, or an output is not tokens, or has fewer than two.
        UnsupportedModelError: If the model has no layers to measure.
    """
    names = check_metrics(metrics)
    layers = find_outputs(model)
    _check_measurable(names, layers)
    recorder = Recorder(name or type(model).__name__, names, len(layers.blocks))
    handles = [layers.blocks[0].register_forward_hook(partial(_count_images, recorder))]
    try:
        for layer, block in enumerate(layers.blocks):
            for of, find in (("block", lambda block, _: block), ("attention", find_attention_output)):
                if wanted := [name for name in names if METRICS[name].of == of]:
                    hook = partial(_add_tokens, recorder, wanted, layer, layers.num_prefix_tokens)
                    handles.append(find(block, layer).register_forward_hook(hook))
            if wanted := [name for name in names if METRICS[name].of in ("heads", "layers")]:
                hook = partial(_add_heads, recorder, wanted, layer)
                handles.append(find_attention(block, layer).register_forward_pre_hook(hook, with_kwargs=True))
        yield recorder
    finally:
        recorder._previous = None
        for handle in handles:
            handle.remove()


def _check_measurable(names: list[str], layers: Layers) -> None:
    """Refuse what is only known of timm's models."""
    other = [name for name in names if METRICS[name].of != "block" or METRICS[name].patch_only]
    if layers.only_blocks and other:
        raise UnsupportedModelError(
            f"{other[0]} is measured on models of timm only. Of a model of transformers the outputs of its layers are, "
            "with all their tokens: block_similarity, or of='block', tokens='all'."
        )


def _count_images(recorder: Recorder, module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
    recorder.images += len(output[0] if isinstance(output, tuple) else output)


@torch.no_grad()
def _add_tokens(
    recorder: Recorder,
    names: list[str],
    layer: int,
    num_prefix_tokens: int,
    module: nn.Module,
    args: tuple,
    output: Tensor,
) -> None:
    for name in names:
        skip = num_prefix_tokens if METRICS[name].patch_only else 0
        recorder.add(name, layer, METRICS[name].compute(to_tokens(output, module, layer, skip)))


@torch.no_grad()
def _add_heads(recorder: Recorder, names: list[str], layer: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
    call, previous = Call(module, args, kwargs), recorder._previous
    for name in names:
        if METRICS[name].of == "heads":
            recorder.add(name, layer, METRICS[name].compute(call))
        elif previous and previous[0] == layer - 1:  # not so when a checkpoint recomputes layers backwards
            recorder.add(name, layer - 1, METRICS[name].compute(call, previous[1]))
    recorder._previous = layer, call
