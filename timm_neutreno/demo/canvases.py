"""A small segmentation task of the embedded digits: some of them on a canvas, every pixel labelled with its digit.

Val canvases show val digits only, as digits.py splits them.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from .digits import default_directory, load_split, write_whole

SIZE = 64  # pixels, of a canvas
DIGIT = (24, 36)  # smallest and largest side of a digit
CANVASES = {"train": 512, "val": 128}
PER_CANVAS = 6  # tried; one that would lie on another is left out
NAMES = ("background", *map(str, range(10)))
VOID = 255  # a pixel at the edge of a stroke


def write_canvases(directory: str | os.PathLike[str] | None = None) -> Path:
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
    directory = Path(directory) if directory is not None else default_directory("canvases-64-v1")
    if directory.exists():
        count, expected = len(list(directory.glob("*/*/*.png"))), 2 * sum(CANVASES.values())
        if count != expected:
            raise RuntimeError(f"{directory} should hold {expected} pictures and holds {count}: remove it.")
        return directory
    digits, labels, in_val = load_split()
    write_whole(directory, lambda root: _write(root, digits, labels, in_val))
    return directory


def _write(root: Path, digits, labels, in_val: set[int]) -> None:
    draw = random.Random(0)
    for part, count in CANVASES.items():
        chosen = [index for index in range(len(labels)) if (index in in_val) == (part == "val")]
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True)
        for number in range(count):
            canvas, mask = _canvas(draw, chosen, digits, labels)
            canvas.convert("RGB").save(root / "images" / part / f"{number:04d}.png")
            mask.save(root / "annotations" / part / f"{number:04d}.png")
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")


def _canvas(draw: random.Random, chosen: list[int], digits, labels):
    """A grey canvas and its mask: a stroke has its digit's label, the darkest pixels are background."""
    from PIL import Image

    canvas, mask = Image.new("L", (SIZE, SIZE)), Image.new("L", (SIZE, SIZE))
    taken: list[tuple[int, int, int]] = []
    for _ in range(PER_CANVAS):
        index, side = draw.choice(chosen), draw.randint(*DIGIT)
        x, y = draw.randint(0, SIZE - side), draw.randint(0, SIZE - side)
        if any(abs(x - left) < max(side, other) and abs(y - top) < max(side, other) for left, top, other in taken):
            continue
        taken.append((x, y, side))
        grey = Image.fromarray((digits[index] * 255 / 16).round().astype("uint8"))  # levels are 0 to 16
        grey = grey.resize((side, side), Image.Resampling.BICUBIC)
        canvas.paste(grey, (x, y))
        digit = 1 + int(labels[index])
        mask.paste(grey.point([0 if level < 64 else VOID if level < 96 else digit for level in range(256)]), (x, y))
    return canvas, mask
