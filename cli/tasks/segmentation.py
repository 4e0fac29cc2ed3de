"""Semantic segmentation: a Segmenter around the checkpoint, cross-entropy per pixel, mIoU over the data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.task import ClassificationTask, TrainingTask
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from timm_neutreno import miou
from timm_neutreno.segmenter import MULTI_SCALE, Segmenter, logits, predict
from timm_neutreno.segmenter.model import takes_any_size

from ..config import Config
from ..errors import DataError, UsageError

MAIN = "miou"  # what decides which epoch is the best; larger is better
PREFIX = "encoder."  # where a checkpoint's own parameters are in the model
VOID = -1


def build(build_vit: Callable[..., nn.Module], source: Any, datasets: Any, config: Config) -> nn.Module:
    """A Segmenter around the checkpoint's ViT, on the CPU.

    Args:
        build_vit: Makes the ViT; takes num_classes, img_size, drop_path and more arguments of its constructor.
        source: The checkpoint, with `arch` and `model_args`.
        datasets: What is to be told apart.
        config: What the run is asked to do.

    Raises:
        UsageError: If the input is not square.
    """
    sized = {"dynamic_img_size": True} if takes_any_size(source.arch, source.model_args) else {}
    encoder = build_vit(num_classes=0, img_size=config.img_size, drop_path=config.drop_path, **sized)
    try:
        model = Segmenter(
            encoder,
            datasets.num_classes,
            decoder_depth=config.decoder_depth,
            dropout=config.decoder_dropout,
            class_names=datasets.class_names,
        )
    except ValueError as error:
        raise UsageError(f"--task segmentation: {error}") from error
    height, width = model.window
    if height != width:
        raise UsageError(f"the checkpoint's input is {height} x {width} pixels, and crops are square: pass --img-size.")
    if (stride := config.window_stride) is not None:
        if stride > width:
            raise UsageError(f"--window-stride {stride} leaves gaps between windows of {width} pixels.")
        model.stride = (stride, stride)
    return model


def head_mismatch(
    num_classes: int, names: Sequence[str] | None, data_classes: int, data_names: Sequence[str] | None
) -> str:
    """Why there is a new head: a classifier's never fits masks."""
    return f"a mask transformer for {data_classes} classes"


def part(model: Any, name: str) -> nn.Module:
    """Where a method acts: "encoder", "decoder", or "" for both."""
    return getattr(model, name) if name else model


def watched(model: Any) -> dict[str, nn.Module]:
    """Whose tokens are compared, by the beginning of the figures' names."""
    return {"": model.encoder, "decoder_": model.decoder}


def data_config(model: Any) -> dict[str, Any]:
    """How images are prepared for the model."""
    return {"input_size": (3, *model.window), "mean": model.mean, "std": model.std, "interpolation": "bilinear"}


class PixelLoss(nn.Module):
    """Cross-entropy summed over labelled pixels, over the number of all pixels of the crops.

    So images weigh the same however a step is dealt out to processes, and a crop without a label adds nothing.
    """

    def __init__(self, label_smoothing: float):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss = cross_entropy(
            output.float(), target, ignore_index=VOID, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return loss / target.numel()


def training_task(
    model: nn.Module, teacher: nn.Module | None, config: Config, device: torch.device, images: Any = None
) -> TrainingTask:
    """timm's task around the loss; there is no teacher, and no weights of classes."""
    return ClassificationTask(model, criterion=PixelLoss(config.label_smoothing), device=device, verbose=False)


def batch_figures(model: Any, images: list[Tensor], masks: list[Tensor], multi_scale: bool = False) -> Tensor:
    """(n, 1 + 3 K) of one batch, a row per image: summed cross-entropy, and the counts of miou.py.

    Images of one size go through the model together.
    """
    rows: list[Tensor] = []
    first = 0
    while first < len(images):
        same = first + 1
        while same < len(images) and (images[same].shape, masks[same].shape) == (
            images[first].shape, masks[first].shape
        ):  # fmt: skip
            same += 1
        x, size = torch.stack(images[first:same]), (masks[first].shape[0], masks[first].shape[1])
        if multi_scale:
            scores = predict(model, x, size=size, scales=MULTI_SCALE, flip=True).log()
        else:
            scores = logits(model, x, size=size)
        rows += [_row(own, mask) for own, mask in zip(scores, masks[first:same], strict=True)]
        first = same
    return torch.stack(rows)


def _row(scores: Tensor, mask: Tensor) -> Tensor:
    loss = cross_entropy(scores[None].float(), mask[None], ignore_index=VOID, reduction="sum")
    return torch.cat([loss.double()[None], miou.count(scores.max(0).indices, mask, len(scores), VOID)])


def metrics(rows: Tensor, final: bool = False) -> dict[str, Any]:
    """From the rows of all images: mIoU and pixel accuracy in percent, the mean loss, the IoU of every class.

    Args:
        rows: (n, 1 + 3 K).
        final: Add what each image contributes to the mIoU, "miou_by_image".

    Raises:
        DataError: If no pixel is labelled.
    """
    counts = rows[:, 1:]
    total = counts.sum(0)
    labelled = total.chunk(3)[2].sum()
    if not labelled:
        raise DataError("no pixel of the val masks is labelled: all are void. Check --ignore-label.")
    shares = [None if value != value else 100 * value for value in miou.iou(total).tolist()]
    return {
        "images": len(rows),
        "miou": float(miou.miou(total)),
        "pixel_accuracy": float(miou.pixel_accuracy(total)),
        "loss": float(rows[:, 0].sum() / labelled),
        "iou": shares,
        **({"miou_by_image": miou.influence(counts).tolist()} if final else {}),
    }
