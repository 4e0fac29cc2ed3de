"""Top-1, top-5, loss and token similarity of a model on the val images, in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from timm.task import ClassificationEvaluator
from torch import nn

from timm_neutreno.smoothing import watch

SIMILARITY = "block_similarity"


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model on the val images.

    Attributes:
        images: How many.
        top1: Percent.
        top5: Percent.
        loss: Mean cross-entropy.
        similarity: Mean cosine similarity of different tokens of an image, per block, in [-1, 1].
        similarity_error: Standard error of the last block's, over images.
    """

    images: int
    top1: float
    top5: float
    loss: float
    similarity: list[float]
    similarity_error: float


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable, device: torch.device, autocast: AbstractContextManager, similarity: bool = True
) -> Evaluation:
    """Evaluate in eval mode, leaving the model's mode as it was.

    Args:
        model: On `device`.
        batches: Of (images, class indices).
        device: Where to count.
        autocast: Context for the forward passes.
        similarity: Measure it too; else the list is empty.
    """
    evaluator = ClassificationEvaluator(device)
    training = model.training
    model.eval()
    metrics = [SIMILARITY] if similarity else []
    try:
        with watch(model, metrics) if similarity else _nothing() as recorder:
            for images, target in batches:
                with autocast:
                    output = model(images)
                evaluator.update(output, target)
    finally:
        model.train(training)
    result = evaluator.compute()
    images = int(evaluator.counts[0])
    values: list[float] = []
    error = 0.0
    if recorder is not None:
        measured = recorder.result()
        values = measured.values[SIMILARITY]
        error = measured.spread[SIMILARITY][-1] / max(images, 1) ** 0.5
    return Evaluation(images, result["top1"], result["top5"], result["loss"], values, error)


def _nothing() -> AbstractContextManager:
    from contextlib import nullcontext

    return nullcontext(None)
