"""A few val images of a segmentation run: what each arm predicts there, kept with it and shown side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from timm_neutreno.segmenter.plots import plot_segmentations

from ..runtime import files
from .arms import Arm

COUNT = 4  # images, evenly spread over val
FILE, PICTURE = "examples.npz", "examples.png"


def chosen(val: Any) -> list[int]:
    """Their indices."""
    count = min(COUNT, len(val))
    return [index * len(val) // count for index in range(count)]


def predict(model: Any, val: Any, directory: Path) -> None:
    """Write the class of every pixel that a trained model gives, as examples.npz in the arm's folder."""
    labels, device = {}, next(model.parameters()).device
    model.eval()
    for index in chosen(val):
        image, mask = val[index]
        size = (mask.shape[0], mask.shape[1])
        labels[str(index)] = model.segment(image[None].to(device), size=size)[0].cpu().numpy().astype(np.int16)

    def write(beside: Path) -> None:
        with beside.open("wb") as file:
            np.savez_compressed(file, **labels)

    files.write_atomic(directory / FILE, write)


def plot(val: Any, arms: Sequence[Arm], class_names: Sequence[str] | None, directory: Path) -> None:
    """examples.png: image, truth, and what every arm predicts."""
    transform, val.transform = val.transform, None
    try:
        pairs = [val[index] for index in chosen(val)]
    finally:
        val.transform = transform
    photos = [image.permute(1, 2, 0).numpy() for image, _ in pairs]
    columns = {"truth": [mask.numpy() for _, mask in pairs]}
    for arm in arms:
        with np.load(arm.directory / FILE) as found:
            columns[arm.name] = [found[str(index)] for index in chosen(val)]
    with files.writing(directory / PICTURE):
        plot_segmentations(photos, columns, directory / PICTURE, class_names)
