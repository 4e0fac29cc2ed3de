"""CIFAR-10 as tensors in memory, for training loops that must not wait for a loader."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import torch
from cifar10 import prepare
from timm_neutreno_cli.runtime.files import write_atomic
from torch import Tensor


class Images(NamedTuple):
    """(n, channels, S, S) uint8, and their classes, (n,) int64."""

    pixels: Tensor
    labels: Tensor

    def to(self, device: str) -> Images:
        return Images(*(tensor.to(device) for tensor in self))


def cifar10(folder: Path, numbers: dict[str, int], kept: Path) -> tuple[Images, Images]:
    """CIFAR-10's own train and test images, so many of each; decoded once.

    Args:
        folder: With train/ and val/, as cifar10.py makes it; val/ is CIFAR-10's test set.
        numbers: "train" and "test": how many images; the same ones at every call.
        kept: Folder for the decoded ones.
    """
    parts = []
    for part, name in (("train", "train"), ("test", "val")):
        path = kept / f"cifar10-{part}-{numbers[part]}.pt"
        if not path.exists():
            images = decode(prepare(folder) / name, numbers[part])
            write_atomic(path, lambda beside, images=images: torch.save(tuple(images), beside))
        parts.append(Images(*torch.load(path, weights_only=True)))
    return parts[0], parts[1]


def decode(folder: Path, number: int) -> Images:
    """`number` images of <class>/<name>, drawn from all of them."""
    import numpy as np
    from PIL import Image

    classes = sorted(path.name for path in folder.iterdir())
    files = random.Random(0).sample(sorted(folder.glob("*/*")), number)
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files])
    return Images(pixels.permute(0, 3, 1, 2).contiguous(), torch.tensor([classes.index(f.parent.name) for f in files]))


def normalized(pixels: Tensor) -> Tensor:
    """0 to 255 as -1 to 1."""
    return pixels.float() / 127.5 - 1


def batch(images: Images, size: int, seed: int, step: int, *, shift: int, flip: bool) -> tuple[Tensor, Tensor]:
    """Images of a step, (B, channels, S, S), and their classes: the same ones at every call with the same numbers.

    Every epoch has its own order, and moves (and mirrors) every image anew.

    Args:
        images: All that there are to train on.
        size: B; what does not fill a batch at the end of an epoch is left out of it.
        seed: Of order, shifts and flips.
        step: Counted from 0 over all epochs.
        shift: Largest shift in pixels up, down, left and right; zeros come in.
        flip: Whether half of the images are mirrored.
    """
    n, S = len(images.labels), images.pixels.shape[-1]
    epoch, step = divmod(step, n // size)
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    order = torch.randperm(n, generator=generator)
    corners = torch.randint(2 * shift + 1, (n, 2), generator=generator)
    mirrored = torch.rand(n, generator=generator) < 0.5 * flip
    here = slice(step * size, (step + 1) * size)
    places, mirrored, corners = order[here], mirrored[here, None], corners[here, :, None]
    rows, columns = (corners + torch.arange(S)).unbind(1)
    columns = torch.where(mirrored, columns.flip(1), columns)
    device = images.pixels.device
    places, rows, columns = (tensor.to(device) for tensor in (places, rows, columns))
    padded = torch.nn.functional.pad(images.pixels[places], (shift,) * 4)
    within = torch.arange(len(places), device=device)[:, None, None]
    cut = padded[within, :, rows[:, :, None], columns[:, None, :]]  # (B, S, S, channels)
    return normalized(cut.permute(0, 3, 1, 2)), images.labels[places]
