"""What language_model.py writes of its runs: JSON, a table with what can be told, and figures of token similarity."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from typing import Any

import machine
import torch
from pages import stated
from text import Texts
from timm_neutreno_cli.runtime.files import write_text
from torch import Tensor

from timm_neutreno.probing import paired_differences
from timm_neutreno.smoothing import METRICS, plot_similarity

SIMILARITIES = ("block_similarity", "attention_similarity")
PARTS = ("train", "val", "test")
RECIPE = (
    "level", "min_count", "limit", "dim", "depth", "num_heads", "mlp_ratio", "context", "norm", "drop_rate", "cutoffs",
    "batch_size", "steps", "lr", "warmup", "clip", "stride", "stretch",
)  # fmt: skip

Runs = dict[str, list[dict[str, Any]]]  # arm -> what each seed's run gave


def write(found: Runs, texts: Texts, options: argparse.Namespace) -> None:
    """language_model.json, .md, and an .svg for each similarity."""
    rows = {arm: row(results, found["plain"], options.stretch, len(found) - 1) for arm, results in found.items()}
    seeds = min(map(len, found.values()))
    document = {
        **machine.described(options.device),
        "recipe": {name: getattr(options, name) for name in RECIPE},
        "precision": "float32" if options.float32 else "bfloat16 autocast",
        "seeds": seeds,
        "vocabulary": texts.vocabulary,
        "texts": {name: text_of(name, texts, options) for name in PARTS},
        "rows": rows,
    }
    write_text(options.output / "language_model.json", json.dumps(document, indent=1) + "\n")
    write_text(options.output / "language_model.md", markdown(document))
    for metric in SIMILARITIES:
        curves = {arm: entry["similarity"][metric] for arm, entry in rows.items()}
        path = options.output / f"language_model_{metric.removesuffix('_similarity')}.svg"
        plot_similarity(curves, path, ylabel=METRICS[metric].label, title=f"Val text, mean of {seeds} seeds")


def text_of(name: str, texts: Texts, options: argparse.Namespace) -> dict[str, Any]:
    part, files = getattr(texts, name), getattr(options, name)
    return {
        "files": [path.name for path in files] if files else "the last tenth of the training text",
        "length": len(part),
        "unknown": round(texts.unknown(part), 4),
    }


def row(results: list[dict], plain: list[dict], stretch: int, comparisons: int) -> dict[str, Any]:
    """One arm: perplexities of every seed, and on test its difference from plain.

    Args:
        results: What each seed's run gave: losses of every token, similarities, seconds.
        plain: Likewise, of the arm that it is compared with.
        stretch: Tokens that are drawn together.
        comparisons: How many arms are compared: the second interval holds for all of them (Bonferroni).
    """
    mine, theirs = (counts([result["losses"]["test"] for result in arm], stretch) for arm in (results, plain))
    levels = (0.95, 1 - 0.05 / max(1, comparisons))
    pairs = zip(of_each_seed(results, "test"), of_each_seed(plain, "test"), strict=True)
    layers = {
        metric: zip(*(result["similarity"][metric] for result in results), strict=True) for metric in SIMILARITIES
    }
    return {
        "val": of_each_seed(results, "val"),
        "test": of_each_seed(results, "test"),
        "difference": [list(difference) for difference in paired_differences(theirs, [mine], perplexity, levels)[0]],
        "difference_of_seeds": [a - b for a, b in pairs],
        "similarity": {metric: [statistics.fmean(values) for values in each] for metric, each in layers.items()},
        "cpu_seconds": {what: [round(r[f"{what}_seconds"]) for r in results] for what in ("train", "evaluation")},
    }


def of_each_seed(results: list[dict], part: str) -> list[float]:
    return [math.exp(result["losses"][part].double().mean()) for result in results]


def counts(losses: list[Tensor], stretch: int) -> Tensor:
    """Of each stretch of text the sum of losses, mean of the seeds, and its length: (stretches, 2) float64."""
    mean = torch.stack(losses).double().mean(dim=0)
    return torch.stack([torch.stack([part.sum(), part.new_tensor(len(part))]) for part in mean.split(stretch)])


def perplexity(counted: Tensor) -> Tensor:
    """(..., 2) sums of losses and lengths -> (...). Of several seeds it is the geometric mean."""
    return (counted[..., 0] / counted[..., 1]).exp()


def markdown(document: dict[str, Any]) -> str:
    """The table and what can be told."""
    rows, recipe, seeds = document["rows"], document["recipe"], document["seeds"]
    fidelities = [arm for arm in rows if arm.startswith("NeuTRENO")]
    best = min(fidelities, key=lambda arm: geometric_mean(rows[arm]["val"]), default=None)
    texts = [f"{name} {text['length']:,} ({text['unknown']:.1%} <unk>)" for name, text in document["texts"].items()]
    lines = [
        f"Perplexity, {recipe['level']} level, window of {recipe['context']} at stride {recipe['stride']}. "
        f"{', '.join(texts)}; vocabulary {document['vocabulary']:,}. {recipe['depth']} {recipe['norm']}-norm layers, "
        f"width {recipe['dim']}, {recipe['num_heads']} heads, feed-forward {recipe['dim'] * recipe['mlp_ratio']:g}; "
        f"{recipe['steps']:,} steps of {recipe['batch_size']} x {recipe['context']}, Adam {recipe['lr']:g}, dropout "
        f"{recipe['drop_rate']:g}, {document['precision']}, seeds 0 to {seeds - 1}.",
        "",
        f"{stated(document)}: `{document['command']}`",
        "",
        "| | val | test | test - plain, 95 % over text | by seed | block similarity, last layer | attention's |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, entry in rows.items():
        value, low, high = entry["difference"][0]
        cells = [arm, f"{geometric_mean(entry['val']):.2f}{'*' if arm == best else ''}"]
        cells += [f"{geometric_mean(entry['test']):.2f}"]
        cells += ["" if arm == "plain" else f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"]
        cells += ["" if arm == "plain" else ", ".join(f"{d:+.2f}" for d in entry["difference_of_seeds"])]
        cells += [f"{entry['similarity'][metric][-1]:.3f}" for metric in SIMILARITIES]
        lines.append(f"| {' | '.join(cells)} |")
    seeds_of_plain = ", ".join(f"{value:.2f}" for value in rows["plain"]["test"])
    lines += [
        "",
        f"Means of the seeds; \\* the fidelity that val chooses. The seeds of plain on test: {seeds_of_plain}.",
        "",
    ]
    lines += [f"- {sentence(arm, entry)}" for arm, entry in rows.items() if arm == best or arm.startswith("value")]
    return "\n".join([*lines, ""])


def geometric_mean(perplexities: list[float]) -> float:
    """The exponential of the mean loss."""
    return math.exp(statistics.fmean(map(math.log, perplexities)))


def sentence(arm: str, entry: dict[str, Any]) -> str:
    """What may be said of one arm: its interval over text, at the level for all arms, and every seed must agree."""
    value, low, high = entry["difference"][1]
    smallest, largest = min(entry["difference_of_seeds"]), max(entry["difference_of_seeds"])
    told = f"{arm}: {value:+.2f} [{low:+.2f}, {high:+.2f}] test perplexity against plain, seeds {smallest:+.2f} to "
    told += f"{largest:+.2f}: "
    if max(high, largest) < 0:
        return told + "lower, in every seed and by more than the chance of the text."
    if min(low, smallest) > 0:
        return told + "higher, in every seed and by more than the chance of the text."
    return told + "no difference can be told."
