"""Reading what `folders` found: images as the model wants them, masks as class indices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..pictures import UnreadableImage, read_rgb
from .errors import DataError
from .features import find_vit
from .folders import PARTS, Folder, spread
from .masks import read_mask, to_classes
from .measure import Splits
from .segmentation import VOID


class Images(Dataset):
    """The images of one part, with class indices or masks.

    Args:
        folder: The data set.
        part: "train", "val" or "test".
        transform: From a PIL image to a tensor (3, height, width).
        ignore_label: As for `open_folder`.
    """

    def __init__(self, folder: Folder, part: str, transform: Any, ignore_label: int | None = None):
        self.samples, self.transform, self.segmentation = folder.samples[part], transform, folder.task == "segmentation"
        self.ignore_label, self.labels = ignore_label, folder.classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[Tensor, Any]:
        path, target = self.samples[number]
        try:
            image = read_rgb(path)
        except UnreadableImage as error:
            raise DataError(f"cannot read the image {path}: {error}. Repair or remove it.") from None
        return self.transform(image), (self.mask(target, image, path) if self.segmentation else target)

    def mask(self, path: Path, image: Image.Image, image_path: Path) -> Tensor:
        """(H, W) class indices, VOID where the label does not count."""
        labels = to_classes(
            read_mask(path), str(path), str(image_path), image.size, self.labels, self.ignore_label, VOID
        )
        return torch.from_numpy(labels)


def loaders(
    folder: Folder, model: nn.Module, *, batch_size: int = 16, workers: int = 0, ignore_label: int | None = None
) -> tuple[Splits, tuple[int, int]]:
    """Batches of all parts as the model wants them, and their image size in pixels.

    For classification with the model's own evaluation transform; for segmentation the whole image, squashed to the
    model's size, and masks as they are.
    """
    size = getattr(
        getattr(find_vit(model), "patch_embed", None), "img_size", None
    )  # may differ from the pretrained one
    config = resolve_data_config({"input_size": (3, *size)} if size else {}, model=model)
    if folder.task == "segmentation":
        config |= {"crop_pct": 1.0, "crop_mode": "squash"}
    transform = create_transform(**config)
    batches = {
        part: DataLoader(
            Images(folder, part, transform, ignore_label), batch_size, num_workers=workers, collate_fn=_collate
        )
        for part in PARTS
    }
    return Splits(folder.task, len(folder.classes), **batches), config["input_size"][1:]


def _collate(samples: list[tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
    """Masks stay a list: their sizes may differ."""
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), (list(targets) if isinstance(targets[0], Tensor) else torch.tensor(targets))


def sample_photos(
    folder: Folder, model: nn.Module, number: int, ignore_label: int | None = None
) -> tuple[Tensor, list[np.ndarray]]:
    """Test images evenly spread, as the model wants them, (number, 3, height, width), and as pictures in [0, 1]."""
    chosen = Folder(folder.task, {**folder.samples, "test": spread(folder.samples["test"], number)}, folder.classes, "")
    splits, _ = loaders(chosen, model, batch_size=number, ignore_label=ignore_label)
    images = next(iter(splits.test))[0]
    config = resolve_data_config({}, model=model)
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    return images, [(image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy() for image in images]
