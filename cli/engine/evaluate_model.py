"""Evaluating one model by itself, as a run would: the same preprocessing, batches and precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import Config, place
from ..data import loaders, sources
from ..errors import CheckpointError
from ..runtime.console import Console
from ..runtime.processes import World
from ..tasks import classification
from . import checkpoint, resume, setup
from .evaluate import evaluate, multi_scale
from .prepare import EVAL_BATCH
from .save import WEIGHTS
from .segmenter import open_segmenter
from .tasks import TASKS


@dataclass(frozen=True)
class Opened:
    """A model and the val images that it is evaluated on, as its run would, or as was asked for."""

    config: Config
    device: torch.device
    datasets: sources.Datasets
    model: nn.Module
    data_config: dict[str, Any]
    loader: loaders.BatchLoader


def evaluate_model(name: str, given: Config, console: Console) -> dict[str, Any]:
    """The figures of a model on val images. Arguments and errors as of `open_model`."""
    opened = open_model(name, given, console)
    autocast, rules = setup.autocast(opened.config, opened.device), TASKS[opened.config.task].rules
    found = evaluate(opened.model, opened.loader, opened.device, autocast, rules, console=console)
    if opened.config.multi_scale:
        scaled = evaluate(
            opened.model, opened.loader, opened.device, autocast, rules, similarity=False, multi_scale=True
        )
        found |= multi_scale(scaled)
    return {"model": name, "data": opened.datasets.label, **found}


def open_model(name: str, given: Config, console: Console) -> Opened:
    """Load a model and open its val images.

    Args:
        name: A run's folder, a folder in it, or any checkpoint.
        given: What was given replaces the run's; without a batch size the figures are the run's to the last digit.
        console: Is told which of several weights are taken.

    Raises:
        CheckpointError: If there is no model, or it knows other classes than the data.
        DataError: If the data is missing, or cannot be read.
    """
    folder = run_of(Path(name)) if place(name).is_dir() else None
    config = resume.own_config(folder) if folder else given
    if folder and not (Path(name) / WEIGHTS[-1]).is_file():
        checkpoint.seeds_refused(Path(name))
        raise CheckpointError(
            f"{name} has no {WEIGHTS[-1]} yet: the run is not finished. neutreno-adapt --resume {folder} goes on."
        )
    config = replace(config, given=given.given, **{field: getattr(given, field) for field in given.given})
    device, task = setup.set_up_device(config, World()), TASKS[config.task]
    datasets = task.open_datasets(config)
    model = load(name, config, datasets, console)
    if config.limit_batches:
        sources.subsample(datasets.val, config.limit_batches * min(config.batch_size, len(datasets.train)))
    model = model.to(device)
    batch_size = config.batch_size if "batch_size" in given.given else min(config.batch_size, EVAL_BATCH)
    data_config = task.rules.data_config(model)
    loader = task.val_loader(datasets, batch_size, data_config, config, device, World())
    return Opened(config, device, datasets, model, data_config, loader)


def load(name: str, config: Config, datasets: sources.Datasets, console: Console) -> Any:
    """The model, which must know the data's classes.

    Raises:
        CheckpointError: If it does not, or is a model of another task.
    """
    if config.task == "segmentation":
        return load_segmenter(name, config, datasets)
    # a run's own are about the checkpoint that it came from
    own = {field: getattr(config, field) for field in ("arch", "model_kwargs", "weights") if field in config.given}
    source = checkpoint.resolve_checkpoint(name, **own)
    for note in source.notes:
        console.say(f"weights: {note}")
    mismatch = classification.head_mismatch(
        source.num_classes, source.label_names, datasets.num_classes, datasets.class_names
    )
    if mismatch:
        raise CheckpointError(f"{name} knows other classes than {datasets.label}: {mismatch}.")
    return checkpoint.build(source)


def load_segmenter(name: str, config: Config, datasets: sources.Datasets) -> Any:
    """A saved Segmenter, from a folder or the Hub. Errors as of `load`."""
    model = open_segmenter(name)
    names, theirs = model.class_names, datasets.class_names
    if model.num_classes != datasets.num_classes or (names and theirs and names != theirs):
        raise CheckpointError(
            f"{name} knows other classes than {datasets.label}: {model.num_classes} in the model, "
            f"{datasets.num_classes} in the data{'' if names == theirs else ', or other names'}."
        )
    if config.window_stride:
        model.stride = (config.window_stride, config.window_stride)
    return model


def run_of(folder: Path) -> Path | None:
    """The run that a folder is, or is a part of."""
    nearest = (folder, *list(folder.absolute().parents)[:3])
    return next((path for path in nearest if (path / resume.ARGUMENTS).is_file()), None)
