"""CIFAR-10 as 60,000 JPEG files: FOLDER/{train,val}/<class>/*.jpg, 50,000 and 10,000 of 32x32 pixels."""

from __future__ import annotations

import shutil
import sys
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any


def prepare(folder: Path, archive: Path | None = None) -> Path:
    """Make the folder, unless it is there.

    Args:
        folder: With train/ and val/ afterwards.
        archive: A tar of {train,val}/<class>/*.jpg, at any depth; None: torchvision downloads CIFAR-10.
    """
    if (folder / "train").is_dir():
        return folder
    beside = folder.with_name(f".{folder.name}.part")  # whole or not there
    print(f"making {folder} ...", file=sys.stderr)
    if archive is not None:
        unpack(archive, beside)
    else:
        from torchvision.datasets import CIFAR10

        write(beside, {part: CIFAR10(str(folder) + "-download", part == "train", download=True) for part in PARTS})
    beside.rename(folder)
    return folder


PARTS = ("train", "val")


def unpack(archive: Path, folder: Path) -> None:
    """The archive's images; what stands before train/ and val/ in their names is left out."""
    with tarfile.open(archive) as files:
        for member in files:
            parts = Path(member.name).parts
            start = next((index for index, part in enumerate(parts) if part in PARTS), None)
            if start is not None and member.isfile():
                target = folder.joinpath(*parts[start:])
                target.parent.mkdir(parents=True, exist_ok=True)
                content = files.extractfile(member)
                assert content is not None
                target.write_bytes(content.read())


def write(folder: Path, datasets: dict[str, Any]) -> None:
    """torchvision's datasets as files."""
    for part, images in datasets.items():
        for name in images.classes:
            (folder / part / name).mkdir(parents=True, exist_ok=True)
        for index, (image, label) in enumerate(images):
            image.save(folder / part / images.classes[label] / f"{index:05}.jpg", quality=95)


def choose(source: Path, target: Path, counts: dict[str, tuple[str, int]]) -> Path:
    """Make the folder, unless it is there: links to some images of every class, evenly spread, none of them twice.

    Args:
        source: What `prepare` makes.
        target: Gets a folder of class folders for each name.
        counts: Name -> which of the source's parts, and how many of its images.
    """
    if target.exists():
        return target
    beside = target.with_name(f".{target.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    for part in PARTS:
        wanted = {name: count for name, (origin, count) in counts.items() if origin == part}
        for label in sorted(each for each in (source / part).iterdir() if each.is_dir() and wanted):
            images, total = sorted(label.iterdir()), sum(wanted.values()) // 10
            spread = iter([images[i * len(images) // total] for i in range(total)])
            for name, count in wanted.items():
                (beside / name / label.name).mkdir(parents=True)
                for image in islice(spread, count // 10):
                    (beside / name / label.name / image.name).symlink_to(image.resolve())
    beside.rename(target)
    return target
