"""Plots that can be told apart in grey and by colour-blind readers: every curve has its own colour, marker and dash.

matplotlib is imported where it is used, and pyplot never: no window, no global state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .metrics import METRICS

if TYPE_CHECKING:
    from torch import Tensor

    from .result import Smoothing
    from .spectra import Spectrum

# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), without yellow, dark ones first
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
FORMATS = (".png", ".svg", ".pdf")


def curve_style(index: int) -> dict:
    """Colour, marker and dash of the curve with this index; they repeat at different periods."""
    return dict(
        color=COLORS[index % len(COLORS)],
        marker=MARKERS[index % len(MARKERS)],
        linestyle=DASHES[index % len(DASHES)],
        linewidth=1.6,
        markersize=5,
    )


def check_path(path: str | Path) -> Path:
    """Raises ValueError if the file name's ending is no format that we write."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"cannot plot to {path}: the name must end in one of {', '.join(FORMATS)}.")
    return path


def save_figure(figure, path: Path) -> None:
    """Write the figure; the same numbers give the same bytes, so that plots in git do not change for nothing."""
    import matplotlib

    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
    with matplotlib.rc_context({"svg.hashsalt": "timm_neutreno", "svg.fonttype": "none"}):
        figure.savefig(path, dpi=150, bbox_inches="tight", metadata=metadata)


def plot_similarity(
    curves: Mapping[str, Sequence[float]],
    path: str | Path,
    *,
    ylabel: str = "Mean cosine similarity of tokens",
    title: str | None = None,
) -> None:
    """Plot one value per layer for several models.

    Args:
        curves: Name for the legend -> value of each layer, first layer first; lengths may differ.
        path: Where to write; the ending (.png, .svg, .pdf) is the format.
        ylabel: What the values are.
        title: Above the plot.

    Raises:
        ValueError: If there is nothing to plot, a value is not finite, or the format is unknown.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    path = check_path(path)
    if not curves or not all(len(values) for values in curves.values()):
        raise ValueError("nothing to plot: give at least one curve, each with at least one value.")
    if bad := [name for name, values in curves.items() if not all(map(math.isfinite, values))]:
        raise ValueError(f"cannot plot {', '.join(bad)}: not all values are finite.")
    figure = Figure(figsize=(6.4, 4.0))
    axes = figure.add_subplot()
    for index, (name, values) in enumerate(curves.items()):
        axes.plot(range(1, len(values) + 1), values, label=name, **curve_style(index))
    axes.set_xlabel("Layer")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if title:
        axes.set_title(title)
    # below the axes: model names are long, and no curve is covered
    figure.legend(*axes.get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), frameon=False)
    save_figure(figure, path)


def plot_spectra(spectra: Mapping[str, Sequence[Spectrum]], path: str | Path, *, bins: int = 60) -> None:
    """Plot the distribution of the real parts of H's eigenvalues over all layers, a curve per model.

    Args:
        spectra: Name for the legend -> what `spectrum` returns.
        path: Where to write; the ending (.png, .svg, .pdf) is the format.
        bins: Of the histogram.

    Raises:
        ValueError: If there is nothing to plot, or the format is unknown.
    """
    import torch
    from matplotlib.figure import Figure

    path = check_path(path)
    parts = {name: torch.cat([layer.layer.real for layer in layers]) for name, layers in spectra.items() if layers}
    if not parts:
        raise ValueError("nothing to plot: give at least one model's spectrum.")
    everything = torch.cat(list(parts.values()))
    edges = torch.linspace(float(everything.min()), float(everything.max()) + 1e-12, bins + 1, dtype=torch.float64)
    figure = Figure(figsize=(6.4, 4.0))
    axes = figure.add_subplot()
    for index, (name, values) in enumerate(parts.items()):
        density = torch.histogram(values, edges, density=True).hist
        axes.stairs(
            density.numpy(),
            edges.numpy(),
            label=name,
            color=COLORS[index % len(COLORS)],
            linestyle=DASHES[index % len(DASHES)],
            linewidth=1.6,
        )
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_xlabel("Real part of the eigenvalues of $W_V W_{proj}$, all layers")
    axes.set_ylabel("Density")
    figure.legend(*axes.get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), frameon=False)
    save_figure(figure, path)


def plot_results(results: Sequence[Smoothing], path: str | Path, metric: str = "block_similarity") -> None:
    """Plot one metric of several models side by side; see `plot_similarity`.

    Raises:
        ValueError: If the metric was not measured on one of the models.
    """
    for result in results:
        if metric not in result.values:
            raise ValueError(f"{metric!r} was not measured on {result.model}; there are: {', '.join(result.values)}.")
    curves = {result.model: result.values[metric] for result in results}
    plot_similarity(curves, path, ylabel=METRICS[metric].label)


def plot_attention_maps(
    maps: Sequence[Tensor],
    path: str | Path,
    *,
    layers: Sequence[int] | None = None,
    image: int = 0,
    heads: int = 3,
    title: str | None = None,
) -> None:
    """Plot maps as N x N pictures, a row per layer and a column per head; darker is less attention, each on its scale.

    Args:
        maps: What `attention_maps` returns.
        path: Where to write; the ending (.png, .svg, .pdf) is the format.
        layers: Indices from 0; None for the first, middle and last, as in Fig. 4.
        image: Index in the batch.
        heads: How many, from the first.
        title: Above the plot.

    Raises:
        ValueError: If a layer or image is not there, or the format is unknown.
    """
    from matplotlib.figure import Figure

    path = check_path(path)
    rows = [0, (len(maps) - 1) // 2, len(maps) - 1] if layers is None else list(layers)
    if not maps or any(not 0 <= row < len(maps) for row in rows) or not 0 <= image < len(maps[0]):
        raise ValueError(
            f"cannot plot layers {rows} of image {image}: there are {len(maps)} layers of maps; see attention_maps."
        )
    heads = min(heads, min(maps[row].shape[1] for row in rows))
    figure = Figure(figsize=(2.2 * heads, 2.3 * len(rows)), layout="constrained")
    for index, axes in enumerate(figure.subplots(len(rows), heads, squeeze=False).flat):
        row, head = rows[index // heads], index % heads
        axes.imshow(maps[row][image, head].numpy(), cmap="cividis", interpolation="nearest")
        axes.set_title(f"layer {row + 1}, head {head + 1}", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    if title:
        figure.suptitle(title, fontsize=10)
    figure.supxlabel("attended token", fontsize=9)
    figure.supylabel("attending token", fontsize=9)
    save_figure(figure, path)
