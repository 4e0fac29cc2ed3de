"""A small segmentation task of the embedded digits: four of them in a line, every pixel labelled with its digit.

Val lines show val digits only, as digits.py splits them.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from .digits import SIZE, default_directory, is_complete, load_split, write_whole

DIGITS = 4  # in a line; each somewhere in its own SIZE x SIZE pixels, which is the embedded checkpoint's input
SIDE = (24, 32)  # smallest and largest side of a digit
STROKE, MARGIN = 64, 2  # lowest grey level of a stroke; pixels around a stroke that have its digit's label too
LINES = {"train": 1024, "val": 128}
NAMES = ("background", *map(str, range(10)))


def write_lines(directory: str | os.PathLike[str] | None = None) -> Path:
    """Write images/, annotations/ and classes.txt, always the same.

    A complete folder is taken as it is; an incomplete one is an error, since it may be something else.

    Args:
        directory: Where; the cache if left out.

    Returns:
        The directory.

    Raises:
        ModuleNotFoundError: If scikit-learn is missing; the message says how to get it.
        RuntimeError: If the folder is there and is not the complete task.
    """
    directory = Path(directory) if directory is not None else default_directory("lines-32-v1")
    if is_complete(directory, 2 * sum(LINES.values())):
        return directory
    digits, labels, in_val = load_split()
    write_whole(directory, lambda root: _write(root, digits, labels, in_val))
    return directory


def _write(root: Path, digits, labels, in_val: set[int]) -> None:
    draw = random.Random(0)
    for part, count in LINES.items():
        chosen = [index for index in range(len(labels)) if (index in in_val) == (part == "val")]
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True)
        for number in range(count):
            line, mask = _line(draw, chosen, digits, labels)
            line.convert("RGB").save(root / "images" / part / f"{number:04d}.png")
            mask.save(root / "annotations" / part / f"{number:04d}.png")
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")


def _line(draw: random.Random, chosen: list[int], digits, labels):
    """A grey picture of SIZE x (DIGITS * SIZE) pixels, and its mask."""
    from PIL import Image, ImageFilter

    line, mask = (Image.new("L", (DIGITS * SIZE, SIZE)) for _ in range(2))
    for left in range(0, DIGITS * SIZE, SIZE):
        index, side = draw.choice(chosen), draw.randint(*SIDE)
        place = left + draw.randint(0, SIZE - side), draw.randint(0, SIZE - side)
        grey = Image.fromarray((digits[index] * 255 / 16).round().astype("uint8"))  # levels are 0 to 16
        grey = grey.resize((side, side), Image.Resampling.BICUBIC)
        line.paste(grey, place)
        label = 1 + int(labels[index])
        near = grey.filter(ImageFilter.MaxFilter(2 * MARGIN + 1))
        mask.paste(near.point([0 if level < STROKE else label for level in range(256)]), place)
    return line, mask
