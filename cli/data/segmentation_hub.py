"""hfds/NAME as images with masks: a data set of the datasets library with an image and an annotation in every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm_neutreno.probing.errors import DataError as LibraryDataError
from timm_neutreno.probing.masks import indices

from ..config import Config
from ..errors import DataError, one_line
from .masks import MaskedImages, ignored_labels, number_of_labels
from .sources import Datasets

IMAGE, MASKS = "image", ("annotation", "label", "mask")  # names of columns; of several for masks the first


class HubImages(MaskedImages):
    """One split, whose rows hold PIL images. Arguments as of MaskedImages; `column` is that of the masks."""

    def __init__(self, rows: Any, name: str, column: str, labels: list[str], ignored: list[int], skip: bool):
        samples = [(f"{name}/{index}", f"{name}/{index}/{column}") for index in range(len(rows))]
        super().__init__(samples, Path(name), labels, ignored, skip)
        self.rows, self.column = rows, column

    def read(self, index: int) -> Any:
        name, mask_name = self.reader.samples[index]
        try:
            row = self.rows[int(name.rpartition("/")[2])]
            return self.pair(row[IMAGE].convert("RGB"), indices(row[self.column], mask_name), mask_name, name)
        except LibraryDataError as error:
            raise DataError(one_line(error)) from error
        except (OSError, SyntaxError) as error:
            raise DataError(f"cannot read {name}: {one_line(error)}. Pass --skip-bad-images to go on.") from error


def from_hub(config: Config) -> Datasets:
    """Open hfds/NAME.

    Raises:
        DataError: If it cannot be had, or has no masks, or --num-classes is missing.
    """
    assert config.data is not None
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(f"{config.data} needs a package that is not installed: pip install datasets.") from error
    if config.num_classes is None:
        raise DataError(f"{config.data} does not say how many classes it has. Say it with --num-classes.")
    ignored = ignored_labels(config.ignore_label, config.reduce_zero_label)
    count = number_of_labels(config.num_classes, ignored) or 0
    labels = [str(label) for label in range(count) if label not in ignored]
    name, sets = config.data.partition("/")[2], []
    for split in (config.train_split, config.val_split):
        try:
            rows = load_dataset(name, split=split, cache_dir=config.data_dir)
        except Exception as error:  # each source has its own exceptions
            raise DataError(f"cannot open {config.data}, split {split!r}: {one_line(error)[:300]}") from error
        column = next((column for column in MASKS if column in rows.column_names), None)
        if IMAGE not in rows.column_names or column is None:
            found = ", ".join(rows.column_names)
            raise DataError(f"{config.data} has no image with an annotation in a row; its columns are {found}.")
        sets.append(HubImages(rows, f"{config.data}/{split}", column, labels, ignored, config.skip_bad_images))
    train, val = sets
    if config.skip_bad_images:
        val.drop_unreadable()
    return Datasets(f"{config.data} ({config.train_split} / {config.val_split})", train, val, labels, len(labels))
