"""Plots of probing results: score against strength, score by block, patch tokens as colours.

matplotlib is imported where it is used, and pyplot never: no window, no global state.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..smoothing.plots import check_path, curve_style, save_figure
from .compare import NAMES
from .measure import PROBES, TASKS
from .result import ProbeResult, Row
from .settings import describe_layers


def methods(result: ProbeResult) -> list[str]:
    """The methods that were probed, in their order."""
    return list(dict.fromkeys(row.method for row in result.rows if row.method))


def plot_strengths(result: ProbeResult, path: str | Path, method: str) -> None:
    """Plot the test scores and the token similarity of one method against its strength.

    Bars are 95 % intervals of the difference from the model as it is, drawn around its score; the filled mark is the
    setting that is best on val.

    Raises:
        ValueError: If the method was not probed, or the format is unknown.
    """
    from matplotlib.figure import Figure

    path = check_path(path)
    if method not in methods(result):
        raise ValueError(f"{method!r} was not probed; there are: {', '.join(methods(result)) or 'none'}.")
    curves = _curves(result, method)
    ticks = sorted({tuple(row.strengths.values()) for _, rows in curves for row in rows if row.method})
    zero = tuple(0.0 for _ in ticks[0])
    ticks = sorted({zero, *ticks})
    names = next(row.strengths for row in result.rows if row.method == method)
    figure = Figure(figsize=(6.4, 7.6), layout="constrained")
    panels = figure.subplots(len(PROBES) + 1, sharex=True)
    for index, (label, rows) in enumerate(curves):
        style = curve_style(index)
        at = [ticks.index(tuple(row.strengths.values()) if row.method else zero) for row in rows]
        shifted = [x + 0.06 * (index - (len(curves) - 1) / 2) for x in at]
        for panel, probe in zip(panels, PROBES, strict=False):
            _scores(panel, shifted, rows, probe, label, style)
            for verdict in result.verdicts:
                chosen = result.rows[verdict.row]
                if verdict.probe == probe and chosen in rows:
                    panel.plot(
                        shifted[rows.index(chosen)],
                        chosen.scores[probe].test,
                        **{**style, "markersize": 9, "zorder": 3},
                    )
        panels[-1].plot(shifted, [row.similarity for row in rows], label=label, **style)
    for panel, probe in zip(panels, PROBES, strict=False):
        panel.set_ylabel(f"{NAMES[probe]}\n{TASKS[result.task].UNIT} on test")
        panel.margins(y=0.15)
    panels[-1].set_ylabel("similarity of\npatch tokens")
    panels[-1].set_xlabel(", ".join(names) + (" (0: the model as it is)" if names else ""))
    panels[-1].set_xticks(range(len(ticks)), [", ".join(f"{value:g}" for value in tick) for tick in ticks])
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.suptitle(method, fontsize="medium")
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False)
    save_figure(figure, path)


def _curves(result: ProbeResult, method: str) -> list[tuple[str, list[Row]]]:
    """Label -> rows by rising strength, the model as it is first."""
    several = len({row.model for row in result.rows}) > 1
    curves: dict[tuple[str, Any], list[Row]] = {}
    for row in result.rows:
        if row.method == method:
            layers = None if row.layers is None else tuple(row.layers)
            curves.setdefault((row.model, layers), []).append(row)
    labelled = []
    for (model, layers), rows in curves.items():
        reference = next(row for row in result.rows if row.model == model and not row.method)
        label = describe_layers(layers)
        rows.sort(key=lambda row: tuple(row.strengths.values()))
        labelled.append((f"{model}, {label}" if several else label, [reference, *rows]))
    return labelled


def _scores(panel, at: Sequence[float], rows: Sequence[Row], probe: str, label: str, style: Mapping[str, Any]) -> None:
    scores = [row.scores[probe] for row in rows]
    base = scores[0].test
    panel.axhline(base, color="0.5", linewidth=0.8)
    low = [score.test - base - score.low if score.low is not None else 0.0 for score in scores[1:]]
    high = [score.high - (score.test - base) if score.high is not None else 0.0 for score in scores[1:]]
    values = [score.test for score in scores]
    panel.errorbar(
        at, values, [[0.0, *(max(0.0, v) for v in low)], [0.0, *(max(0.0, v) for v in high)]], label=label, capsize=3,
        **{**style, "markerfacecolor": "white"},
    )  # fmt: skip


def plot_blocks(result: ProbeResult, path: str | Path, probe: str) -> None:
    """Plot the test score of one probe by block: each model as it is, and the settings that are best on val.

    Raises:
        ValueError: If the blocks were not probed, or the format is unknown.
    """
    from ..smoothing.plots import plot_similarity

    chosen = {verdict.row for verdict in result.verdicts if verdict.probe == probe}
    rows = [row for i, row in enumerate(result.rows) if row.by_block and (not row.method or i in chosen)]
    if not rows:
        raise ValueError("blocks were not probed: ask for them.")
    several = len({row.model for row in result.rows}) > 1
    curves = {f"{row.model}, {row.label}" if several else row.label: row.by_block[probe] for row in rows}
    plot_similarity(curves, path, ylabel=f"{NAMES[probe]}, {TASKS[result.task].UNIT} on test")


def plot_pca(photos: Sequence, columns: Mapping[str, Any], path: str | Path) -> None:
    """Plot photos beside the colours of their patch tokens.

    Args:
        photos: Arrays (height, width, 3) in [0, 1].
        columns: Title -> one array (rows, columns, 3) in [0, 1] per photo; see `pca.colors`.
        path: Where to write; the ending (.png, .svg, .pdf) is the format.

    Raises:
        ValueError: If there is nothing to plot, or the format is unknown.
    """
    import numpy as np
    from matplotlib.figure import Figure

    path = check_path(path)
    if not len(photos) or not columns:
        raise ValueError("nothing to plot: give at least one photo and one column.")
    height, width = photos[0].shape[:2]
    figure = Figure(figsize=(1.8 * (1 + len(columns)), 1.8 * len(photos) * height / width + 0.6), layout="constrained")
    axes = figure.subplots(len(photos), 1 + len(columns), squeeze=False)
    for row, line in enumerate(axes):
        for axis, (title, pictures) in zip(line, [("photo", photos), *columns.items()], strict=True):
            axis.imshow(np.asarray(pictures[row]), extent=(0, width, height, 0), interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(textwrap.fill(title, 15), fontsize="large", verticalalignment="bottom")
    save_figure(figure, path)
