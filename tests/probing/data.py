"""Small random images that can be told apart a little, as folders and as batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hosts import SMALL, randomize
from PIL import Image
from torch import Tensor, nn

SIZE, CLASSES = 32, 3
COLORS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [120, 120, 120]])


def model(name: str = "vit_tiny_patch16_224", **kwargs) -> nn.Module:
    """Patches of 8 pixels, 4 blocks, random weights."""
    import timm

    return randomize(timm.create_model(name, **{**SMALL, "num_classes": 0, **kwargs})).eval()


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(count, 3, SIZE, SIZE) with classes 0, 1, 2, 0, ... that differ a little in colour."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    shift = torch.nn.functional.one_hot(labels, 3)[:, :, None, None] * 0.2
    return torch.randn(count, 3, SIZE, SIZE, generator=draw) * 0.7 + shift, labels


def batches(count: int, seed: int, size: int = 7) -> list[tuple[Tensor, Tensor]]:
    x, y = images(count, seed)
    return list(zip(x.split(size), y.split(size), strict=True))


def scenes(count: int, seed: int, height: int = 20, width: int = 26) -> list[tuple[Tensor, list[Tensor]]]:
    """One batch: left in an image is class 0, right 1 or 2, void between; masks have another size than images."""
    x, labels = images(count, seed)
    masks = []
    for index in range(count):
        mask = torch.zeros(height, width, dtype=torch.long)
        edge = 8 + 2 * (index % 5)
        mask[:, edge:] = 1 + int(labels[index]) % 2
        mask[:, edge] = -1
        x[index, :, :, : edge * SIZE // width] += 0.8
        masks.append(mask)
    return [(x, masks)]


def write_classes(folder: Path, parts: dict[str, int], names=("a", "b", "c")) -> Path:
    """folder/<part>/<class>/<n>.png; part "" for the folder itself."""
    draw = np.random.default_rng(0)
    for part, count in parts.items():
        for index, name in enumerate(names):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = (COLORS[index] + draw.normal(0, 60, (36, 40, 3))).clip(0, 255).astype("uint8")
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return folder


def write_scenes(folder: Path, parts: dict[str, int], void: int = 3) -> Path:
    """folder/images/<part>/<n>.png and folder/annotations/<part>/<n>.png with labels 0, 1, 2 and void."""
    draw = np.random.default_rng(0)
    for part, count in parts.items():
        for kind in ("images", "annotations"):
            (folder / kind / part).mkdir(parents=True)
        for number in range(count):
            labels = np.zeros((24, 40), dtype="uint8")
            labels[:, 10 + number % 9 :] = 1
            labels[14:] = 2
            labels[:, 10 + number % 9] = void
            pixels = (COLORS[labels] + draw.normal(0, 40, (24, 40, 3))).clip(0, 255).astype("uint8")
            Image.fromarray(pixels).save(folder / "images" / part / f"{number}.png")
            Image.fromarray(labels).save(folder / "annotations" / part / f"{number}.png")
    return folder
