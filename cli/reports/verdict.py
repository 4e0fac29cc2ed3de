"""What figures show, in plain sentences. Each begins with one of three words: better, no difference shown, worse.

Better and worse are said only of what lies outside its interval, and only against a control.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .intervals import EXACT, contains_zero, z_quantile
from .tables import CHECKPOINT, count, main_metric

CONTROL = "control"
BETTER, OPEN, WORSE = "better", "no difference shown", "worse"
BY_ITSELF = "Lower is not better by itself."
ALONE = "without a control, a gain may be fine-tuning alone"


def outcomes(models: Mapping[str, Mapping[str, Any]], methods: Sequence[str]) -> dict[str, str]:
    """The word for each method of one run."""
    if CONTROL not in models:
        return dict.fromkeys(methods, OPEN)
    return {method: _word(*_interval_over_images(models[method], models[CONTROL], len(methods))) for method in methods}


def of_run(models: Mapping[str, Mapping[str, Any]], methods: Sequence[str]) -> list[str]:
    """What one run shows of each of its methods against the control, and how much of it is chance in these images."""
    if CONTROL not in models:
        return [sentence for method in methods for sentence in _no_control(method, models)]
    control, sentences = models[CONTROL], []
    for method in methods:
        sentences.append(_accuracy(method, models[method], control, len(methods)))
        sentences.append(_similarity(method, models[method], control, "the control", len(methods)))
    return [
        *sentences,
        *_several(len(methods)),
        "All this is from one seed. Training again with another seed would give other figures; --seeds 3 measures by "
        "how much.",
    ]


def _word(low: float, high: float) -> str:
    return BETTER if low > EXACT else WORSE if high < -EXACT else OPEN


def _no_control(method: str, models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Only a control can tell a method's part from that of fine-tuning."""
    row = models[method]
    key, name = main_metric(row)
    return [
        f"{OPEN.capitalize()}: {ALONE}. {method} has {row[key]:.2f} % {name} on {count(row['images'], 'image')} with "
        "one seed, which says nothing for or against it. Run it again without --no-control.",
        _similarity(method, row, models[CHECKPOINT], "the checkpoint as it came", 1)
        + " That, too, may be fine-tuning alone.",
    ]


def _several(comparisons: int) -> list[str]:
    if comparisons < 2:
        return []
    return [
        f"{comparisons} methods were compared with one control: the intervals are widened to hold for all together."
    ]


def _interval_over_images(
    row: Mapping[str, Any], control: Mapping[str, Any], comparisons: int
) -> tuple[float, float]:  # fmt: skip
    """Of the difference of two proportions, as if each had its own images: cautious, since both saw the same.

    One image more is counted right and one wrong in each (Agresti and Caffo, 2000): else the interval would shrink to
    nothing at 100 %. For mIoU the spread over images is that of what each adds to it in both (timm_neutreno/miou.py).
    """
    if "miou" in row:
        pairs = zip(row["miou_by_image"], control["miou_by_image"], strict=True)
        difference = row["miou"] - control["miou"]
        noise = z_quantile(comparisons) * math.sqrt(sum((a - b) ** 2 for a, b in pairs))
        return difference - noise, difference + noise
    images = row["images"]
    p = ((row["top1"] + control["top1"]) / 100 * images + 2) / (2 * images + 4)
    noise = z_quantile(comparisons) * 100 * math.sqrt(2 * p * (1 - p) / images)
    difference = row["top1"] - control["top1"]
    return difference - noise, difference + noise


def _accuracy(method: str, row: Mapping[str, Any], control: Mapping[str, Any], comparisons: int) -> str:
    low, high = _interval_over_images(row, control, comparisons)
    key, name = main_metric(row)
    difference, images = row[key] - control[key], count(row["images"], "image")
    differing = round(abs(difference) * row["images"] / 100)
    of_images = f" ({count(differing, 'image')})" if key == "top1" else ""
    told = (
        f"{method} has {row[key]:.2f} % {name}, the control {control[key]:.2f} %: {difference:+.2f} points{of_images}, "
        f"95 % interval {low:+.2f} to {high:+.2f}, on {images} with one seed"
    )
    if (differing if key == "top1" else abs(difference) > EXACT) == 0:
        told = f"{method} and the control are equal at {row[key]:.2f} % {name}, on {images} with one seed"
    return (
        f"{_word(low, high).capitalize()}: {told}. With this many images, only a difference of "
        f"{(high - low) / 2:.2f} points or more would show."
    )


def _similarity(method: str, row: Mapping[str, Any], other: Mapping[str, Any], name: str, comparisons: int) -> str:
    a, b = row["similarity"][-1], other["similarity"][-1]
    noise = z_quantile(comparisons) * math.hypot(row["similarity_error"], other["similarity_error"])
    how = f"{'lower' if a < b else 'higher'}, by more than the noise over images ({noise:.3f})"
    if abs(a - b) <= noise:
        how = f"no difference shown, within the noise over images ({noise:.3f})"
    return f"Token similarity in the last block: {a:.3f} in {method}, {b:.3f} in {name}: {how}. {BY_ITSELF}"


def of_seeds(
    differences: Mapping[str, Mapping[str, Any]], methods: Sequence[str], pairs: int, images: int
) -> list[str]:
    """What several seeds show: differences to the control by method and metric, of so many pairs."""
    if not differences:
        return [
            f"{OPEN.capitalize()}: {ALONE}. {'Only one seed' if pairs else 'No seed'} has a control, and a comparison "
            "of "
            f"seeds needs two. This says nothing for or against {' or '.join(methods)}."
        ]
    sentences = []
    for method, by_metric in differences.items():
        sentences.append(_seeds_accuracy(method, by_metric, pairs, images))
        sentences.append(_seeds_similarity(method, by_metric["similarity"], pairs))
    return [
        *sentences,
        *_several(len(differences)),
        "All seeds share one checkpoint and one data set: the intervals are about the chance of training, not about "
        "other images.",
    ]


def outcomes_of_seeds(differences: Mapping[str, Mapping[str, Any]], methods: Sequence[str]) -> dict[str, str]:
    """The word for each method."""
    return {
        method: _seeds_word(differences[method][main_metric(differences[method])[0]]) if differences else OPEN
        for method in methods
    }


def _seeds_word(main: Mapping[str, Any]) -> str:
    """Accuracies are multiples of one image: few seeds may agree to the last by accident, which is no interval."""
    return OPEN if main["sd"] < EXACT else _word(main["low"], main["high"])


def _seeds_accuracy(method: str, by_metric: Mapping[str, Mapping[str, Any]], seeds: int, images: int) -> str:
    key, name = main_metric(by_metric)
    top1 = by_metric[key]
    word, where = _seeds_word(top1).capitalize(), f"{count(seeds, 'seed')} on {count(images, 'image')}"
    if max(abs(value) for value in top1["values"]) < EXACT:
        return f"{word}: {method} and the control are equal in every one of {where}."
    if top1["sd"] < EXACT:
        return (
            f"{word}: {method} differs from the control by {top1['mean']:+.2f} points of {name} in every one of "
            f"{where}. The same number of images each time (one is {100 / images:.2f} points) gives no interval."
        )
    return (
        f"{word}: {method} against the control: {top1['mean']:+.2f} points of {name}, 95 % interval {top1['low']:+.2f} "
        f"to {top1['high']:+.2f}, mean of {where}; better in {sum(value > EXACT for value in top1['values'])} of them. "
        f"With seeds that scatter like these, only a difference of {(top1['high'] - top1['low']) / 2:.2f} points or "
        "more would show."
    )


def _seeds_similarity(method: str, similarity: Mapping[str, Any], seeds: int) -> str:
    how = f"{'lower' if similarity['mean'] < 0 else 'higher'}, by more than chance"
    if contains_zero(similarity):
        how = "no difference shown, within chance"
    return (
        f"Token similarity in the last block: {method} differs from the control by {similarity['mean']:+.3f}, 95 % "
        f"interval {similarity['low']:+.3f} to {similarity['high']:+.3f}, mean of {count(seeds, 'seed')}: {how}. "
        f"{BY_ITSELF}"
    )
