"""What `--data` names: train and val images with one class list."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import ImageDataset, create_dataset

from timm_neutreno.pictures import SUFFIXES, UnreadableImage, read_rgb

from ..config import Config, place
from ..errors import DataError, one_line

TRAIN_NAMES, VAL_NAMES = ("train", "training"), ("val", "validation", "valid", "test")
STREAMS = ("wds", "hfids", "tfds")  # sources of timm without a place for each image


@dataclass
class Datasets:
    """Train and val images.

    Attributes:
        label: How to call the data in print.
        train: Yields (image, class index).
        val: Yields (image, class index) of other images.
        class_names: By index; None where the source has no names.
        num_classes: Number of classes, which is the size of the head that fits.
    """

    label: str
    train: Any
    val: Any
    class_names: list[str] | None
    num_classes: int

    @property
    def skipped(self) -> int:
        """Reads of unreadable images that were passed over so far, in all loader processes."""
        return sum(part.skipped.value for part in (self.train, self.val) if hasattr(part, "skipped"))


def open_datasets(config: Config) -> Datasets:
    """Open the data.

    Raises:
        DataError: If it is missing, empty, or its two parts do not have the same classes.
    """
    if config.data in (None, "demo"):
        from timm_neutreno.demo import demo_data_directory

        try:
            return _from_split_folder(demo_data_directory(), config, "demo (handwritten digits)")
        except (ModuleNotFoundError, RuntimeError) as error:
            raise DataError(one_line(error)) from error
    assert config.data is not None
    path = place(config.data)
    if path.is_dir():
        if _child(path, TRAIN_NAMES):
            return _from_split_folder(path, config, config.data)
        return _from_plain_folder(path, config)
    if path.exists():
        raise DataError(f"{path} is a file. Give a folder with train/ and val/, or a folder of class folders.")
    scheme = config.data.partition("/")[0].lower()
    if scheme in STREAMS:
        raise DataError(
            f"{config.data} is a stream: it cannot be entered in the middle, so that a run could not be resumed, nor "
            "dealt out to processes. Use a folder of images, torch/NAME or hfds/NAME."
        )
    if scheme in ("torch", "hfds"):
        return _from_scheme(config)
    raise DataError(
        f"no such folder: {config.data}. Give a folder of images by class, or a source of timm: torch/NAME "
        "or hfds/NAME."
    )


def _child(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _class_folders(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}


def _from_split_folder(folder: Path, config: Config, label: str) -> Datasets:
    train, val = _child(folder, TRAIN_NAMES), _child(folder, VAL_NAMES)
    assert train is not None
    if val is None:
        raise DataError(
            f"{folder} has {train.name}/ but no val/ or validation/ folder. Add one, or give {train} itself."
        )
    train_set = _image_folder(train, None, config)
    missing = _class_folders(val) - _class_folders(train), _class_folders(train) - _class_folders(val)
    if any(missing):
        parts = [
            f"only in {part.name}/: {', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''}"
            for part, names in zip((val, train), missing, strict=True)
            if names
        ]
        raise DataError(f"the class folders of {folder} differ: {'; '.join(parts)}. Both need the same names.")
    classes = train_set.reader.class_to_idx
    if val.name == "test":
        label = f"{label} (val: its test/)"
    return Datasets(label, train_set, _image_folder(val, classes, config), list(classes), len(classes))


def _from_plain_folder(folder: Path, config: Config) -> Datasets:
    """Split a folder of class folders: the same part of every class, drawn with a seed."""
    fraction = config.val_fraction or 0.1
    train, val = _image_folder(folder, None, config), _image_folder(folder, None, config)
    by_class: dict[int, list[tuple[str, int]]] = {}
    for sample in train.reader.samples:
        by_class.setdefault(sample[1], []).append(sample)
    names = list(train.reader.class_to_idx)
    draw = random.Random(config.seed if config.split_seed is None else config.split_seed)
    train.reader.samples, val.reader.samples = [], []
    for index, samples in sorted(by_class.items()):
        draw.shuffle(samples)
        held = max(1, round(len(samples) * fraction))
        if held >= len(samples):
            raise DataError(f"class {names[index]!r} in {folder} has too few images ({len(samples)}) to split off val.")
        val.reader.samples += samples[:held]
        train.reader.samples += samples[held:]
    label = f"{config.data} (val: {fraction:g} of every class)"
    return Datasets(label, train, val, names, len(names))


def _check_links(folder: Path, above: tuple[Path, ...] = ()) -> None:
    """Refuse links that would make images count several times, or a class vanish; timm follows them."""
    above = (*above, folder.resolve())
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink() and not path.exists() and path.suffix.lower() not in SUFFIXES:
                raise DataError(
                    f"{path} is a link to nothing: a folder of images that is not there would not be missed."
                )
            if not entry.is_dir():
                continue
            if entry.is_symlink() and path.resolve() in above:
                raise DataError(f"{path} is a link to a folder that it stands in: its images would count many times.")
            _check_links(path, above)


def _image_folder(folder: Path, classes: dict[str, int] | None, config: Config) -> CheckedImages:
    _check_links(folder)
    try:
        images = CheckedImages(
            str(folder), skip=config.skip_bad_images, class_map=classes or "", input_key=";".join(SUFFIXES)
        )
    except RuntimeError as error:
        raise DataError(f"there are no images ({', '.join(SUFFIXES)}) in the folders of {folder}.") from error
    if not _class_folders(folder):
        raise DataError(
            f"{folder} has images but no class folders. Put the images of each class in a folder of its own."
        )
    if classes is not None and config.skip_bad_images:
        images.drop_unreadable()  # in val a replacement would be counted twice
    return images


def read_image(path: str) -> Image.Image:
    """The pixels of a file of the data, RGB; raises DataError if it cannot be read."""
    try:
        return read_rgb(path)
    except UnreadableImage as error:
        raise DataError(
            f"cannot read the image {path}: {error}. Repair or remove it, or pass --skip-bad-images."
        ) from error


class Skipping(ABC):
    """Images of `reader.samples` of which an unreadable one is an error, or passed over and counted.

    Args:
        skip: Pass over them.
    """

    reader: Any
    transform: Any

    def __init__(self, skip: bool):
        self.skip = skip
        self.skipped = multiprocessing.Value("q", 0)  # loader processes count into one number

    def __len__(self) -> int:
        return len(self.reader.samples)

    def __getitem__(self, index: int):
        for offset in range(len(self)):
            try:
                return self.read((index + offset) % len(self))
            except DataError:
                if not self.skip:
                    raise
                self._count()
        raise DataError(f"none of the images in {self.reader.root} can be read.")

    @abstractmethod
    def read(self, index: int) -> Any:
        """One item; raises DataError if it cannot be read."""

    def _count(self) -> None:
        with self.skipped.get_lock():
            self.skipped.value += 1

    def drop_unreadable(self) -> None:
        """Read every image once and leave out those that cannot be read."""
        readable = []
        transform, self.transform = self.transform, None
        for index, sample in enumerate(self.reader.samples):
            try:
                self.read(index)
                readable.append(sample)
            except DataError:
                self._count()
        self.transform = transform
        if not readable:
            raise DataError(f"none of the images in {self.reader.root} can be read.")
        self.reader.samples = readable


class CheckedImages(Skipping, ImageDataset):
    """timm's folder of images, but an unreadable image is named, not replaced by its neighbour without a word."""

    def __init__(self, root: str, *, skip: bool, **kwargs: Any):
        ImageDataset.__init__(self, root, **kwargs)
        Skipping.__init__(self, skip)

    def read(self, index: int) -> Any:
        path, target = self.reader.samples[index]
        pixels = read_image(path)
        return (self.transform(pixels) if self.transform else pixels), target


def _from_scheme(config: Config) -> Datasets:
    """One of timm's own data sources; it finds splits and classes its own way."""
    assert config.data is not None
    parts = {}
    for role, split in (("train", config.train_split), ("val", config.val_split)):
        try:
            parts[role] = create_dataset(
                config.data, root=config.data_dir, split=split, is_training=role == "train", seed=config.seed,
                download=config.data_dir is not None, batch_size=1,
            )  # fmt: skip
        except ImportError as error:
            raise DataError(f"{config.data} needs a package that is not installed: {one_line(error)}.") from error
        except Exception as error:  # each source has its own exceptions
            raise DataError(
                f"cannot open {config.data}, split {split!r} (data dir: {config.data_dir or 'the default'}): "
                f"{one_line(error)[:300]}"
            ) from error
    names = _scheme_classes(parts["train"])
    if names is None and config.num_classes is None:
        raise DataError(f"{config.data} does not say how many classes it has. Say it with --num-classes.")
    label = f"{config.data} ({config.train_split} / {config.val_split})"
    return Datasets(label, parts["train"], parts["val"], names, config.num_classes or len(names or ()))


def _scheme_classes(dataset: Any) -> list[str] | None:
    if getattr(dataset, "classes", None):  # torchvision
        return [str(name) for name in dataset.classes]
    classes = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    return list(classes) if classes else None


def subsample(images: Any, count: int) -> None:
    """Keep `count` images, spread evenly: the first ones of a folder would be of one class."""
    samples = getattr(getattr(images, "reader", None), "samples", None)
    if samples and len(samples) > count:
        images.reader.samples = [samples[i * len(samples) // count] for i in range(count)]


def check_equal(prints: Sequence[dict[str, Any]]) -> None:
    """Refuse data that is not the same in all processes, whose fingerprints these are: each would train on its own.

    Raises:
        DataError: With the first process that differs, and in what.
    """
    for rank, other in enumerate(prints):
        for name, value in prints[0].items():
            if other.get(name) != value:
                raise DataError(
                    f"process {rank} has other data than process 0: {name} are {other.get(name)}, there {value}. Every "
                    "machine needs the same files under --data."
                )


def _target(target: Any, root: str) -> int | str:
    """A class index, or the name of a mask."""
    return os.path.relpath(target, root) if isinstance(target, str) else int(target)


def fingerprint(data: Datasets) -> dict[str, Any]:
    """What tells one set of images from another: how many, their classes, and a hash of names and classes."""
    parts: dict[str, Any] = {"classes": data.class_names or data.num_classes}
    for name, images in (("train", data.train), ("val", data.val)):
        samples = getattr(getattr(images, "reader", None), "samples", None)
        parts[f"{name} images"] = len(images)
        if samples:
            root = str(images.reader.root)
            named = [[os.path.relpath(path, root), _target(target, root)] for path, target in samples]
            text = json.dumps(named)
            parts[f"{name} names"] = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return parts
