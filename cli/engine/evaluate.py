"""The figures of a model on the val images, in one pass: the task's metrics, and how alike its tokens are."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from timm_neutreno import strengths
from timm_neutreno.smoothing import watch

from ..data.loaders import BatchLoader
from ..errors import Interrupted
from ..runtime import processes
from ..runtime.signals import StopSignal
from ..tasks import classification

SIMILARITY = "block_similarity"

Evaluation = dict[str, Any]  # what `evaluate` returns, and what evaluations.json and results.json hold of a model


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: BatchLoader,
    device: torch.device,
    autocast: AbstractContextManager,
    *,
    similarity: bool = True,
    stop: StopSignal | None = None,
) -> Evaluation:
    """Evaluate in eval mode, leaving the model's mode as it was.

    Every batch is summed up by itself and the sums of all processes are added in the order of the batches, so the
    figures are the same to the last digit for any number of processes; no image counts twice.

    Args:
        model: On `device`; the raw module, or a sharded one.
        loader: Val images.
        device: Where to count.
        autocast: Context for the forward passes.
        similarity: Measure it too; else the list is empty.
        stop: Asked before every batch.

    Returns:
        {"strengths" (of each: "mean_abs" over layers and heads, "min", "max"), "images", "top1", "top5" (percent),
        "loss" (mean cross-entropy), "similarity" (mean cosine similarity of different tokens of an image, per block, in
        [-1, 1]), "similarity_error" (standard error of the last block's, over images)}.

    Raises:
        Interrupted: If `stop` says so.
    """
    training = model.training
    model.eval()
    sums: list[tuple[Tensor, Tensor]] = []
    try:
        with watch(model, [SIMILARITY]) if similarity else nullcontext() as recorder:
            for images, target in loader.batches:
                if stop and stop.signal:
                    raise Interrupted(f"interrupted by {stop.signal} in an evaluation.")
                with autocast:
                    output = model(images)
                tokens = recorder.drain(SIMILARITY) if recorder else torch.zeros(0, 3)
                sums.append((classification.batch_sums(output, target), tokens))
        for _ in range(loader.steps - len(sums)):  # a sharded model runs in all processes or in none
            with autocast:
                model(torch.zeros(1, *loader.input_size, device=device))
    finally:
        model.train(training)
    figures, tokens = _in_order([(figures.cpu(), tokens.cpu()) for figures, tokens in sums])
    return {"strengths": strength_summary(model), **classification.metrics(figures), **_similarity(tokens)}


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


def _in_order(own: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The sums of all processes' batches, in the order of the batches: process r has the batches r, r + size, ..."""
    shares = processes.all_gather(own)
    batches = [share[index] for index in range(max(map(len, shares))) for share in shares if index < len(share)]
    figures, tokens = zip(*batches, strict=True)
    return torch.stack(figures).double().sum(0), torch.stack(tokens).sum(0)


def _similarity(tokens: Tensor) -> Evaluation:
    """From the (blocks, 3) sums of a recorder: images, similarities, squared similarities."""
    if not len(tokens):
        return {"similarity": [], "similarity_error": 0.0}
    means = (tokens[:, 1] / tokens[:, 0]).tolist()
    seen, _, squares = tokens[-1].tolist()
    variance = max(squares / seen - means[-1] ** 2, 0.0)
    return {"similarity": means, "similarity_error": (variance / seen) ** 0.5}
