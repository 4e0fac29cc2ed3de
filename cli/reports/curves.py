"""The curves of a run's training, from the metrics.jsonl of its arms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_neutreno.smoothing.plots import curve_style, save_figure

from ..runtime.loggers import JSONL
from .tables import METRICS

NAMES = {key: words[0] for known in METRICS.values() for key, words in known.items()}  # what a metric is called

Records = Sequence[Mapping[str, Any]]


def read_records(directory: Path, arms: Sequence[str]) -> dict[str, Records]:
    """Each arm's epochs, as far as they are there."""
    found: dict[str, Records] = {}
    for arm in arms:
        path = directory / "arms" / arm / JSONL
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if records := [json.loads(line) for line in lines]:
            found[arm] = records
    return found


def plot_training(records: Mapping[str, Records], path: Path) -> None:
    """Plot the first metric on the val images and the losses by epoch, a curve for each arm."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    first = next(iter(records.values()))[0]
    key = next((name for name in NAMES if f"val_{name}" in first), "loss")
    panels = {f"{NAMES[key]} on val": f"val_{key}", "loss on val": "val_loss", "loss in training": "train_loss"}
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    for axes, (title, name) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for index, (arm, epochs) in enumerate(records.items()):
            points = [(record["epoch"], record[name]) for record in epochs if record.get(name) is not None]
            axes.plot(*zip(*points, strict=True), label=arm, **{**curve_style(index), "markersize": 3.5})
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(records), frameon=False)
    save_figure(figure, path)
