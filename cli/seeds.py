"""Runs that differ in the seed only: mean and spread of every row, and what NeuTRENO gained over its control.

Every seed is a pair: adapted and control saw the same data in the same order. So the difference is taken seed by seed,
and its 95 % interval is Student's: mean +- t(n - 1) * sd / sqrt(n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import Any

from .errors import UsageError
from .summary import ADAPTED, BEFORE, CONTROL, UNADAPTED, markdown_table, plain_table

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom
T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
METRICS = ("top1", "top5", "loss", "similarity")  # similarity: of the last block
SAME = ("checkpoint", "data", "epochs")  # facts that runs must share to be compared
EXACT = 1e-9  # floating point leaves this much of a difference of equal figures


def summarise(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several runs say together.

    Args:
        documents: One result (`summary.document`) per seed, in any order. A row may be missing, in one or in all.

    Returns:
        {"seeds", the shared facts, "models": {row: {"fidelity", "new_head", "runs", metric: {"mean", "sd", "values"}}},
        "differences": {metric: {"mean", "low", "high", "sd", "values"}}, "difference_seeds", "verdict"}.
        Differences are adapted minus control; there are none unless two seeds have both.

    Raises:
        UsageError: If there are fewer than two runs, two of the same seed, or runs of something else.
    """
    documents = sorted(documents, key=lambda document: document["seed"])
    _check(documents)
    names = list(dict.fromkeys(name for document in documents for name in document["models"]))
    pairs = [document for document in documents if {ADAPTED, CONTROL} <= document["models"].keys()]
    differences = {}
    if len(pairs) > 1:
        for metric in METRICS:
            values = [_figure(run, ADAPTED, metric) - _figure(run, CONTROL, metric) for run in pairs]
            differences[metric] = paired(values)
    return {
        "seeds": [document["seed"] for document in documents],
        **{key: documents[0][key] for key in SAME if key in documents[0]},
        "models": {name: _row(documents, name) for name in names},
        "differences": differences,
        "difference_seeds": [document["seed"] for document in pairs],
        "verdict": verdict(differences, len(pairs), pairs[0]["models"][ADAPTED]["images"] if pairs else 0),
    }


def paired(differences: Sequence[float]) -> dict[str, Any]:
    """Mean of at least two paired differences, and its 95 % interval."""
    mean, sd = fmean(differences), stdev(differences)
    half = t_quantile(len(differences) - 1) * sd / math.sqrt(len(differences))
    return {"mean": mean, "low": mean - half, "high": mean + half, "sd": sd, "values": list(differences)}


def t_quantile(df: int) -> float:
    """97.5 % quantile of Student's t.

    Above 30 degrees of freedom the first terms of its expansion around the normal quantile z = 1.96 (Abramowitz and
    Stegun 26.7.5): z + (z^3 + z) / 4 df + (5 z^5 + 16 z^3 + 3 z) / 96 df^2, right to four digits.
    """
    if df <= len(T_975):
        return T_975[df - 1]
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)


def verdict(differences: dict[str, Any], pairs: int, images: int) -> list[str]:
    """What the differences show, in sentences, and what they cannot show."""
    if not differences:
        return [
            f"{pairs or 'No'} seed{'' if pairs == 1 else 's'} with a control: this says nothing for or against "
            "NeuTRENO, since a gain may come from fine-tuning alone."
        ]
    return [
        _accuracy_sentence(differences["top1"], pairs, images),
        _similarity_sentence(differences["similarity"], pairs),
        "All seeds share one checkpoint and one data set: the intervals are about the chance of training, not about "
        "other images.",
    ]


def _accuracy_sentence(top1: dict[str, Any], seeds: int, images: int) -> str:
    if max(abs(value) for value in top1["values"]) < EXACT:
        return (
            f"Accuracy: no difference shown: adapted NeuTRENO and the control are equal in every one of {seeds} seeds."
        )
    interval = f"{_interval(top1, 2)}."
    what = "no difference shown"
    if top1["sd"] < EXACT:  # accuracies are multiples of one image: few seeds may agree by accident
        interval = (
            f"All seeds differ by the same number of images (one is {100 / images:.2f} points): there is no interval."
        )
    elif not contains_zero(top1):
        what = "NeuTRENO won" if top1["mean"] > 0 else "NeuTRENO is worse"
    return (
        f"Accuracy: {what}: {top1['mean']:+.2f} points of top-1 against the control, mean of {seeds} seeds, "
        f"better in {sum(value > EXACT for value in top1['values'])} of them. {interval}"
    )


def _similarity_sentence(similarity: dict[str, Any], seeds: int) -> str:
    how = f"{'less' if similarity['mean'] < 0 else 'more'} alike, by more than chance"
    if contains_zero(similarity):
        how = "no difference shown, within chance"
    return (
        f"Smoothing: the mean cosine similarity of the last block's tokens differs by {similarity['mean']:+.3f} from "
        f"the control's, mean of {seeds} seeds: {how}. {_interval(similarity, 3)}."
    )


def contains_zero(difference: dict[str, Any]) -> bool:
    return difference["low"] <= EXACT and difference["high"] >= -EXACT


def _interval(difference: dict[str, Any], digits: int) -> str:
    contains = "contains 0" if contains_zero(difference) else "does not contain 0"
    return f"The 95 % interval {difference['low']:+.{digits}f} to {difference['high']:+.{digits}f} {contains}"


def table(result: dict[str, Any]) -> str:
    """Mean and standard deviation over the seeds, for a terminal."""
    return plain_table(_cells(result))


def readme(result: dict[str, Any], title: str = "NeuTRENO adaptation, several seeds") -> str:
    """The README of the folder that holds the runs."""
    count = len(result["seeds"])
    facts = [f"{name.capitalize()}: {result[name]}." for name in SAME if name in result]
    lines = [
        f"# {title}",
        "",
        " ".join([*facts, f"Seeds {', '.join(map(str, result['seeds']))}; mean ± standard deviation (n - 1)."]),
        "",
        markdown_table(_cells(result)),
        "",
    ]
    if result["differences"]:
        seeds = result["difference_seeds"]
        lines += [
            f"Adapted minus control, seed by seed, and the 95 % interval of its mean (Student's t, {len(seeds) - 1} "
            f"degree{'s' if len(seeds) > 2 else ''} of freedom):",
            "",
            "| difference | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | 95 % interval |",
            "|---|" + "---|" * (len(seeds) + 2),
            *(_difference_line(metric, value) for metric, value in result["differences"].items()),
            "",
        ]
    if any(row["runs"] < count for row in result["models"].values()):
        lines += ["Rows with a number in brackets are of so many seeds only.", ""]
    return "\n".join([*lines, *(f"- {sentence}" for sentence in result["verdict"]), ""])


DIGITS = {"top1": 2, "top5": 2, "loss": 4, "similarity": 4}
NAMES = {"top1": "top-1", "top5": "top-5", "loss": "loss", "similarity": "similarity"}


def _difference_line(metric: str, difference: dict[str, Any]) -> str:
    digits = DIGITS[metric]
    figures = [f"{value:+.{digits}f}" for value in (*difference["values"], difference["mean"])]
    interval = f"{difference['low']:+.{digits}f} to {difference['high']:+.{digits}f}"
    return "| " + " | ".join([NAMES[metric], *figures, interval]) + " |"


def _cells(result: dict[str, Any]) -> list[tuple[str, ...]]:
    cells = []
    for name, row in result["models"].items():
        figures = [_spread(row[metric], DIGITS[metric]) for metric in METRICS]
        if row["new_head"]:
            figures[:3] = ["new head"] * 3
        label = name if row["runs"] == len(result["seeds"]) else f"{name} ({row['runs']})"
        cells.append((label, row["fidelity"], *figures))
    return cells


def _spread(figure: dict[str, Any], digits: int) -> str:
    mean = f"{figure['mean']:.{digits}f}"
    return mean if figure["sd"] is None else f"{mean} ± {figure['sd']:.{digits}f}"


def _row(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    runs = [document for document in documents if name in document["models"]]
    fidelities = {document["models"][name]["fidelity"] for document in runs}
    row: dict[str, Any] = {
        "fidelity": fidelities.pop() if len(fidelities) == 1 else "learned",  # to other values in every seed
        "new_head": name in (BEFORE, UNADAPTED) and bool(documents[0].get("new_head")),  # it has learned nothing yet
        "runs": len(runs),
    }
    for metric in METRICS:
        values = [_figure(document, name, metric) for document in runs]
        row[metric] = {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None, "values": values}
    return row


def _figure(document: dict[str, Any], name: str, metric: str) -> float:
    value = document["models"][name][metric]
    return value[-1] if metric == "similarity" else value


def _check(documents: list[dict[str, Any]]) -> None:
    seeds = [document["seed"] for document in documents]
    if len(seeds) < 2:
        raise UsageError(f"a spread needs runs of at least two seeds, got {len(seeds)}. Choose --seeds 2 or more.")
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed in seeds if seeds.count(seed) > 1)
        raise UsageError(f"two runs have the seed {twice}: they are not independent. Give every run its own --seed.")
    for key in SAME:
        values = {str(document.get(key)) for document in documents}
        if len(values) > 1:
            raise UsageError(f"the runs differ in more than the seed: {key} is {' and '.join(sorted(values))}.")
