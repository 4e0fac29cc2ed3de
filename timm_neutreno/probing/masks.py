"""Masks on disk: pictures that hold a label index per pixel."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..pictures import UnreadableImage, opened
from .errors import DataError

MOST = 2**16  # labels, as many as a mask of 16 bits can hold


def read_mask(path: Path) -> np.ndarray:
    """(H, W) label indices.

    Raises:
        DataError: If the file cannot be read, or is no picture of indices.
    """
    try:
        with opened(path) as image:
            image.load()
    except UnreadableImage as error:
        raise DataError(f"cannot read the mask {path}: {error}.") from None
    return indices(image, str(path))


def indices(image: Image.Image, name: str) -> np.ndarray:
    """(H, W) label indices of a picture that is called `name`; raises DataError if it is no picture of indices."""
    if image.mode not in ("L", "P", "1", "I", "I;16"):
        raise DataError(
            f"the mask {name} is a picture of mode {image.mode}; masks must hold a label index per pixel (mode L or P)."
        )
    return np.asarray(image).astype(np.int64)


def find_labels(masks: Iterable[Path], ignore_label: int | Collection[int] | None, num_labels: int | None) -> list[str]:
    """The labels that are classes.

    Args:
        masks: Files to look at, if `num_labels` is None.
        ignore_label: The one that does not count, or several.
        num_labels: Labels are 0 to num_labels - 1.

    Raises:
        DataError: If they are too many to be classes.
    """
    ignored = several(ignore_label)
    if num_labels is None:
        read = map(read_mask, masks)
        num_labels = 1 + max(int(mask.max(initial=0, where=~np.isin(mask, ignored))) for mask in read)
    if num_labels > MOST:
        raise DataError(
            f"labels from 0 to {num_labels - 1} are more than {MOST:,} classes: check the masks, or the number given."
        )
    return [str(label) for label in range(num_labels) if label not in ignored]


def several(labels: int | Collection[int] | None) -> list[int]:
    """One label, several or none as a list."""
    return [] if labels is None else [labels] if isinstance(labels, int) else list(labels)


def to_classes(
    mask: np.ndarray,
    name: str,
    image: str,
    size: tuple[int, int],
    labels: Sequence[str],
    ignore_label: int | Collection[int] | None,
    void: int,
) -> np.ndarray:
    """(H, W) class indices, `void` where the label does not count.

    Args:
        mask: Label indices.
        name: Of the mask, for messages.
        image: Name of its image.
        size: Width and height of that.
        labels: Those that are classes, by index, as `find_labels` gives them.
        ignore_label: The label that does not count, or several.
        void: What stands for them in the result.

    Raises:
        DataError: If the mask has another size than its image, or a label that is not known.
    """
    if mask.shape[::-1] != size:
        raise DataError(
            f"the mask {name} has {mask.shape[1]} x {mask.shape[0]} pixels and its image {image} {size[0]} x {size[1]}."
        )
    known = [int(label) for label in labels]
    index = np.full(1 + max(known), void)
    index[known] = range(len(known))
    ignored = np.isin(mask, several(ignore_label))
    if (bad := mask[~ignored]).size and (bad.max() >= len(index) or bad.min() < 0):
        label = bad.max() if bad.max() >= len(index) else bad.min()
        raise DataError(
            f"the mask {name} has the label {label}, beyond the {len(index)} labels that are known (0 to "
            f"{len(index) - 1}); say which label does not count, or how many there are."
        )
    return np.where(ignored, void, index[np.where(ignored, 0, mask)])
