"""report.html of `neutreno analyze`: one file, no network, that says in words what each plot shows."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import tables

if TYPE_CHECKING:
    from timm_neutreno.smoothing import Smoothing

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 52rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: anywhere; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; }
img { display: block; max-width: 100%; height: auto; margin: 1rem auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; overflow-wrap: normal; }
th, td { border: 1px solid #ccc; padding: 0.2rem 0.6rem; text-align: right; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
summary { cursor: pointer; }
"""


class Section(NamedTuple):
    """One part of the report.

    Attributes:
        title: Heading.
        text: Paragraphs, plain text.
        plots: Image files to embed, each with the words for who cannot see it.
        table: Rows of cells, header first; may be empty.
    """

    title: str
    text: Sequence[str]
    plots: Sequence[tuple[Path, str]] = ()
    table: Sequence[Sequence[str]] = ()


def render(title: str, introduction: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole page."""
    body = "".join(f"<p>{escape(paragraph)}</p>\n" for paragraph in introduction)
    body += "".join(map(_section, sections))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}"
        "</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>\n"]
    parts += [f"<p>{escape(paragraph)}</p>\n" for paragraph in section.text]
    parts += [f'<img src="{_data_address(path)}" alt="{escape(words, quote=True)}">\n' for path, words in section.plots]
    if section.table:
        table = tables.html(section.table)
        state = "" if section.plots else " open"
        parts.append(f'<details{state}><summary>Numbers</summary>\n<div class="scroll">{table}</div></details>\n')
    return "".join(parts)


def _data_address(path: Path) -> str:
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def metric_section(results: Sequence[Smoothing], metric: str, plot: Path) -> Section:
    """What one metric shows, for all models."""
    from timm_neutreno.smoothing import METRICS

    title = " ".join(METRICS[metric].label.split())
    sentences = [describe(result.model, result.values[metric]) for result in results]
    first, *others = results
    sentences += [compare(other, first, metric) for other in others]
    table = [["layer", *(f"{result.model} (std)" for result in results)]]
    for layer in range(max(len(result.values[metric]) for result in results)):
        table.append([str(layer + 1), *(_cell(result, metric, layer) for result in results)])
    return Section(title, [METRICS[metric].meaning, " ".join(sentences)], [(plot, f"Plot by layer. {title}")], table)


def _cell(result: Smoothing, metric: str, layer: int) -> str:
    if layer >= len(result.values[metric]):
        return ""
    return f"{result.values[metric][layer]:.4g} ({result.spread[metric][layer]:.2g})"


def describe(name: str, values: Sequence[float]) -> str:
    """Where a curve starts, ends and peaks, as a sentence."""
    top, low = max(values), min(values)
    return (
        f"{name} goes from {values[0]:.3g} in layer 1 to {values[-1]:.3g} in layer {len(values)}; "
        f"its highest is {top:.3g} in layer {values.index(top) + 1}, "
        f"its lowest {low:.3g} in layer {values.index(low) + 1}."
    )


def compare(result: Smoothing, reference: Smoothing, metric: str) -> str:
    """How a model's curve lies to the first model's, as a sentence."""
    mine, theirs = result.values[metric], reference.values[metric]
    if len(mine) != len(theirs):
        return f"{result.model} has another number of layers than {reference.model}, so they are not compared."
    differences = [a - b for a, b in zip(mine, theirs, strict=True)]
    lower = sum(d < 0 for d in differences)
    higher = sum(d > 0 for d in differences)
    return (
        f"Compared with {reference.model}, {result.model} is lower in {lower} and higher in {higher} of "
        f"{len(differences)} layers (mean difference {sum(differences) / len(differences):+.3g})."
    )
