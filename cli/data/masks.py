"""Images with masks, one item after the other: what is read, checked and counted as a label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from timm_neutreno.probing.errors import DataError as LibraryDataError
from timm_neutreno.probing.masks import read_mask, to_classes

from ..errors import DataError, one_line
from .sources import Skipping, read_image

VOID = -1  # in masks: a pixel that does not count


class MaskedImages(Skipping):
    """The images of one part, (3, H, W) uint8, with masks, (H, W) class indices and VOID.

    Args:
        samples: Image files, each with the file of its mask.
        root: The folder of both, for names.
        labels: Those in the masks that are classes, by index.
        ignored: Those that do not count.
        skip: Pass over what cannot be read.
    """

    def __init__(self, samples: list[tuple[Any, Any]], root: Path, labels: list[str], ignored: list[int], skip: bool):
        super().__init__(skip)
        self.reader = SimpleNamespace(samples=[(str(image), str(mask)) for image, mask in samples], root=root)
        self.labels, self.ignored = labels, ignored
        self.transform: Callable[[Tensor, Tensor], Any] | None = None

    def __len__(self) -> int:
        return len(self.reader.samples)

    def filename(self, index: int, absolute: bool = False) -> str:
        return self.reader.samples[index][0]

    def read(self, index: int) -> Any:
        path, mask_path = self.reader.samples[index]
        pixels = read_image(path)
        try:
            return self.pair(pixels, read_mask(Path(mask_path)), mask_path, path)
        except LibraryDataError as error:
            raise DataError(one_line(error)) from error

    def pair(self, pixels: Image.Image, mask: np.ndarray, mask_name: str, name: str) -> Any:
        """An item of an image and its labels."""
        classes = to_classes(mask, mask_name, name, pixels.size, self.labels, self.ignored, VOID)
        image, target = torch.from_numpy(np.array(pixels)).permute(2, 0, 1), torch.from_numpy(classes)
        return self.transform(image, target) if self.transform else (image, target)


def ignored_labels(ignore_label: int | None, reduce_zero_label: bool) -> list[int]:
    """The labels that do not count."""
    return ([0] if reduce_zero_label else []) + ([] if ignore_label is None else [ignore_label])


def number_of_labels(num_classes: int | None, ignored: list[int]) -> int | None:
    """How many labels there are, from 0 on, with those that do not count among them; None if it is to be found out."""
    return num_classes and num_classes + sum(label < num_classes for label in set(ignored))
