"""One page of HTML that opens from disk and asks the network for nothing: a summary, then sections."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import tables
from .verdict import BETTER, OPEN, WORSE

if TYPE_CHECKING:
    from timm_neutreno.smoothing import Smoothing

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: anywhere; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; }
p { max-width: 46rem; }
img { display: block; max-width: 100%; max-height: 44rem; object-fit: contain; margin: 1rem 0; }
img.wide { min-width: 44rem; }
pre { background: #f4f4f4; padding: 0.7rem; white-space: pre-wrap; font-size: 0.9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; overflow-wrap: normal; }
th, td { border: 1px solid #ccc; padding: 0.2rem 0.6rem; text-align: right; }
th, td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.facts td:first-child { white-space: nowrap; color: #555; }
summary { cursor: pointer; }
.word { padding: 0.1rem 0.5rem; border-radius: 0.3rem; border: 1px solid; font-weight: 600; white-space: nowrap; }
.better { color: #00573f; background: #dff3ec; } .worse { color: #8a2f00; background: #fbe6da; }
.open { color: #333; background: #ececec; }
footer { margin-top: 3rem; color: #555; font-size: 0.85rem; }
"""
WORDS = {BETTER.capitalize(): "better", OPEN.capitalize(): "open", WORSE.capitalize(): "worse"}
WORD = re.compile(f"({'|'.join(WORDS)}):")


class Section(NamedTuple):
    """One part of the report.

    Attributes:
        title: Heading.
        text: Paragraphs, plain text.
        plots: Image files to embed, each with the words for who cannot see it.
        table: Rows of cells, header first; may be empty.
        facts: Pairs of a topic and words on it.
        code: Lines to copy.
        links: Addresses relative to the page, each with its words.
    """

    title: str
    text: Sequence[str]
    plots: Sequence[tuple[Path, str]] = ()
    table: Sequence[Sequence[str]] = ()
    facts: Sequence[tuple[str, str]] = ()
    code: str = ""
    links: Sequence[tuple[str, str]] = ()


def render(title: str, introduction: Sequence[str], sections: Sequence[Section], footer: str = "") -> str:
    """The whole page. A paragraph that begins with a verdict's word shows it in colour."""
    body = "".join(map(_paragraph, introduction))
    body += "".join(map(_section, sections))
    body += f"<footer>{escape(footer)}</footer>\n" if footer else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}"
        "</body>\n</html>\n"
    )


def _paragraph(text: str) -> str:
    word = WORD.match(text)
    if not word:
        return f"<p>{escape(text)}</p>\n"
    return f'<p><span class="word {WORDS[word[1]]}">{word[1]}</span> {escape(text[word.end() :].strip())}</p>\n'


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>\n", *map(_paragraph, section.text)]
    parts += [_picture(path, words) for path, words in section.plots]
    if section.table:
        table = f'<div class="scroll">{tables.html(section.table)}</div>\n'
        parts.append(f"<details><summary>Numbers</summary>\n{table}</details>\n" if section.plots else table)
    if section.facts:
        rows = "".join(f"<tr><td>{escape(topic)}</td><td>{escape(words)}</td></tr>\n" for topic, words in section.facts)
        parts.append(f'<table class="facts">\n{rows}</table>\n')
    parts += [f"<pre>{escape(section.code)}</pre>\n"] if section.code else []
    parts += [f'<p><a href="{escape(to, quote=True)}">{escape(words)}</a></p>\n' for to, words in section.links]
    return "".join(parts)


def _picture(path: Path, words: str) -> str:
    """The picture, embedded. A wide one can be moved sideways on a narrow screen, where it would be too small."""
    size = struct.unpack(">II", path.read_bytes()[16:24]) if path.suffix == ".png" else (1, 1)
    kind = ' class="wide"' if size[0] > 2 * size[1] else ""
    return f'<div class="scroll"><img{kind} src="{_data_address(path)}" alt="{escape(words, quote=True)}"></div>\n'


def _data_address(path: Path) -> str:
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def last_layer(results: Sequence[Smoothing]) -> list[list[str]]:
    """A table of the last layer's values: a row for each metric, a column for each model."""
    return [
        ["last layer", *(result.model for result in results)],
        *([name, *(_number(result.values[name][-1]) for result in results)] for name in results[0].values),
    ]


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


def summary(results: Sequence[Smoothing], more: str) -> Section:
    """What a reader wants to know first: the first metric in words, and the last layer in numbers."""
    from timm_neutreno.smoothing import METRICS

    metric = next(iter(results[0].values))
    label = " ".join(METRICS[metric].label.split())
    ends = ", ".join(f"{result.values[metric][-1]:.3g} in {result.model}" for result in results)
    words = [f"{label}, last layer: {ends}.", *(compare(other, results[0], metric) for other in results[1:])]
    return Section("Summary", [" ".join(words), METRICS[metric].meaning, more], table=last_layer(results))


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
        f"{tables.count(len(differences), 'layer')} (mean difference {sum(differences) / len(differences):+.3g})."
    )
