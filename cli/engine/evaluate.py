"""The figures of a model on the val images, in one pass: the task's metrics, and how alike its tokens are."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, closing
from statistics import fmean
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from timm_neutreno import strengths
from timm_neutreno.smoothing import watch

from ..data.loaders import BatchLoader
from ..errors import Interrupted
from ..runtime import processes
from ..runtime.console import Console
from ..runtime.signals import StopSignal

SIMILARITY = "block_similarity"

Evaluation = dict[str, Any]  # what `evaluate` returns, and what evaluations.json and results.json hold of a model


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: BatchLoader,
    device: torch.device,
    autocast: AbstractContextManager,
    rules: ModuleType,
    *,
    similarity: bool = True,
    stop: StopSignal | None = None,
    console: Console | None = None,
    title: str = "evaluating",
    **how: Any,
) -> Evaluation:
    """Evaluate in eval mode, leaving the model's mode as it was.

    Every batch is summed up by itself and the sums of all processes are added in the order of the batches, so the
    figures are the same to the last digit for any number of processes; no image counts twice.

    Args:
        model: On `device`; the raw module, or a sharded one.
        loader: Val images.
        device: Where to count.
        autocast: Context for the forward passes.
        rules: The task's module.
        similarity: Measure it too; else its keys are missing.
        stop: Asked before every batch.
        console: Shows a bar; None for none.
        title: Of the bar.
        **how: For the task's `batch_figures`.

    Returns:
        {"strengths" (of each: "mean_abs" over layers and heads, "min", "max"), "images", the task's `metrics`, and of
        each part that it watches "similarity" (mean cosine similarity of different tokens of an image, per block, in
        [-1, 1]) and "similarity_error" (standard error of the last block's, over images)}.

    Raises:
        Interrupted: If `stop` says so.
    """
    training = model.training
    model.eval()
    watched: dict[str, nn.Module] = rules.watched(model)
    sums: list[tuple[Tensor, ...]] = []
    tracked = (console or Console(quiet=True)).track(loader.batches, title, loader.steps)
    try:
        with ExitStack() as stack:
            recorders = [stack.enter_context(watch(part, [SIMILARITY])) for part in watched.values() if similarity]
            for images, target in stack.enter_context(closing(tracked)):
                if stop and stop.signal:
                    raise Interrupted(f"interrupted by {stop.signal} in an evaluation.")
                with autocast:
                    figures = rules.batch_figures(model, images, target, **how)
                sums.append((figures, *(recorder.drain(SIMILARITY) for recorder in recorders)))
        for _ in range(loader.steps - len(sums)):  # a sharded model runs in all processes or in none
            with autocast:
                model(torch.zeros(1, *loader.input_size, device=device))
    finally:
        model.train(training)
    figures, *tokens = _in_order([tuple(part.cpu() for part in parts) for parts in sums])
    found = {"strengths": strength_summary(model), **rules.metrics(torch.cat(figures).double(), similarity)}
    for index, name in enumerate(watched):
        found |= _similarity(name, torch.stack(tokens[index]).sum(0) if similarity else torch.zeros(0, 3))
    return found


def multi_scale(found: Evaluation) -> Evaluation:
    """What a row keeps of an evaluation at several scales, under names of their own."""
    return {f"{key}_multi_scale": found[key] for key in ("miou", "pixel_accuracy")}


def strength_summary(model: nn.Module) -> dict[str, dict[str, float]]:
    """Of each strength: mean of its absolute values over layers and heads, smallest and largest value."""
    values: dict[str, list[float]] = {}
    for name, value in strengths(model).items():
        if isinstance(value, Tensor):
            full: Any = value.full_tensor() if hasattr(value, "full_tensor") else value  # of a sharded model
            numbers = full.detach().cpu().double().flatten().tolist()
        else:
            numbers = [value]
        values.setdefault(name.rpartition(".")[2], []).extend(numbers)
    return {
        name: {"mean_abs": fmean(map(abs, numbers)), "min": min(numbers), "max": max(numbers)}
        for name, numbers in values.items()
    }


def _in_order(own: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """All processes' batches, part by part, in the order of the batches: process r has the batches r, r + size, ..."""
    shares = processes.all_gather(own)
    batches = [share[index] for index in range(max(map(len, shares))) for share in shares if index < len(share)]
    return list(zip(*batches, strict=True))


def _similarity(name: str, tokens: Tensor) -> Evaluation:
    """From the (blocks, 3) sums of a recorder: images, similarities, squared similarities."""
    if not len(tokens):
        return {}
    means = (tokens[:, 1] / tokens[:, 0]).tolist()
    seen, _, squares = tokens[-1].tolist()
    variance = max(squares / seen - means[-1] ** 2, 0.0)
    return {f"{name}similarity": means, f"{name}similarity_error": (variance / seen) ** 0.5}
