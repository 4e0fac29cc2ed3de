"""Images with masks: what `--data` names, and batches of them. Image and mask go through every transform together.

    DATA/images/{train,val}/*.jpg, DATA/annotations/{train,val}/*.png     masks of labels
    DATA/classes.txt                                                      names of the labels 0, 1, ...; may be missing

A train item is a crop, seeded per image as order.py says; a val item is the whole image and its mask as it is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from timm_neutreno.probing.errors import DataError as LibraryDataError
from timm_neutreno.probing.folders import segmentation_parts
from timm_neutreno.probing.masks import find_labels

from ..config import Config
from ..errors import DataError, one_line
from ..runtime.processes import World
from ..runtime.signals import init_loader_worker
from .loaders import BatchLoader, default_workers
from .masks import VOID, MaskedImages, ignored_labels, number_of_labels
from .order import EvalSampler, ResumableSampler, SeededDataset
from .sources import Datasets

MOST_OF_A_CROP, TRIES = 0.75, 10  # a crop with one class in more of it is drawn anew, so many times (mmsegmentation's)


def open_datasets(config: Config) -> Datasets:
    """Open the data.

    Raises:
        DataError: If images or masks are missing, or there is nothing to tell apart.
    """
    if config.data in (None, "demo"):
        from timm_neutreno.demo import demo_segmentation_directory

        try:
            path, label = demo_segmentation_directory(), "demo (handwritten digits in lines of four)"
        except (ModuleNotFoundError, RuntimeError) as error:
            raise DataError(one_line(error)) from error
        return _from_folder(path, label, 255, config)
    assert config.data is not None
    if config.data.lower().startswith("hfds/"):
        from .segmentation_hub import from_hub

        return from_hub(config)
    path = Path(config.data).expanduser()
    if not path.is_dir():
        raise DataError(f"no such folder: {config.data}. Give one with images/ and annotations/, or hfds/NAME.")
    if not (path / "images").is_dir():
        raise DataError(f"{path} has no images/: segmentation needs images/train, annotations/train and so on.")
    return _from_folder(path, config.data, config.ignore_label, config)


def _from_folder(path: Path, label: str, ignore_label: int | None, config: Config) -> Datasets:
    ignored = ignored_labels(ignore_label, config.reduce_zero_label)
    try:
        parts = segmentation_parts(path)
        train, val = _split(parts, config)
        labels = find_labels((mask for _, mask in train), ignored, number_of_labels(config.num_classes, ignored))
    except LibraryDataError as error:
        raise DataError(one_line(error)) from error
    if len(labels) < 2:
        only = f"only one label ({labels[0]}) that counts" if labels else "no label that counts"
        raise DataError(f"the train masks of {path} have {only}, so there is nothing to tell apart.")
    train_set, val_set = (MaskedImages(part, path, labels, ignored, config.skip_bad_images) for part in (train, val))
    if config.skip_bad_images:
        val_set.drop_unreadable()  # in val a replacement would be counted twice
    return Datasets(label, train_set, val_set, class_names(path, labels), len(labels))


def _split(parts: dict[str, list[Any]], config: Config) -> tuple[list[Any], list[Any]]:
    """Train and val: the folder's own val, else its test, else a part of train drawn with a seed."""
    train = list(parts["train"])
    if held := parts.get("val") or parts.get("test"):
        return train, held
    random.Random(config.seed if config.split_seed is None else config.split_seed).shuffle(train)
    count = max(1, round(len(train) * (config.val_fraction or 0.1)))
    if count >= len(train):
        raise DataError(f"{len(train)} images are too few to split off val: add images/val and annotations/val.")
    return sorted(train[count:]), sorted(train[:count])


def class_names(path: Path, labels: list[str]) -> list[str]:
    """The names in classes.txt, one label a line; the labels themselves without it.

    Raises:
        DataError: If it has too few.
    """
    file = path / "classes.txt"
    if not file.is_file():
        return labels
    names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) <= int(labels[-1]):
        raise DataError(f"{file} names {len(names)} labels, and the masks have labels up to {labels[-1]}.")
    return [names[int(label)] for label in labels]


# --- transforms


@dataclass
class Crop:
    """A train item: random scale, crop, mirror and colour, by torchvision's v2 transforms; normalised.

    Attributes:
        side: Of the crop, in pixels.
        scales: Smallest and largest short side of the image, over the crop's.
        hflip: Probability of mirroring.
        color_jitter: 0.5 is torchvision's RandomPhotometricDistort as it comes.
        mean: Of pixels in [0, 1].
        std: Their standard deviation.
    """

    side: int
    scales: tuple[float, float]
    hflip: float
    color_jitter: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        c = self.color_jitter
        fill = {tv_tensors.Image: [round(255 * value) for value in self.mean], tv_tensors.Mask: VOID}
        self.crop = v2.RandomCrop(self.side, pad_if_needed=True, fill=fill)
        distort = v2.RandomPhotometricDistort((1 - c / 4, 1 + c / 4), (1 - c, 1 + c), (1 - c, 1 + c), (-c / 10, c / 10))
        self.rest = v2.Compose([v2.RandomHorizontalFlip(self.hflip), distort if c else v2.Identity()])

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        from torchvision import tv_tensors
        from torchvision.transforms.v2 import functional as F

        low, high = self.scales
        side = max(1, round(self.side * (low + (high - low) * torch.rand(()).item())))
        pair: Any = (tv_tensors.Image(image), tv_tensors.Mask(mask))
        pair = tuple(F.resize(part, [side], antialias=True) for part in pair)
        cropped = self.crop(pair)
        for _ in range(TRIES if min(pair[0].shape[-2:]) > self.side else 0):
            if _largest_share(cropped[1]) < MOST_OF_A_CROP:
                break
            cropped = self.crop(pair)
        image, mask = self.rest(cropped)
        return normalised(image, self.mean, self.std), mask.as_subclass(Tensor)


def _largest_share(mask: Tensor) -> float:
    """Of the labelled pixels, those of the class that has most of them."""
    labelled = mask.as_subclass(Tensor)[mask.as_subclass(Tensor) != VOID]
    return float(torch.bincount(labelled).max() / len(labelled)) if len(labelled) else 1.0


@dataclass
class Whole:
    """A val item: the image with its short side as long as a window, normalised; the mask stays as it is."""

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        from torchvision.transforms.v2 import functional as F

        return normalised(F.resize(image, [self.side], antialias=True), self.mean, self.std), mask


def normalised(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(3, H, W) uint8 -> float32."""
    pixels = image.as_subclass(Tensor).float() / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


# --- batches


def train_loader(
    datasets: Datasets, data_config: dict[str, Any], config: Config, device: torch.device, world: World
) -> BatchLoader:
    """Batches of crops, (B, 3, side, side) and (B, side, side), in an order that depends on the seed alone."""
    side = data_config["input_size"][-1]
    sampler = ResumableSampler(
        len(datasets.train), config.batch_size, config.seed, world.rank, world.size, config.accumulate, 1,
        config.limit_batches,
    )  # fmt: skip
    datasets.train.transform = Crop(
        side, (config.scale_min, config.scale_max), config.hflip, config.color_jitter, data_config["mean"],
        data_config["std"],
    )  # fmt: skip
    batches = OnDevice(SeededDataset(datasets.train), sampler, _stacked, config, device)
    return BatchLoader(batches, data_config["input_size"], sampler.steps, sampler, datasets.train)


def val_loader(
    datasets: Datasets, batch_size: int, data_config: dict[str, Any], config: Config, device: torch.device, world: World
) -> BatchLoader:
    """Batches of whole images and their masks, two lists: sizes differ."""
    own, most = (
        EvalSampler(len(datasets.val), batch_size, rank, world.size, config.limit_batches) for rank in (world.rank, 0)
    )
    datasets.val.transform = Whole(data_config["input_size"][-1], data_config["mean"], data_config["std"])
    batches = OnDevice(datasets.val, own, _listed, config, device)
    return BatchLoader(batches, data_config["input_size"], len(most), own, datasets.val)


def _stacked(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, masks = zip(*items, strict=True)
    return torch.stack(images), torch.stack(masks)


def _listed(items: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    images, masks = zip(*items, strict=True)
    return list(images), list(masks)


class OnDevice:
    """A loader whose batches are moved to the device."""

    def __init__(self, dataset: Any, sampler: Any, collate: Any, config: Config, device: torch.device):
        workers = default_workers() if config.workers is None else config.workers
        self.device = device
        self.loader: DataLoader = DataLoader(
            dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers,
            pin_memory=device.type == "cuda", persistent_workers=workers > 0, worker_init_fn=init_loader_worker,
        )  # fmt: skip

    def __iter__(self) -> Iterator[Any]:
        for pair in self.loader:
            yield tuple(
                [x.to(self.device, non_blocking=True) for x in part]
                if isinstance(part, list)
                else part.to(self.device, non_blocking=True)
                for part in pair
            )
