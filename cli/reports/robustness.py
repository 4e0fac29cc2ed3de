"""How accuracy falls under corruptions and attacks, and what can be told of methods against the control."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .intervals import z_quantile

GROUPS = {"corruptions": "corruptions", "fgsm": "FGSM", "pgd": "PGD"}


def label(name: str, strength: float) -> str:
    """A condition in print: blur 3, fgsm 1/255."""
    return f"{name} {strength:g}/255" if name in GROUPS else name if name == "clean" else f"{name} {strength:g}"


def paired(ours: Sequence[Sequence[float]], control: Sequence[Sequence[float]], comparisons: int) -> dict[str, float]:
    """A mean accuracy against the control's, image by image.

    Args:
        ours: Condition -> image -> whether the method was right.
        control: Likewise.
        comparisons: How many such intervals shall hold together with 95 %.

    Returns:
        {"difference", "low", "high"} in points: the normal interval of the mean over images, which are taken as
        independent.
    """
    images = len(ours[0])
    differences = [
        100 * sum(one[index] - other[index] for one, other in zip(ours, control, strict=True)) / len(ours)
        for index in range(images)
    ]
    mean = math.fsum(differences) / images
    variance = math.fsum((value - mean) ** 2 for value in differences) / max(images - 1, 1)
    half = z_quantile(comparisons) * math.sqrt(variance / images)
    return {"difference": mean, "low": mean - half, "high": mean + half}


def sentences(document: Mapping[str, Any]) -> list[str]:
    """Who is more robust, in what, and what cannot be told."""
    found = []
    for method, groups in document["against_control"].items():
        for group, words in GROUPS.items():
            pair, means = groups[group], document["means"][group]
            word = "Better" if pair["low"] > 0 else "Worse" if pair["high"] < 0 else "No difference shown"
            found.append(
                f"{word} under {words}: {method} has {means[method]:.2f} % top-1, the control {means['control']:.2f} "
                f"%: {pair['difference']:+.2f} points, 95 % interval {pair['low']:+.2f} to {pair['high']:+.2f} "
                "(over images, widened for all comparisons)."
            )
    found.append(
        "FGSM and PGD use each model's own gradient and the same budget: what they leave is an upper bound, no proof."
    )
    return found


def cells(document: Mapping[str, Any]) -> list[list[str]]:
    """Top-1 in percent: a row per condition, a column per model, header first; then the means."""
    models = list(document["conditions"][0]["top1"])
    rows = [["condition", *models]]
    for condition in document["conditions"]:
        name = label(condition["name"], condition["strength"])
        rows.append([name, *(f"{condition['top1'][model]:.2f}" for model in models)])
    for group, words in GROUPS.items():
        rows.append([f"mean of {words}", *(f"{document['means'][group][model]:.2f}" for model in models)])
    return rows
