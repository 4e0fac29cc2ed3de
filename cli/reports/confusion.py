"""The picture of confusion matrices, one beside the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .classes import Confusion

MOST = 30  # classes that can be told apart in print
NUMBERED = 20  # up to so many, cells hold their numbers


def plot_confusion(confusions: Mapping[str, Confusion], names: Sequence[str], path: Path) -> None:
    """Draw which classes are taken for which; of many classes, those that are mistaken most often.

    Args:
        confusions: Title -> images of class (row) that were taken for class (column).
        names: Of the classes, by index.
        path: Its ending, .png, .svg or .pdf, is the format.
    """
    import numpy as np
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    matrices = {title: np.array(confusion, dtype=float) for title, confusion in confusions.items()}
    shown, note = chosen(list(matrices.values()), len(names))
    side = min(9.0, 1.8 + 0.36 * len(shown))
    figure = Figure(figsize=(side * len(matrices) + 1.2, side + 0.6), layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for index, (title, matrix) in enumerate(matrices.items()):
        totals = matrix.sum(1, keepdims=True)
        part = matrix[np.ix_(shown, shown)]
        share = 100 * part / np.maximum(totals[shown], 1)
        # a few mistakes among many right ones would be as white as none on a linear scale
        picture = axes[index].imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
        axes[index].set_title(title)
        labels = [names[i] for i in shown]
        axes[index].set_xticks(range(len(shown)), labels, rotation=90 if max(map(len, labels)) > 2 else 0, fontsize=8)
        axes[index].set_yticks(range(len(shown)), labels if index == 0 else [""] * len(shown), fontsize=8)
        axes[index].set_xlabel("taken for")
        if len(shown) <= NUMBERED:
            for row, column in zip(*np.nonzero(part), strict=True):
                color = "white" if share[row, column] > 40 else "black"
                count = f"{int(part[row, column])}"
                axes[index].text(column, row, count, ha="center", va="center", color=color, fontsize=7)
    axes[0].set_ylabel("true class")
    figure.colorbar(picture, ax=list(axes), label="% of the true class's images, square-root scale", shrink=0.8)
    if note:
        figure.suptitle(note, fontsize=9)
    figure.savefig(path, dpi=130)


def chosen(matrices: Sequence, classes: int) -> tuple[list[int], str]:
    """The classes to draw, in order, and a note if they are not all."""
    if classes <= MOST:
        return list(range(classes)), ""
    wrong = sum(matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal() for matrix in matrices)
    order = sorted(range(classes), key=lambda index: -wrong[index])[:MOST]
    return sorted(
        order
    ), f"The {MOST} of {classes} classes that are mistaken most often; cells hold images of these only."
