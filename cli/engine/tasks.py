"""What a run does differently from task to task: a row of TASKS for each."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from ..data import loaders, segmentation, sources
from ..data.loaders import BatchLoader
from ..data.sources import Datasets
from ..tasks import classification
from ..tasks import segmentation as masks


class Task(NamedTuple):
    """A row of TASKS.

    Attributes:
        rules: The module in tasks/: model, loss, figures.
        open_datasets: What --data names.
        train_loader: Augmented images.
        val_loader: Images to evaluate on.
    """

    rules: ModuleType
    open_datasets: Callable[..., Datasets]
    train_loader: Callable[..., BatchLoader]
    val_loader: Callable[..., BatchLoader]


TASKS = {
    "classification": Task(classification, sources.open_datasets, loaders.train_loader, loaders.val_loader),
    "segmentation": Task(masks, segmentation.open_datasets, segmentation.train_loader, segmentation.val_loader),
}
