"""scikit-learn's 1,797 real handwritten digits as a folder of images: train/<class>/, val/<class>/.

Source: UCI "Optical Recognition of Handwritten Digits", 8x8 grey levels, carried by scikit-learn (no download).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

SIZE = 32  # pixels: 8x8 upscaled
IMAGES, VAL_IMAGES = 1797, 397
SPLIT_SEED = 0


def default_directory(name: str = "digits-32-v1") -> Path:
    """Where such data are kept between runs: $XDG_CACHE_HOME or ~/.cache; a temporary place if not writable."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "timm_neutreno"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        cache = Path(tempfile.gettempdir()) / f"timm_neutreno-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    if cache.is_dir() and not os.access(cache, os.W_OK):
        cache = Path(tempfile.mkdtemp(prefix="timm_neutreno-"))
    return cache / name


def write_digits(directory: str | os.PathLike[str] | None = None) -> Path:
    """Write the digits as 32x32 RGB PNGs, 1,400 in train/ and 397 in val/, always the same split.

    A complete folder is taken as it is; an incomplete one is an error, since it may be something else.

    Args:
        directory: Where; the cache (`default_directory`) if left out.

    Returns:
        The directory.

    Raises:
        ModuleNotFoundError: If scikit-learn is missing; the message says how to get it.
        RuntimeError: If the folder is there and is not the complete digits.
    """
    directory = Path(directory) if directory is not None else default_directory()
    if is_complete(directory, IMAGES):
        return directory
    images, labels, in_val = load_split()
    write_whole(directory, lambda root: _write_images(root, images, labels, in_val))
    return directory


def is_complete(directory: Path, pictures: int) -> bool:
    """Whether the folder is there.

    Raises:
        RuntimeError: If it is and holds another number of pictures.
    """
    count = len(list(directory.glob("*/*/*.png")))
    if directory.exists() and count != pictures:
        raise RuntimeError(f"{directory} should hold {pictures} pictures and holds {count}: remove it.")
    return directory.exists()


def write_whole(directory: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder that is there when it is complete."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    try:
        write(unfinished)
        unfinished.chmod(0o755)
        os.rename(unfinished, directory)
    except OSError:
        if not directory.is_dir():  # else another process was faster, with the same images
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load_split():
    """(images (n, 8, 8) of 0 to 16, labels, indices of those in val); errors as of `write_digits`."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the embedded digits come with scikit-learn, which is missing: pip install scikit-learn"
        ) from error
    digits = load_digits()
    indices = list(range(len(digits.target)))
    _, val = train_test_split(indices, test_size=VAL_IMAGES, random_state=SPLIT_SEED, stratify=digits.target)
    return digits.images, digits.target, set(val)


def _write_images(root: Path, images, labels, in_val: set[int]) -> None:
    from PIL import Image

    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / ("val" if index in in_val else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((image * 255 / 16).round().astype("uint8"))  # levels are 0 to 16
        grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB").save(folder / f"{index:04d}.png")
