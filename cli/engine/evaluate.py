"""Top-1, top-5, loss and token similarity of a model on the val images, in one pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from timm.task import ClassificationEvaluator
from torch import Tensor, nn

from timm_neutreno.smoothing import watch

from ..data.sources import Loader
from ..errors import Interrupted
from ..runtime import processes
from ..runtime.signals import Stop

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
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    autocast: AbstractContextManager,
    *,
    similarity: bool = True,
    stop: Stop | None = None,
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
                evaluator = ClassificationEvaluator(device)
                evaluator.update(output, target)
                figures = torch.cat([evaluator.loss_sum.reshape(1), evaluator.counts.to(evaluator.loss_sum.dtype)])
                sums.append((figures, recorder.drain(SIMILARITY) if recorder else torch.zeros(0, 3)))
        for _ in range(loader.rounds - len(sums)):  # a sharded model runs in all processes or in none
            with autocast:
                model(torch.zeros(1, *loader.input_size, device=device))
    finally:
        model.train(training)
    figures, tokens = _in_order([(figures.cpu(), tokens.cpu()) for figures, tokens in sums])
    loss, count, top1, top5 = figures.tolist()
    count = max(int(count), 1)
    means, error = [], 0.0
    if len(tokens):
        means = (tokens[:, 1] / tokens[:, 0]).tolist()
        seen, _, squares = tokens[-1].tolist()
        error = max(squares / seen - means[-1] ** 2, 0.0) ** 0.5 / count**0.5
    return Evaluation(count, 100 * top1 / count, 100 * top5 / count, loss / count, means, error)


def _in_order(own: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The sums of all processes' batches, in the order of the batches: process r has the batches r, r + count, ..."""
    shares = processes.collect(own)
    batches = [share[index] for index in range(max(map(len, shares))) for share in shares if index < len(share)]
    figures, tokens = zip(*batches, strict=True)
    return torch.stack(figures).double().sum(0), torch.stack(tokens).sum(0)
