"""Photos of any folder as the batches that a timm model wants; classes and splits do not matter here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn


def find_photos(folder: Path, limit: int | None = None) -> list[Path]:
    """The images below the folder: `limit` of them, evenly spread over all by name, so that no class is left out.

    Raises:
        DataError: If it is no folder, or holds no images.
    """
    from timm_neutreno.pictures import SUFFIXES

    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give a folder of images.")
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not photos:
        raise DataError(f"there are no images ({', '.join(SUFFIXES)}) in {folder} or below it.")
    count = min(limit or len(photos), len(photos))
    return [photos[i * len(photos) // count] for i in range(count)]


def photo_batches(photos: Sequence[Path], model: nn.Module, batch_size: int = 25) -> Iterator[Tensor]:
    """(B, 3, height, width) float32, with the model's own evaluation transform.

    Raises:
        DataError: If an image cannot be read.
    """
    import torch
    from timm.data import create_transform, resolve_data_config

    size = getattr(getattr(model, "patch_embed", None), "img_size", None)  # may differ from the pretrained one
    args = {"input_size": (3, *size)} if size else {}
    transform = create_transform(**resolve_data_config(args, model=model))
    for start in range(0, len(photos), batch_size):
        yield torch.stack([transform(_open(path)) for path in photos[start : start + batch_size]])


def _open(path: Path):
    from timm_neutreno.pictures import UnreadableImage, read_rgb

    try:
        return read_rgb(path)
    except UnreadableImage as error:
        raise DataError(f"cannot read the image {path}: {error}. Remove or replace it.") from None
