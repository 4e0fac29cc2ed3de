"""Evaluating one model by itself, as a run would: the same preprocessing, batches and precision."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm.data import resolve_model_data_config
from timm.models._input import get_model_input_config

from ..config import Config, from_yaml
from ..data import loaders, sources
from ..errors import CheckpointError
from ..runtime.console import Console
from ..runtime.processes import World
from ..tasks import classification
from . import checkpoint, resume, setup
from .evaluate import evaluate
from .prepare import EVAL_BATCH
from .save import WEIGHTS


def evaluate_model(name: str, given: Config) -> dict[str, Any]:
    """The figures of a model on val images.

    Args:
        name: A run's folder, a folder in it, or any checkpoint.
        given: What was given replaces the run's; without a batch size the figures are the run's to the last digit.

    Raises:
        CheckpointError: If there is no model, or it knows other classes than the data.
        DataError: If the data is missing, or cannot be read.
    """
    folder = run_of(Path(name)) if Path(name).is_dir() else None
    config = from_yaml(resume.read_arguments(folder)) if folder else given
    if folder and not (Path(name) / WEIGHTS[-1]).is_file():
        checkpoint.seeds_refused(Path(name))
        raise CheckpointError(
            f"{name} has no {WEIGHTS[-1]} yet: the run is not finished. neutreno-adapt --resume {folder} goes on."
        )
    config = replace(config, **{field: getattr(given, field) for field in given.given})
    device = setup.set_up_device(config, World())
    source = checkpoint.resolve_checkpoint(name)
    for note in source.notes:
        print(f"weights: {note}", file=sys.stderr)
    datasets = sources.open_datasets(config)
    mismatch = classification.head_mismatch(
        source.num_classes, source.label_names, datasets.num_classes, datasets.class_names
    )
    if mismatch:
        raise CheckpointError(f"{name} knows other classes than {datasets.label}: {mismatch}.")
    if config.limit_batches:
        sources.subsample(datasets.val, config.limit_batches * min(config.batch_size, len(datasets.train)))
    model: Any = checkpoint.build(source).to(device)
    data_config = {**resolve_model_data_config(model), "input_size": get_model_input_config(model)["input_size"]}
    batch_size = config.batch_size if "batch_size" in given.given else min(config.batch_size, EVAL_BATCH)
    loader = loaders.val_loader(datasets, batch_size, data_config, config, device, World())
    found = evaluate(model, loader, device, setup.autocast(config, device), console=Console())
    return {"model": name, "data": datasets.label, **found}


def run_of(folder: Path) -> Path | None:
    """The run that a folder is, or is a part of."""
    nearest = (folder, *list(folder.absolute().parents)[:3])
    return next((path for path in nearest if (path / resume.ARGUMENTS).is_file()), None)
