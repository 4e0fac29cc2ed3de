"""Evaluating one model by itself, as a run would: the same preprocessing, batches and precision."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.models._input import get_model_input_config
from torch import Tensor

from timm_neutreno import strengths

from . import checkpoint, data, parallel, resume
from .adaptation import EVAL_BATCH, choose_device, other_classes, share_cores
from .config import AdaptConfig, resolve_recipe
from .errors import CheckpointError, DataError
from .evaluate import evaluate
from .evaluate_command import run_of
from .processes import Processes


def evaluate_model(name: str, given: dict[str, Any], batch_size: int | None) -> dict[str, Any]:
    """The figures of a model on val images.

    Args:
        name: A run's folder, a folder in it, or any checkpoint.
        given: Fields of AdaptConfig that replace the run's.
        batch_size: None for the run's, which makes the figures equal to the last digit.

    Raises:
        CheckpointError: If there is no model, or it knows other classes than the data.
        DataError: If the data is missing, or cannot be read.
    """
    folder = run_of(Path(name)) if Path(name).is_dir() else None
    config = resume.as_config(resume.read_arguments(folder)) if folder else AdaptConfig()
    if folder and not (Path(name) / "model.safetensors").is_file():
        raise CheckpointError(
            f"{name} has no model.safetensors yet: the run is not finished. neutreno-adapt --resume {folder} goes on."
        )
    config = replace(config, checkpoint=name, arch=None, model_kwargs={}, **given)
    recipe = resolve_recipe(config)
    device = choose_device(config.device, Processes())
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    share_cores(config, device)
    source = checkpoint.find(config.checkpoint)
    for note in source.notes:
        print(f"weights: {note}", file=sys.stderr)
    images = data.find(config)
    if images.num_classes != source.num_classes or other_classes(source, images):
        raise CheckpointError(f"{name} knows other classes than {images.label}: {other_classes(source, images)}.")
    size = batch_size or min(recipe.batch_size, EVAL_BATCH, _count(images.train))
    if config.limit_batches:
        data.thin(images.val, config.limit_batches * (batch_size or min(recipe.batch_size, _count(images.train))))
    model = checkpoint.build(source).to(device)
    data_config = {**resolve_model_data_config(model), "input_size": get_model_input_config(model)["input_size"]}
    loader = data.val_loader(images, size, data_config, config, device, Processes())
    found = evaluate(model, loader, device, parallel.autocast(config, device))
    if not found.images:
        raise DataError(f"{images.label} has no val images.")
    return {"model": name, "fidelity": _fidelity(model), "data": images.label, **asdict(found)}


def _fidelity(model: Any) -> str:
    values = [value for name, value in strengths(model).items() if name.endswith(".fidelity")]
    numbers = [x for v in values for x in (v.flatten().tolist() if isinstance(v, Tensor) else [v])]
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if low == high else f"{low:.2f} to {high:.2f}"


def _count(images: Any) -> int:
    return EVAL_BATCH if data.is_stream(images) else len(images)
