"""One table writer for terminal, Markdown and HTML, and the words that stand for machine keys."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

# task -> key of a figure -> what it is called, and its digits; the first is the main one, those of a head come first
METRICS = {
    "classification": {
        "top1": ("top-1", 2), "top5": ("top-5", 2), "loss": ("loss", 4), "similarity": ("similarity", 4),
    },
    "segmentation": {
        "miou": ("mIoU", 2), "miou_multi_scale": ("mIoU, multi scale", 2), "pixel_accuracy": ("pixel accuracy", 2),
        "loss": ("loss", 4), "similarity": ("similarity", 4), "decoder_similarity": ("in decoder", 4),
    },
}  # fmt: skip
LAST_BLOCK = ("similarity", "decoder_similarity")  # a list by block, of which a table shows the last
CHECKPOINT, START, EMA = "checkpoint", "/start", "/ema"  # the row of the checkpoint; after an arm's name: other weights

Cells = Sequence[Sequence[str]]


def label(key: str) -> str:
    """What a row of results.json is called in print."""
    arm, sign, kind = key.partition("/")
    if key == CHECKPOINT:
        return "checkpoint as it came"
    if sign + kind == START:
        return f"{arm}, not adapted"
    name = "control, no method" if arm == "control" else f"{arm}, adapted"
    return f"{name}, EMA" if sign + kind == EMA else name


def count(number: float, word: str) -> str:
    """A number with its word: 1 image, 1,200 images, 10 classes."""
    ending = "" if number == 1 else "es" if word.endswith("s") else "s"
    shown = f"{number:,}" if isinstance(number, int) else f"{number:,g}" if number < 1e6 else f"{number:,.0f}"
    return f"{shown} {word}{ending}"


def in_words(found: Mapping[str, Any], new_head: bool) -> str:
    """A model's figures in a line."""
    key, name = main_metric(found)
    similarity, images = f"token similarity {figure(found, 'similarity'):.3f}", f"on {count(found['images'], 'image')}"
    if new_head:
        return f"a new head has no accuracy yet; {similarity} {images}"
    return f"{found[key]:.2f} % {name} {images}, {similarity}"


def is_trained(key: str) -> bool:
    """Whether the row is of weights that were trained in the run."""
    return key != CHECKPOINT and not key.endswith(START)


def strength_cell(strengths: Mapping[str, Mapping[str, float]]) -> str:
    """Each strength's value or, where it was learned, the mean of its absolute values."""
    words = []
    for name, figures in strengths.items():
        constant = figures["min"] == figures["max"]
        number = f"{figures['min']:g}" if constant else f"|{figures['mean_abs']:.2g}|"
        words.append(number if len(strengths) == 1 else f"{name} {number}")
    return ", ".join(words) or "-"


def figure(row: Mapping[str, Any], metric: str) -> float:
    """One number of a row; of the similarity, the last block's. NaN where it was not measured."""
    return row[metric][-1] if metric in LAST_BLOCK else row.get(metric, math.nan)


def metrics_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, int]]:
    """The figures that rows of one task have, with their names and digits."""
    rows = list(rows)
    known = next(known for known in METRICS.values() if next(iter(known)) in rows[0])
    return {key: words for key, words in known.items() if any(key in row for row in rows)}


def main_metric(row: Mapping[str, Any]) -> tuple[str, str]:
    """The key of the figure that a row's task is about, and what it is called."""
    return next((key, words[0]) for key, words in metrics_of([row]).items())


def header(metrics: Mapping[str, tuple[str, int]]) -> tuple[str, ...]:
    return ("model", "strength", *(name for name, _ in metrics.values()))


def cells(models: Mapping[str, Mapping[str, Any]], new_head: bool) -> list[tuple[str, ...]]:
    """The rows of a run, header first. A head that was initialised anew has learned nothing: its accuracy is hidden."""
    metrics = metrics_of(models.values())
    rows = (row(label(key), found, metrics, new_head and not is_trained(key)) for key, found in models.items())
    return [header(metrics), *rows]


def row(
    name: str, found: Mapping[str, Any], metrics: Mapping[str, tuple[str, int]], hidden: bool = False
) -> tuple[str, ...]:
    """The cells of a model's figures; `hidden` are those of a head that has learned nothing."""
    figures = [
        "new head" if hidden and metric not in LAST_BLOCK else number(figure(found, metric), digits)
        for metric, (_, digits) in metrics.items()
    ]
    return (name, strength_cell(found["strengths"]), *figures)


def number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def plain(rows: Cells, columns: int | None = None) -> str:
    """For a terminal: header, a line, and rows; the first column to the left.

    Args:
        rows: Header first.
        columns: Of the terminal; a table that is wider becomes one block for each row. None for any width.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if columns is not None and sum(widths) + 2 * (len(widths) - 1) > columns:
        return "\n".join(_block(rows[0], row) for row in rows[1:])
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _block(header: Sequence[str], row: Sequence[str]) -> str:
    name = max(map(len, header[1:]))
    return "\n".join([row[0], *(f"  {word:<{name}}  {cell}" for word, cell in zip(header[1:], row[1:], strict=True))])


def markdown(rows: Cells) -> str:
    from timm_neutreno.hub.card import escaped

    rows = [[escaped(cell) for cell in row] for row in rows]
    header, *rest = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([header, "|" + "---|" * len(rows[0]), *rest])


def html(rows: Cells) -> str:
    header, *rest = rows
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rest)
    return f"<table>\n<tr>{head}</tr>\n{lines}</table>"
