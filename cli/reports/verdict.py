"""What figures show, in plain sentences: who won, who did not, and what cannot be told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .intervals import EXACT, contains_zero, z_quantile

CONTROL = "control"


def of_run(models: Mapping[str, Mapping[str, Any]], methods: Sequence[str]) -> list[str]:
    """What one run shows of each of its methods against the control, and how much of it is chance in these images."""
    if CONTROL not in models:
        return [_no_control(methods)]
    control, sentences = models[CONTROL], []
    for method in methods:
        sentences.append(_accuracy(method, models[method], control, len(methods)))
        sentences.append(_similarity(method, models[method], control, len(methods)))
    return [*sentences, *_several(len(methods), "margins of noise")]


def _no_control(methods: Sequence[str]) -> str:
    return (
        f"Without a control, what {' or '.join(methods)} gained cannot be told from what further training alone would "
        "have gained."
    )


def _several(comparisons: int, what: str) -> list[str]:
    if comparisons < 2:
        return []
    return [f"{comparisons} methods were compared with one control: the {what} are widened to hold for all together."]


def _accuracy(method: str, row: Mapping[str, Any], control: Mapping[str, Any], comparisons: int) -> str:
    """Standard errors of a difference of two proportions: cautious, since both saw the same images."""
    images = row["images"]
    difference = row["top1"] - control["top1"]
    p = (row["top1"] + control["top1"]) / 200
    noise = z_quantile(comparisons) * 100 * math.sqrt(max(2 * p * (1 - p), 1e-12) / images)
    count = round(abs(difference) * images / 100)
    if count == 0:
        return f"Accuracy: {method} and the control are equal at {row['top1']:.2f} % top-1 on {images} images."
    figures = f"{difference:+.2f} points of top-1, {count} of {images} images (one is {100 / images:.2f} points)"
    if abs(difference) < noise:
        return (
            f"Accuracy: no difference shown between {method} and the control: {figures}, within the noise of these "
            f"images (about {noise:.2f} points)."
        )
    won = "won against" if difference > 0 else "lost against"
    return (
        f"Accuracy: {method} {won} the control: {figures}, more than the noise of these images (about {noise:.2f} "
        "points), for one seed."
    )


def _similarity(method: str, row: Mapping[str, Any], control: Mapping[str, Any], comparisons: int) -> str:
    a, b = row["similarity"][-1], control["similarity"][-1]
    noise = z_quantile(comparisons) * math.hypot(row["similarity_error"], control["similarity_error"])
    how = f"{'less' if a < b else 'more'} alike, by more than the noise over images"
    if abs(a - b) < noise or a == b:
        how = "no difference shown, within the noise over images"
    return (
        f"Smoothing: tokens of the last block have mean cosine similarity {a:.3f} in {method} against {b:.3f} in the "
        f"control: {how} (about {noise:.3f})."
    )


def of_seeds(
    differences: Mapping[str, Mapping[str, Any]], methods: Sequence[str], pairs: int, images: int
) -> list[str]:
    """What several seeds show: differences to the control by method and metric, of so many pairs."""
    if not differences:
        if not pairs:
            return [_no_control(methods)]
        return [f"{pairs} seed with a control: no interval can be given, so no difference is shown."]
    sentences = []
    for method, by_metric in differences.items():
        sentences.append(_seeds_accuracy(method, by_metric["top1"], pairs, images))
        sentences.append(_seeds_similarity(method, by_metric["similarity"], pairs))
    return [
        *sentences,
        *_several(len(differences), "intervals"),
        "All seeds share one checkpoint and one data set: the intervals are about the chance of training, not about "
        "other images.",
    ]


def _seeds_accuracy(method: str, top1: Mapping[str, Any], seeds: int, images: int) -> str:
    if max(abs(value) for value in top1["values"]) < EXACT:
        return f"Accuracy: {method} and the control are equal in every one of {seeds} seeds."
    won = f"{method} {'won' if top1['mean'] > 0 else 'lost'} against the control"
    chance = f"{_interval(top1, 2)}."
    if top1["sd"] < EXACT:  # accuracies are multiples of one image: few seeds may agree by accident
        won = f"no difference shown between {method} and the control"
        chance = (
            f"All seeds differ by the same number of images (one is {100 / images:.2f} points): there is no interval."
        )
    elif contains_zero(top1):
        won = f"no difference shown between {method} and the control"
    better = sum(value > EXACT for value in top1["values"])
    return (
        f"Accuracy: {won}: {top1['mean']:+.2f} points of top-1, mean of {seeds} seeds, better in {better} of them. "
        f"{chance}"
    )


def _seeds_similarity(method: str, similarity: Mapping[str, Any], seeds: int) -> str:
    how = f"{'less' if similarity['mean'] < 0 else 'more'} alike, by more than chance"
    if contains_zero(similarity):
        how = "no difference shown"
    return (
        f"Smoothing: the mean cosine similarity of the last block's tokens in {method} differs by "
        f"{similarity['mean']:+.3f} from the control's, mean of {seeds} seeds: {how}. {_interval(similarity, 3)}."
    )


def _interval(difference: Mapping[str, Any], digits: int) -> str:
    contains = "contains 0" if contains_zero(difference) else "does not contain 0"
    return f"The 95 % interval {difference['low']:+.{digits}f} to {difference['high']:+.{digits}f} {contains}"
