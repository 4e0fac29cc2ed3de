"""A trained model as timm loads it: model.safetensors and config.json, both complete or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf
from torch import nn

from timm_neutreno import Segmenter, is_patched
from timm_neutreno.hub import save_pretrained
from timm_neutreno.hub.save import say_classes_once

from ..errors import TrainingError
from ..runtime import files
from .arms import CONTROL

WEIGHTS = ("config.json", "model.safetensors")  # in the order in which they are put in place


def save_model(
    model: nn.Module, directory: Path, data_config: dict[str, Any], class_names: Sequence[str] | None
) -> None:
    """Write the files that `timm.create_model("local-dir:...")` reads.

    Args:
        model: A patched model, or timm's own.
        directory: Made if missing.
        data_config: Preprocessing that the model was trained with.
        class_names: By index; None if the data has none.

    Raises:
        TrainingError: If a weight is not finite.
        OutputError: If the files cannot be written; those that were there stay.
    """
    if any(not torch.isfinite(p).all() for p in model.parameters()):
        raise TrainingError(f"the trained weights are not finite. The last checkpoint is in {directory}; lower --lr.")
    files.make_directory(directory)
    beside = directory / files.SAVING
    model.eval().to(memory_format=torch.contiguous_format)
    with files.writing(directory / WEIGHTS[-1]):
        shutil.rmtree(beside, ignore_errors=True)  # what a killed process had written
        if isinstance(model, Segmenter):
            model.save_pretrained(beside)
        elif is_patched(model):
            save_pretrained(model, beside, data_config=data_config, label_names=class_names, tag="neutreno")
        else:
            about: dict[str, Any] = {
                "pretrained_cfg": {"tag": CONTROL},
                **({"label_names": list(class_names)} if class_names else {}),
            }
            save_for_hf(model, str(beside), model_config=about, data_config=data_config, safe_serialization=True)
            say_classes_once(beside / "config.json")
            shutil.copymode(beside / "config.json", beside / WEIGHTS[-1])
        for name in WEIGHTS:  # the weights last: where they are, the arm is done
            files.put_in_place(beside / name, directory / name)
        shutil.rmtree(beside, ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
