"""Folders of images as data to probe: class folders, or images/ and annotations/ of a segmentation data set.

    DATA/train/<class>/*.jpg, DATA/val/..., DATA/test/...          one class per image
    DATA/images/train/*.jpg, DATA/annotations/train/*.png, ...     masks of label indices (CamVid, ADE20K)

val and test may be missing. Then train is split, always in the same way: of two parts the second is the test part and
val is a fifth of train; of one part a fifth is val and a fifth test.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..pictures import SUFFIXES
from .errors import DataError
from .masks import find_labels

PARTS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test", "testing")}
FIFTH = 5
Sample = tuple[Path, Any]  # an image and its class index, or the file of its mask


@dataclass(frozen=True)
class Folder:
    """A data set on disk.

    Attributes:
        task: "classification" or "segmentation".
        samples: "train", "val", "test" -> image files, each with its class index or the file of its mask.
        classes: Names of the classes, or the labels in the masks, by class index.
        about: Where val and test come from.
    """

    task: str
    samples: dict[str, list[Sample]]
    classes: list[str]
    about: str


def open_folder(
    path: str | Path, *, ignore_label: int | None = None, num_labels: int | None = None, limit: int | None = None
) -> Folder:
    """Find the images of a data set.

    Args:
        path: The folder.
        ignore_label: Label in the masks that does not count: 11 in CamVid, 0 in ADE20K.
        num_labels: Labels in the masks are 0 to num_labels - 1; None looks at all train masks.
        limit: At most so many images of each part, evenly spread.

    Raises:
        DataError: If images, masks or classes are missing, or classes differ between parts.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; give a folder of images.")
    if (path / "images").is_dir():
        task, parts = "segmentation", segmentation_parts(path)
        classes: list[str] = []
    else:
        task = "classification"
        parts, classes = _class_parts(path)
    samples, about = _split(parts, task)
    if limit:
        samples = {part: spread(found, limit) for part, found in samples.items()}
    if task == "segmentation":
        classes = find_labels((mask for _, mask in samples["train"]), ignore_label, num_labels)
    if len(classes) < 2:
        what = "label" if task == "segmentation" else "class"
        raise DataError(f"{path} has only one {what} ({', '.join(classes)}), so there is nothing to tell apart.")
    return Folder(task, samples, classes, about)


def _parts(folder: Path) -> dict[str, Path]:
    """The sub-folders for train, val and test; the folder itself is train if it has none."""
    found = {
        part: folder / name for part, names in PARTS.items() for name in reversed(names) if (folder / name).is_dir()
    }
    return found if "train" in found else {"train": folder}


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def segmentation_parts(path: Path) -> dict[str, list[Sample]]:
    """The images of every part, each with the file of its mask.

    Raises:
        DataError: If masks are missing.
    """
    if not (path / "annotations").is_dir():
        raise DataError(f"{path} has images/ but no annotations/: put the masks there, named like the images.")
    parts: dict[str, list[Sample]] = {}
    for part, folder in _parts(path / "images").items():
        masks = path / "annotations" / folder.relative_to(path / "images")
        known = {mask.relative_to(masks).with_suffix(""): mask for mask in _images(masks)} if masks.is_dir() else {}
        if not known:
            raise DataError(f"there are no masks in {masks}; they must be image files named like those in {folder}.")
        images = _images(folder)
        if without := [image for image in images if image.relative_to(folder).with_suffix("") not in known]:
            raise DataError(f"{len(without)} of {len(images)} images have no mask in {masks}, such as {without[0]}.")
        parts[part] = [(image, known[image.relative_to(folder).with_suffix("")]) for image in images]
    return parts


def _class_parts(path: Path) -> tuple[dict[str, list[Sample]], list[str]]:
    parts: dict[str, list[Sample]] = {}
    classes: list[str] = []
    for part, folder in _parts(path).items():
        names = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
        if not names:
            raise DataError(
                f"{folder} has no class folders: put the images of each class in a folder of its own, or for "
                "segmentation use images/ and annotations/."
            )
        classes = classes or names
        if names != classes:
            differ = sorted(set(names) ^ set(classes))
            raise DataError(f"the class folders of {path} differ between its parts: {', '.join(differ[:5])}.")
        parts[part] = [(image, index) for index, name in enumerate(names) for image in _images(folder / name)]
        if empty := [name for index, name in enumerate(names) if index not in {label for _, label in parts[part]}]:
            raise DataError(f"there are no images in {folder / empty[0]}.")
    return parts, classes


def _split(parts: dict[str, list[Sample]], task: str) -> tuple[dict[str, list[Sample]], str]:
    """Train, val and test, and where they come from."""
    train = parts["train"]
    if "val" in parts and "test" in parts:
        return {part: parts[part] for part in PARTS}, "train, val and test of the folder"
    if len(parts) == 2:
        other = "val" if "val" in parts else "test"
        train, val = _hold_out(train, task)
        return {
            "train": train,
            "val": val,
            "test": parts[other],
        }, f"test is {other} of the folder, val a fifth of its train"
    train, held = _hold_out(train, task, 2)
    val, test = _hold_out(held, task, 1, 2)
    return {"train": train, "val": val, "test": test}, "val and test are a fifth of the images each"


def _hold_out(samples: list[Sample], task: str, share: int = 1, of: int = FIFTH) -> tuple[list[Sample], list[Sample]]:
    """The samples without `share` / `of` of them, drawn per class, and those.

    Raises:
        DataError: If nothing is left.
    """
    groups: dict[Any, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(None if task == "segmentation" else sample[1], []).append(sample)
    draw = random.Random(0)
    kept: list[Sample] = []
    held: list[Sample] = []
    for members in groups.values():
        number = max(1, len(members) * share // of)
        if number >= len(members):
            raise DataError(
                f"{len(members)} images ({members[0][0].parent}) are too few to split; add images, or val/ and test/."
            )
        picked = set(draw.sample(range(len(members)), number))
        for index, sample in enumerate(members):
            (held if index in picked else kept).append(sample)
    return kept, held


def spread(samples: list[Sample], limit: int) -> list[Sample]:
    """At most so many of the samples, evenly over all."""
    count = min(limit, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]
