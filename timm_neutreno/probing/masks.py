"""Masks on disk: pictures that hold a label index per pixel."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..pictures import UnreadableImage, opened
from .errors import DataError


def read_mask(path: Path) -> np.ndarray:
    """(H, W) label indices.

    Raises:
        DataError: If the file cannot be read, or is no picture of indices.
    """
    try:
        with opened(path) as image:
            mode, labels = image.mode, np.asarray(image)
    except UnreadableImage as error:
        raise DataError(f"cannot read the mask {path}: {error}.") from None
    if mode not in ("L", "P", "1", "I", "I;16"):
        raise DataError(
            f"the mask {path} is a picture of mode {mode}; masks must hold a label index per pixel (mode L or P)."
        )
    return labels.astype(np.int64)


def find_labels(masks: Iterable[Path], ignore_label: int | None, num_labels: int | None) -> list[str]:
    """The labels that are classes.

    Args:
        masks: Files to look at, if `num_labels` is None.
        ignore_label: The one that does not count.
        num_labels: Labels are 0 to num_labels - 1.
    """
    if num_labels is None:
        read = map(read_mask, masks)
        num_labels = 1 + max(int(mask.max(initial=0, where=mask != ignore_label)) for mask in read)
    return [str(label) for label in range(num_labels) if label != ignore_label]
