"""Image classification: timm's losses, top-1, top-5 and cross-entropy, and when a head must be made anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.models._input import get_model_input_config
from timm.task import (
    ClassificationEvaluator,
    ClassificationTask,
    LogitDistillationTask,
    TokenDistillationTask,
    TrainingTask,
)
from timm.utils import random_seed
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Config
from ..errors import DataError

MAIN = "top1"  # what decides which epoch is the best; larger is better
PREFIX = ""  # where a checkpoint's own parameters are in the model


def build(build_vit: Callable[..., nn.Module], source: Any, datasets: Any, config: Config) -> nn.Module:
    """The checkpoint's own model, with a new head where the classes are others; see `head_mismatch`."""
    model: Any = build_vit(num_classes=datasets.num_classes, img_size=config.img_size, drop_path=config.drop_path)
    mismatch = head_mismatch(source.num_classes, source.label_names, datasets.num_classes, datasets.class_names)
    if mismatch and datasets.num_classes == source.num_classes:
        random_seed(config.seed)
        model.reset_classifier(datasets.num_classes)
    return model


def part(model: nn.Module, name: str) -> nn.Module:
    """Where a method acts: everywhere."""
    return model


def watched(model: nn.Module) -> dict[str, nn.Module]:
    """Whose tokens are compared, by the beginning of the figures' names."""
    return {"": model}


def data_config(model: Any) -> dict[str, Any]:
    """How images are prepared for the model."""
    return {**resolve_model_data_config(model), "input_size": get_model_input_config(model)["input_size"]}


def training_task(
    model: nn.Module, teacher: nn.Module | None, config: Config, device: torch.device, images: Any = None
) -> TrainingTask:
    """timm's task, which computes the loss: cross-entropy, and the teacher's share if there is one.

    A teacher is distilled to the logits or, where the model has one, to the distillation token. With --class-weights
    the train images say how many there are of each class.

    Raises:
        DataError: If they do not say it.
    """
    soft = bool(config.mixup or config.cutmix)
    criterion: dict[str, Any] = {"criterion_kwargs": {"smoothing": config.label_smoothing, "soft_targets": soft}}
    if config.class_weights == "balanced":
        balanced = balanced_weights(class_counts(images, model.num_classes)).to(device)  # type: ignore[arg-type]
        smoothing = 0.0 if soft else config.label_smoothing  # mixing has smoothed the targets already
        criterion = {"criterion": partial(weighted_cross_entropy, weights=balanced, smoothing=smoothing)}
    if teacher is None:
        return ClassificationTask(model, **criterion, device=device, verbose=False)
    shares: dict[str, Any] = dict(
        task_loss_weight=1 - config.distill_weight, temperature=config.distill_temperature, **criterion, device=device,
        verbose=False,
    )  # fmt: skip
    if hasattr(model, "set_distilled_training"):
        return TokenDistillationTask(model, teacher, **shares)
    return LogitDistillationTask(model, teacher, **shares)


def class_counts(images: Any, classes: int) -> Tensor:
    """How many images of each class there are, (classes,), without reading them.

    Args:
        images: A dataset of timm, or of torchvision.
        classes: Their number.

    Raises:
        DataError: If the dataset has no list of its targets.
    """
    samples = getattr(getattr(images, "reader", None), "samples", None)
    targets = [sample[1] for sample in samples] if samples else getattr(images, "targets", None)
    if targets is None:
        raise DataError(
            "--class-weights balanced: this source does not say of what class its images are before they are read. Use "
            "a folder of images by class, or leave the option out."
        )
    return torch.bincount(torch.as_tensor(targets), minlength=classes)


def balanced_weights(counts: Tensor) -> Tensor:
    """images / (classes * images of the class), scikit-learn's "balanced"; 0 for a class without images.

    Over all images the weights have mean 1, so that the learning rate keeps its meaning.
    """
    there = counts > 0
    weights = counts.sum() / (there.sum() * counts.clamp(min=1))
    return weights.where(there, torch.zeros(())).float()


def weighted_cross_entropy(output: Tensor, target: Tensor, *, weights: Tensor, smoothing: float) -> Tensor:
    """Mean over images of the cross-entropy with class weights.

    Not divided by the weights in the batch, as torch's own mean is: then parts of a batch, on several processes or
    accumulation steps, would not add up to the batch.

    Args:
        output: (B, classes) logits.
        target: (B,) classes, or (B, classes) shares of a mixed image.
        weights: (classes,).
        smoothing: Share of the target that goes to all classes alike.
    """
    losses = F.cross_entropy(output, target, weight=weights.to(output), label_smoothing=smoothing, reduction="none")
    return losses.mean()


def batch_figures(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """(1, 4): `batch_sums` of one batch."""
    return batch_sums(model(images), target)[None]


def batch_sums(output: Tensor, target: Tensor) -> Tensor:
    """(4,) of one batch: summed cross-entropy, images, right ones among the first and among the first five classes."""
    evaluator = ClassificationEvaluator(output.device)
    evaluator.update(output, target)
    return torch.cat([evaluator.loss_sum.reshape(1), evaluator.counts.to(evaluator.loss_sum.dtype)])


def metrics(rows: Tensor, final: bool = False) -> dict[str, Any]:
    """From the rows of all batches: the number of images, top-1 and top-5 in percent, the mean loss."""
    loss, count, top1, top5 = rows.sum(0).tolist()
    count = max(int(count), 1)
    return {"images": count, "top1": 100 * top1 / count, "top5": 100 * top5 / count, "loss": loss / count}


def head_mismatch(
    num_classes: int, names: Sequence[str] | None, data_classes: int, data_names: Sequence[str] | None
) -> str:
    """Why a checkpoint's head, for so many classes of these names, does not fit the data; "" if it does."""
    if data_classes != num_classes:
        return f"the checkpoint has {num_classes} class{'es' * (num_classes != 1)}, and the data have {data_classes}"
    if names and data_names and list(names) != list(data_names):
        ours, theirs = (", ".join(found[:3]) for found in (names, data_names))
        return f"the checkpoint's classes are {ours}, ...; those of the data are {theirs}, ..."
    return ""
