"""Pictures of segmentations: photos beside masks in colours that can be told apart.

matplotlib is imported where it is used, and pyplot never: no window, no global state.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..smoothing.plots import COLORS, check_path, save_figure

VOID_GREY = 0.5
LEGEND = 24  # classes that a legend has room for


def class_colors(count: int) -> np.ndarray:
    """(count, 3) in [0, 1]: the colours of all our plots first, then hues a golden angle apart, light and dark."""
    known = [[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in COLORS]
    more = [colorsys.hsv_to_rgb(0.618034 * i % 1, 0.75, (0.95, 0.6)[i % 2]) for i in range(max(0, count - len(known)))]
    return np.array([*known, *more][:count])


def plot_segmentations(
    photos: Sequence[np.ndarray],
    columns: Mapping[str, Sequence[np.ndarray]],
    path: str | Path,
    class_names: Sequence[str] | None = None,
) -> None:
    """Plot photos beside masks, a row for each photo.

    Args:
        photos: Arrays (H, W, 3), uint8 or in [0, 1].
        columns: Title -> one mask (H, W) of class indices per photo; a negative index is void, and grey.
        path: Where to write; the ending (.png, .svg, .pdf) is the format.
        class_names: By index, for a legend of the classes that are seen.

    Raises:
        ValueError: If there is nothing to plot, or the format is unknown.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    path = check_path(path)
    if not len(photos) or not columns:
        raise ValueError("nothing to plot: give at least one photo and one column.")
    seen = sorted({int(label) for masks in columns.values() for mask in masks for label in np.unique(mask)})
    colors = class_colors(max(seen) + 1)
    height, width = photos[0].shape[:2]
    figure = Figure(figsize=(1.9 * (1 + len(columns)), 1.9 * len(photos) * height / width + 0.9), layout="constrained")
    axes: Any = figure.subplots(len(photos), 1 + len(columns), squeeze=False)
    for row, line in enumerate(axes):
        line[0].imshow(photos[row])
        for axis, masks in zip(line[1:], columns.values(), strict=True):
            mask = masks[row]
            picture = np.full((*mask.shape, 3), VOID_GREY)
            picture[mask >= 0] = colors[mask[mask >= 0]]
            axis.imshow(picture, interpolation="nearest")
        for axis, title in zip(line, ("image", *columns), strict=True):
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize="small")
    if class_names:
        handles = [Patch(color=colors[index], label=class_names[index]) for index in seen if index >= 0][:LEGEND]
        figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize="x-small")
    save_figure(figure, path)
