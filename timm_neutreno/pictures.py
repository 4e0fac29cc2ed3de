"""Image files of every origin: which count as images, and reading one, or saying by name why it cannot be read."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
KINDS = {stat.S_ISFIFO: "a pipe", stat.S_ISDIR: "a folder", stat.S_ISSOCK: "a socket"}


class UnreadableImage(ValueError):
    """What is wrong with an image file, in words."""


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """An image of Pillow's, its pixels not decoded yet; within it all that is wrong with the file has one type.

    Raises:
        UnreadableImage: If it is no regular file (reading a pipe would wait for ever), is damaged, or is too large.
    """
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for is_kind, name in KINDS.items() if is_kind(mode)), "a device")
            raise UnreadableImage(f"it is {kind}, no file")
        with Image.open(path) as image:
            yield image
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage("it is no image, or its beginning is damaged") from error
    except Exception as error:  # a damaged file makes Pillow's readers raise all kinds
        if Path(path).is_symlink() and not Path(path).exists():
            raise UnreadableImage("it is a link to nothing") from error
        said = getattr(error, "strerror", None) or str(error).replace(repr(str(path)), "it")
        raise UnreadableImage(" ".join(said.split()) or type(error).__name__) from error


def read_rgb(path: str | Path) -> Image.Image:
    """The pixels, as 8 bits of red, green and blue; of an animation the first picture.

    Of 16 bits the upper 8 are taken, as for any other file; Pillow itself would cut off what is above 255.

    Raises:
        UnreadableImage: As `opened`, or if the brightest value is not known.
    """
    with opened(path) as image:
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)).convert("RGB")
        if image.mode in ("I", "F"):
            raise UnreadableImage(f"it has 32 bits per pixel (mode {image.mode}): what is white is not said")
        return image.convert("RGB")
