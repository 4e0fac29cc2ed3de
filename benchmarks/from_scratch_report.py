"""What from_scratch.py writes of its runs: JSON, a table with what can be told of every comparison, and a figure."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import machine
from pages import interval, stated
from timm_neutreno_cli.reports.intervals import contains_zero, paired, t_quantile, z_quantile
from timm_neutreno_cli.runtime.files import write_text

from timm_neutreno.smoothing import METRICS
from timm_neutreno.smoothing.plots import curve_style, save_figure

Found = dict[str, list[dict[str, Any]]]  # variant -> what each seed's run gave
LAST = {"similarity": "block_similarity", "attention_similarity": "attention_similarity", "hfc_lfc": "block_hfc_lfc"}
FIGURES = {"top1": 2, "loss": 3, "similarity": 3}  # that are compared, and their decimals


def write(name: str, experiment: Any, recipe: dict[str, Any], found: Found, options: argparse.Namespace) -> None:
    """from_scratch_<name>.json, .md and .svg in --output."""
    several = min(map(len, found.values()))
    found = {variant: runs[:several] for variant, runs in found.items()}
    document = {
        "what": experiment.what,
        **machine.described(options.device),
        "size": options.size,
        "recipe": recipe,
        "seeds": several,
        "test_images": len(next(iter(found.values()))[0]["hits"]),
        "limits": experiment.limits,
        "curves": experiment.curves,
        "variants": {
            variant: entry(experiment.variants[variant], runs, next(iter(found.values())))
            for variant, runs in found.items()
        },
        "comparisons": [
            {"variant": a, "reference": b, **compared(found[a], found[b], len(experiment.pairs))}
            for a, b in experiment.pairs
        ],
    }
    stem = options.output / f"from_scratch_{name}"
    write_text(stem.with_suffix(".json"), json.dumps(document, indent=1) + "\n")
    write_text(stem.with_suffix(".md"), markdown(document))
    plot(document, stem.with_suffix(".svg"))


def entry(variant: Any, runs: list[dict[str, Any]], first: list[dict[str, Any]]) -> dict[str, Any]:
    """One variant: figures of every seed, and means over the seeds of what is measured by layer."""
    times = [mine["seconds_per_step"] / its["seconds_per_step"] for mine, its in zip(runs, first, strict=True)]
    curves = {name: [run["curves"][name] for run in runs] for name in runs[0]["curves"]}
    return {
        **variant._asdict(),
        "parameters": runs[0]["parameters"],
        **{name: [figure(run, name) for run in runs] for name in (*FIGURES, "attention_similarity", "hfc_lfc")},
        "strengths": {name: fmean(run["strengths"][name] for run in runs) for name in runs[0]["strengths"]},
        "negative_eigenvalues": fmean(run["negative_eigenvalues"] for run in runs),
        "negative_gains": fmean(run["negative_gains"] for run in runs),
        "time": fmean(times),
        "curves": {name: [fmean(layer) for layer in zip(*values, strict=True)] for name, values in curves.items()},
    }


def figure(run: dict[str, Any], name: str) -> float:
    """Measures by layer are those of the last layer."""
    return run["curves"][LAST[name]][-1] if name in LAST else run[name]


def compared(runs: list[dict[str, Any]], reference: list[dict[str, Any]], comparisons: int) -> dict[str, Any]:
    """Paired differences and their intervals, widened for all comparisons of the experiment (Bonferroni).

    Over seeds by Student's t; top-1 also over images, of the hits' mean over the seeds, by the normal distribution:
    what other seeds would change, and what other test images would.
    """
    pairs = list(zip(runs, reference, strict=True))
    found: dict[str, Any] = {
        name: paired([figure(a, name) - figure(b, name) for a, b in pairs], comparisons) for name in FIGURES
    }
    hits = [[[int(hit) for hit in run["hits"]] for run in side] for side in (runs, reference)]
    mine, others = ([fmean(image) for image in zip(*side, strict=True)] for side in hits)
    differences = [100 * (a - b) for a, b in zip(mine, others, strict=True)]
    mean = fmean(differences)
    half = z_quantile(comparisons) * stdev(differences) / math.sqrt(len(differences))
    return {**found, "images": {"mean": mean, "low": mean - half, "high": mean + half}}


# --- the page ---------------------------------------------------------------------------------------------------------


def markdown(document: dict[str, Any]) -> str:
    """The tables, and what can be told."""
    lines = [*head(document), "", *variants_table(document), "", *comparisons_table(document), ""]
    return "\n".join([*lines, *sentences(document), ""])


def head(document: dict[str, Any]) -> list[str]:
    recipe, seeds = document["recipe"], document["seeds"]
    lines = [
        f"{document['what']}. ViTs of width {recipe['width']}, {recipe['heads']} heads, patch {recipe['patch']} "
        f"({(32 // recipe['patch']) ** 2 + 1} tokens), Xavier weights; {recipe['train']:,} images, epochs: "
        f"{recipe['epochs']}, in batches of {recipe['batch_size']}, AdamW {recipe['lr']:g} with warm-up and "
        f"cosine, weight decay {recipe['weight_decay']:g}, shifts of {recipe['shift']} pixels"
        f"{' and flips' if recipe['flip'] else ''}, no dropout, {recipe['precision']}; seeds 0 to {seeds - 1}, the "
        f"same weights and batches for all variants of a seed. {document['test_images']:,} test images, last step, "
        "nothing chosen.",
        "",
        f"{stated(document)}: `{document['command']}`",
    ]
    if document["size"] == "quick":
        lines += ["", "**A trial of the script: its figures say nothing.**"]
    return lines


def variants_table(document: dict[str, Any]) -> list[str]:
    variants = document["variants"]
    first = next(iter(variants))
    lines = [
        f"| mean of the seeds | top-1 | sd | loss | similarity, last block | attention's | HFC / LFC, last block | "
        f"eigenvalues < 0 | parameters | time over {first} |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in variants.items():
        cells = [name, f"{fmean(row['top1']):.2f}", f"{stdev(row['top1']):.2f}", f"{fmean(row['loss']):.3f}"]
        cells += [f"{fmean(row[key]):.3f}" for key in ("similarity", "attention_similarity", "hfc_lfc")]
        cells += [f"{row['negative_eigenvalues']:.0%}", f"{row['parameters']:,}", f"{row['time']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def comparisons_table(document: dict[str, Any]) -> list[str]:
    number = len(document["comparisons"])
    lines = [
        f"| difference, 95 % for all {number} together | top-1, over seeds | top-1, over images | loss, over seeds | "
        "similarity, last block, over seeds |",
        "|---|---|---|---|---|",
    ]
    for row in document["comparisons"]:
        cells = [interval(row["top1"], 2), interval(row["images"], 2), interval(row["loss"], 3)]
        cells += [interval(row["similarity"], 3)]
        lines.append(f"| {row['variant']} - {row['reference']} | {' | '.join(cells)} |")
    return lines


def sentences(document: dict[str, Any]) -> list[str]:
    """What may be said: of top-1 only what other seeds and other images would both leave standing."""
    rows, df = document["comparisons"], document["seeds"] - 1
    better, worse, same = ([names(row) for row in rows if verdict(row) == v] for v in (1, -1, 0))
    lines = [
        f"Intervals are paired and each is widened so that all {len(rows)} of a column hold together with 95 % "
        f"(Bonferroni; with {df + 1} seeds {t_quantile(1 - 0.025 / len(rows), df):.1f} standard errors over seeds, "
        f"{z_quantile(len(rows)):.1f} over images). A difference of top-1 counts if it is beyond both intervals.",
        "",
        f"- Top-1 higher: {'; '.join(better) or 'none'}.",
        f"- Top-1 lower: {'; '.join(worse) or 'none'}.",
        f"- Top-1 within noise: {'; '.join(same) or 'none'}.",
        "- Of these beyond the chance of the images and the same way in every seed, which more seeds could settle: "
        f"{'; '.join(hints(rows)) or 'none'}.",
    ]
    for name, words in (("loss", "Test loss"), ("similarity", "Token similarity of the last block")):
        told = [
            f"{names(row)} ({row[name]['mean']:+.{FIGURES[name]}f})" for row in rows if not contains_zero(row[name])
        ]
        lines.append(f"- {words} beyond the interval over seeds: {'; '.join(told) or 'none'}.")
    lines += [f"- {line}" for line in learned(document)]
    lines.append(
        "- Time is that of a training step, CPU seconds of the process where there is no GPU: on a machine that others "
        "use too it is only indicative."
    )
    gains = max(row["negative_gains"] for row in document["variants"].values())
    lines.append(
        "- Eigenvalues are those of diag(g) W_V W_proj, g the gains of the norm before: the share with a negative real "
        "part, which sharpen (one that is clipped to 0 falls on either side by rounding). At most "
        f"{gains:.1%} of a variant's gains are negative, which would swap the two."
    )
    return [*lines, f"- What this cannot tell: {document['limits']}"]


def readme(document: dict[str, Any]) -> str:
    """In short: what is better or worse in top-1, and NeuTRENO alone."""
    rows = document["comparisons"]
    better, worse = (
        " and ".join(f"{names(row)} ({interval(row['top1'], 2)})" for row in rows if verdict(row) == sign) or "none"
        for sign in (1, -1)
    )
    alone = next(row for row in rows if (row["variant"], row["reference"]) == ("neutreno", "plain"))
    return (
        f"Trained from nothing, in very small ViTs on CIFAR-10 ({document['seeds']} seeds), top-1 is better by more "
        f"than chance in {better}, and worse in {worse}. NeuTRENO alone changes the plain model's top-1 by "
        f"{interval(alone['top1'], 2)} points, its loss by {interval(alone['loss'], 3)} and its token similarity by "
        f"{interval(alone['similarity'], 3)}."
    )


def names(row: dict[str, Any]) -> str:
    return f"{row['variant']} against {row['reference']}"


def hints(rows: list[dict[str, Any]]) -> list[str]:
    """What all seeds and the images agree on, while the seeds are too few or too different to be sure."""
    return [
        f"{names(row)} ({row['top1']['mean']:+.2f})"
        for row in rows
        if verdict(row) == 0 and not contains_zero(row["images"]) and one_sided(row["top1"]["values"])
    ]


def one_sided(values: list[float]) -> bool:
    return min(values) > 0 or max(values) < 0


def verdict(row: dict[str, Any]) -> int:
    """1 if better, -1 if worse, 0 if within the noise of seeds or of images."""
    if contains_zero(row["top1"]) or contains_zero(row["images"]):
        return 0
    return 1 if row["top1"]["mean"] > 0 else -1


def learned(document: dict[str, Any]) -> list[str]:
    return [
        f"Mean absolute strength that {name} has learned: "
        + ", ".join(f"{strength} {value:.4f}" for strength, value in row["strengths"].items())
        + "."
        for name, row in document["variants"].items()
        if row["strengths"]
    ]


# --- the figure -------------------------------------------------------------------------------------------------------


def plot(document: dict[str, Any], path: Path) -> None:
    """Differences of top-1 with both intervals, and curves by layer: a panel for each depth and measure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    variants = document["variants"]
    depths = sorted({row["depth"] for row in variants.values()})
    panels = [(depth, metric) for depth in depths for metric in document["curves"]]
    size = (4.6 + 3.4 * len(panels), 1.6 + 0.28 * max(9, len(document["comparisons"])))
    drawing = Figure(figsize=size, layout="constrained")
    forest, *axes = drawing.subplots(1, 1 + len(panels), width_ratios=[1.3, *[1] * len(panels)])
    plot_differences(document["comparisons"], forest)
    for (depth, metric), panel in zip(panels, axes, strict=True):
        shown = {name: row for name, row in variants.items() if row["depth"] == depth}
        for index, (name, row) in enumerate(shown.items()):
            values = row["curves"][metric]
            panel.plot(
                range(1, depth + 1), values, label=name.partition(",")[0], markevery=max(1, depth // 12),
                **curve_style(index),
            )  # fmt: skip
        panel.set_title(f"{depth} layers", fontsize=10)
        panel.set_xlabel("Layer")
        panel.set_ylabel(METRICS[metric].label)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False)
    save_figure(drawing, path)


def plot_differences(rows: list[dict[str, Any]], axes: Any) -> None:
    for index, row in enumerate(reversed(rows)):
        for offset, key, style in ((0.12, "top1", curve_style(0)), (-0.12, "images", curve_style(1))):
            difference = row[key]
            ends = [[difference["mean"] - difference["low"]], [difference["high"] - difference["mean"]]]
            axes.errorbar(
                [difference["mean"]], [index + offset], xerr=ends, color=style["color"], marker=style["marker"],
                markersize=4, capsize=2, label=None if index else {"top1": "over seeds", "images": "over images"}[key],
            )  # fmt: skip
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{row['variant']}\n- {row['reference']}" for row in reversed(rows)], fontsize=7)
    axes.set_xlabel(f"Difference of top-1 in points,\n95 % for all {len(rows)} together")
    axes.legend(fontsize=7, frameon=False)
    axes.grid(alpha=0.3, axis="x")
