"""What `--data` names: train and val images with one class list, and timm's loaders over them."""

from __future__ import annotations

import multiprocessing
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import FastCollateMixup, ImageDataset, create_dataset, create_loader
from torch.utils.data import DataLoader

from .config import AdaptConfig, Recipe
from .errors import DataError, one_line

TRAIN_NAMES, VAL_NAMES = ("train", "training"), ("val", "validation", "valid", "test")


@dataclass
class Data:
    """Train and val images.

    Attributes:
        label: How to call the data in print.
        train: Yields (image, class index).
        val: Likewise, another part of the data.
        class_names: By index; None where the source has no names.
        num_classes: Size of the head that fits.
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


def find(config: AdaptConfig) -> Data:
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
    path = Path(config.data).expanduser()
    if path.is_dir():
        if _child(path, TRAIN_NAMES):
            return _from_split_folder(path, config, config.data)
        return _from_plain_folder(path, config)
    if path.exists():
        raise DataError(f"{path} is a file. Give a folder with train/ and val/, or a folder of class folders.")
    if config.data.partition("/")[0].lower() in ("torch", "hfds", "hfids", "wds", "tfds"):
        return _from_scheme(config)
    raise DataError(
        f"no such folder: {config.data}. Give a folder of images by class, or a scheme of timm: torch/NAME, hfds/NAME, "
        "hfids/NAME, wds/NAME, tfds/NAME."
    )


def _child(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _class_folders(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}


def _from_split_folder(folder: Path, config: AdaptConfig, label: str) -> Data:
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
    return Data(label, train_set, _image_folder(val, classes, config), list(classes), len(classes))


def _from_plain_folder(folder: Path, config: AdaptConfig) -> Data:
    """Split a folder of class folders: the same part of every class, drawn with the run's seed."""
    train, val = _image_folder(folder, None, config), _image_folder(folder, None, config)
    by_class: dict[int, list[tuple[str, int]]] = {}
    for sample in train.reader.samples:
        by_class.setdefault(sample[1], []).append(sample)
    names = list(train.reader.class_to_idx)
    draw = random.Random(config.seed)
    train.reader.samples, val.reader.samples = [], []
    for index, samples in sorted(by_class.items()):
        draw.shuffle(samples)
        held = max(1, round(len(samples) * config.val_fraction))
        if held >= len(samples):
            raise DataError(f"class {names[index]!r} in {folder} has too few images ({len(samples)}) to split off val.")
        val.reader.samples += samples[:held]
        train.reader.samples += samples[held:]
    label = f"{config.data} (val: {config.val_fraction:g} of every class)"
    return Data(label, train, val, names, len(names))


def _image_folder(folder: Path, classes: dict[str, int] | None, config: AdaptConfig) -> CheckedImages:
    try:
        images = CheckedImages(str(folder), skip=config.skip_bad_images, class_map=classes or "")
    except RuntimeError as error:
        raise DataError(f"no images in {folder}: {one_line(error)}") from error
    if not _class_folders(folder):
        raise DataError(
            f"{folder} has images but no class folders. Put the images of each class in a folder of its own."
        )
    if classes is not None and config.skip_bad_images:
        images.drop_unreadable()  # in val a replacement would be counted twice
    return images


class CheckedImages(ImageDataset):
    """timm's folder of images, but an unreadable image is named, not replaced by its neighbour without a word."""

    def __init__(self, root: str, *, skip: bool, **kwargs: Any):
        super().__init__(root, **kwargs)
        self.skip = skip
        self.skipped = multiprocessing.Value("q", 0)  # loader processes count into one number

    def __getitem__(self, index: int):
        for offset in range(len(self)):
            try:
                return self._read((index + offset) % len(self))
            except DataError:
                if not self.skip:
                    raise
                self._count()
        raise DataError(f"none of the images in {self.reader.root} can be read.")

    def _read(self, index: int):
        path, target = self.reader.samples[index]
        try:
            with Image.open(path) as image:
                pixels = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            cause = one_line(error).replace(repr(path), "it")
            raise DataError(
                f"cannot read the image {path}: {cause}. Repair or remove it, or pass --skip-bad-images."
            ) from error
        return (self.transform(pixels) if self.transform else pixels), target

    def _count(self) -> None:
        with self.skipped.get_lock():
            self.skipped.value += 1

    def drop_unreadable(self) -> None:
        """Read every image once and leave out those that cannot be read."""
        readable = []
        transform, self.transform = self.transform, None
        for index, sample in enumerate(self.reader.samples):
            try:
                self._read(index)
                readable.append(sample)
            except DataError:
                self._count()
        self.transform = transform
        if not readable:
            raise DataError(f"none of the images in {self.reader.root} can be read.")
        self.reader.samples = readable


def _from_scheme(config: AdaptConfig) -> Data:
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
    return Data(label, parts["train"], parts["val"], names, config.num_classes or len(names or ()))


def _scheme_classes(dataset: Any) -> list[str] | None:
    if getattr(dataset, "classes", None):  # torchvision
        return [str(name) for name in dataset.classes]
    classes = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    return list(classes) if classes else None


def thin(images: Any, count: int) -> None:
    """Keep `count` images, spread evenly: the first ones of a folder would be of one class."""
    samples = getattr(getattr(images, "reader", None), "samples", None)
    if samples and len(samples) > count:
        images.reader.samples = [samples[i * len(samples) // count] for i in range(count)]


def loader(
    data: Data, part: str, recipe: Recipe, data_config: dict[str, Any], config: AdaptConfig, device: torch.device
) -> DataLoader:
    """timm's loader for one part: augmented and shuffled for "train", the checkpoint's own preprocessing for "val"."""
    training = part == "train"
    mixing = training and (recipe.mixup or recipe.cutmix)
    workers = default_workers() if config.workers is None else config.workers
    augmentation: dict[str, Any] = {}
    if training:
        augmentation = dict(
            scale=(recipe.crop_scale, 1.0), hflip=recipe.hflip, color_jitter=recipe.color_jitter,
            auto_augment=recipe.auto_augment or None, re_prob=recipe.random_erasing, re_mode="pixel",
        )  # fmt: skip
    return create_loader(
        getattr(data, part),
        input_size=data_config["input_size"],
        batch_size=recipe.batch_size,
        is_training=training,
        interpolation=data_config["interpolation"],
        mean=data_config["mean"],
        std=data_config["std"],
        crop_pct=data_config["crop_pct"],
        crop_mode=data_config.get("crop_mode"),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_mixing(recipe, data.num_classes) if mixing else None,
        pin_memory=device.type == "cuda",
        device=device,
        **augmentation,
    )


def _mixing(recipe: Recipe, num_classes: int) -> FastCollateMixup:
    return FastCollateMixup(
        mixup_alpha=recipe.mixup, cutmix_alpha=recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=num_classes
    )


def default_workers() -> int:
    """Leave one core to the model, and do not start more loaders than usually help."""
    return min(8, max(0, (os.cpu_count() or 1) - 1))
