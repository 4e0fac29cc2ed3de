"""`probe`: a model as it is and under several settings, probed on the same images and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import RandomSampler

from .compare import compare
from .errors import DataError
from .measure import DEFAULTS, Options, Splits, measure
from .protocol import describe
from .result import ProbeResult
from .settings import REFERENCE, Setting, check_settings

HELD_OUT = 5  # without val, every fifth train image


def probe(
    model: nn.Module,
    train: Iterable,
    test: Iterable,
    *,
    num_classes: int,
    val: Iterable | None = None,
    settings: Sequence[Setting] = (),
    options: Options = DEFAULTS,
    name: str = "model",
    progress: Callable[[str], None] | None = None,
) -> ProbeResult:
    """Probe the frozen features of a model as it is and under settings, which are chosen on val and compared on test.

    Args:
        model: A timm ViT; it is left as it was.
        train: Batches of images (B, 3, height, width) and targets, the same at every iteration: class indices (B,) for
            classification; for segmentation masks of class indices, (B, H, W) or a list of (H, W), -1 where void.
        test: Likewise.
        num_classes: Number of classes.
        val: Likewise; None takes every fifth train image.
        settings: What to compare; `settings.grid` makes them.
        options: See `Options`.
        name: The model's name in the result.
        progress: Called with a line before each setting.

    Raises:
        DataError: If the images or targets cannot be probed; see `Splits`.
        FeatureError: If the features are not finite, or the patches do not cover the images.
        ValueError: If a setting is unknown.
    """
    splits = make_splits(train, test, val, num_classes)
    check_settings(model, settings)
    measured = []
    for setting in (REFERENCE, *settings):
        if progress:
            progress(f"{name}, {setting.label}")
        measured.append(measure(model, setting, splits, options, name))
    size = tuple(next(iter(splits.test))[0].shape[-2:])
    data = "loaders of the caller" + (f"; val is every {HELD_OUT}th train image" if val is None else "")
    return compare(measured, splits.task, describe(splits.task, options, size, data), options.seed)


def make_splits(train: Iterable, test: Iterable, val: Iterable | None, num_classes: int) -> Splits:
    """Check the loaders; without val, take it from train.

    Raises:
        DataError: If a loader shuffles, can be read only once or gives no targets, or there are fewer than two classes.
    """
    if num_classes < 2:
        raise DataError(f"probing tells classes apart, and there is {num_classes}; give at least two.")
    for part, loader in (("train", train), ("val", val), ("test", test)):
        if loader is not None:
            _check_loader(part, loader)
    first = next(iter(test), None)
    if not isinstance(first, tuple | list) or len(first) < 2:
        raise DataError("each test batch must be (images, targets).")
    dimensions = getattr(first[1][0], "ndim", 0)
    task = {0: "classification", 2: "segmentation"}.get(dimensions)
    if task is None:
        raise DataError(
            f"targets must be class indices or masks (height, width), got {dimensions} dimensions per image."
        )
    if val is None:
        train, val = Part(train, held_out=False), Part(train, held_out=True)
    return Splits(task, num_classes, train, val, test)


def _check_loader(part: str, loader: Any) -> None:
    if isinstance(loader, Iterator):
        raise DataError(f"{part} can be read only once; every setting reads it again: give a list or a DataLoader.")
    if isinstance(getattr(loader, "sampler", None), RandomSampler):
        raise DataError(f"{part} shuffles its images; every setting must see the same ones: give shuffle=False.")


class Part:
    """Every fifth image of a loader, or the others.

    Args:
        batches: The loader.
        held_out: Which of the two.
    """

    def __init__(self, batches: Iterable, held_out: bool):
        self.batches, self.held_out = batches, held_out

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        position = 0
        for images, targets, *_ in self.batches:
            kept = [i for i in range(len(images)) if ((position + i) % HELD_OUT == 0) == self.held_out]
            position += len(images)
            if kept:
                yield images[kept], (targets[kept] if isinstance(targets, Tensor) else [targets[i] for i in kept])
