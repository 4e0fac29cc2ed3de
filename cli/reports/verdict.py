"""What figures show, in plain sentences: who won, who did not, and what cannot be told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .intervals import EXACT, contains_zero, z_quantile
from .tables import CHECKPOINT, METRICS

CONTROL = "control"


def of_run(models: Mapping[str, Mapping[str, Any]], methods: Sequence[str]) -> list[str]:
    """What one run shows of each of its methods against the control, and how much of it is chance in these images."""
    if CONTROL not in models:
        return [sentence for method in methods for sentence in _no_control(method, models)]
    control, sentences = models[CONTROL], []
    for method in methods:
        sentences.append(_accuracy(method, models[method], control, len(methods)))
        sentences.append(_similarity(method, models[method], control, "the control", len(methods)))
    return [*sentences, *_several(len(methods))]


def _no_control(method: str, models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Only a control can tell a method's part from that of fine-tuning."""
    row = models[method]
    name, value = ("mIoU", row["miou"]) if "miou" in row else ("top-1", row["top1"])
    return [
        f"Accuracy: {method} has {value:.2f} % {name} on {row['images']} images. There is no control, so this "
        f"says nothing for or against {method}: a gain may come from fine-tuning alone.",
        _similarity(method, row, models[CHECKPOINT], "the checkpoint as it came", 1)
        + " That, too, may come from fine-tuning alone.",
    ]


def _several(comparisons: int) -> list[str]:
    if comparisons < 2:
        return []
    return [
        f"{comparisons} methods were compared with one control: the intervals are widened to hold for all together."
    ]


def _accuracy(method: str, row: Mapping[str, Any], control: Mapping[str, Any], comparisons: int) -> str:
    """Standard errors of a difference of two proportions: cautious, since both saw the same images."""
    if "miou" in row:
        return _miou(method, row, control, comparisons)
    images = row["images"]
    difference = row["top1"] - control["top1"]
    p = (row["top1"] + control["top1"]) / 200
    noise = z_quantile(comparisons) * 100 * math.sqrt(max(2 * p * (1 - p), 1e-12) / images)
    count = round(abs(difference) * images / 100)
    if count == 0:
        return (
            f"Accuracy: no difference shown: {method} and the control are equal at {row['top1']:.2f} % top-1 on "
            f"{images} images."
        )
    shown = abs(difference) > noise
    what = f"{method} {'won' if difference > 0 else 'is worse'}" if shown else f"no difference shown for {method}"
    return (
        f"Accuracy: {what}: {difference:+.2f} points of top-1 against the control, {count} of {images} images (one is "
        f"{100 / images:.2f} points). The 95 % interval {difference - noise:+.2f} to {difference + noise:+.2f} (over "
        f"images, for one seed) {'does not contain' if shown else 'contains'} 0."
    )


def _miou(method: str, row: Mapping[str, Any], control: Mapping[str, Any], comparisons: int) -> str:
    """The difference in mIoU; its spread over images from what each adds to it in both (timm_neutreno/miou.py)."""
    difference = row["miou"] - control["miou"]
    pairs = zip(row["miou_by_image"], control["miou_by_image"], strict=True)
    noise = z_quantile(comparisons) * math.sqrt(sum((a - b) ** 2 for a, b in pairs))
    shown = abs(difference) > max(noise, EXACT)
    what = f"{method} {'won' if difference > 0 else 'is worse'}" if shown else f"no difference shown for {method}"
    return (
        f"Accuracy: {what}: {difference:+.2f} points of mIoU against the control, on {row['images']} images. The 95 % "
        f"interval {difference - noise:+.2f} to {difference + noise:+.2f} (over images, taken as independent, for one "
        f"seed) {'does not contain' if shown else 'contains'} 0."
    )


def _similarity(method: str, row: Mapping[str, Any], other: Mapping[str, Any], name: str, comparisons: int) -> str:
    a, b = row["similarity"][-1], other["similarity"][-1]
    noise = z_quantile(comparisons) * math.hypot(row["similarity_error"], other["similarity_error"])
    how = f"{'less' if a < b else 'more'} alike, by more than the noise over images"
    if abs(a - b) <= noise:
        how = "no difference shown, within the noise over images"
    return (
        f"Smoothing: tokens of the last block have mean cosine similarity {a:.3f} in {method} against {b:.3f} in "
        f"{name}: {how} (about {noise:.3f})."
    )


def of_seeds(
    differences: Mapping[str, Mapping[str, Any]], methods: Sequence[str], pairs: int, images: int
) -> list[str]:
    """What several seeds show: differences to the control by method and metric, of so many pairs."""
    if not differences:
        return [
            f"{pairs or 'No'} seed{'' if pairs == 1 else 's'} with a control: this says nothing for or against "
            f"{' or '.join(methods)}, since a gain may come from fine-tuning alone."
        ]
    sentences = []
    for method, by_metric in differences.items():
        main = next(iter(by_metric))  # the task's main figure comes first
        sentences.append(_seeds_accuracy(method, by_metric[main], pairs, images, main))
        sentences.append(_seeds_similarity(method, by_metric["similarity"], pairs))
    return [
        *sentences,
        *_several(len(differences)),
        "All seeds share one checkpoint and one data set: the intervals are about the chance of training, not about "
        "other images.",
    ]


def _seeds_accuracy(method: str, top1: Mapping[str, Any], seeds: int, images: int, main: str) -> str:
    name = METRICS["segmentation" if main == "miou" else "classification"][main][0]
    if max(abs(value) for value in top1["values"]) < EXACT:
        return f"Accuracy: no difference shown: {method} and the control are equal in every one of {seeds} seeds."
    what, interval = f"no difference shown for {method}", f"{_interval(top1, 2)}."
    if top1["sd"] < EXACT:  # accuracies are multiples of one image: few seeds may agree by accident
        interval = (
            f"All seeds differ by the same number of images (one is {100 / images:.2f} points): there is no interval."
        )
    elif not contains_zero(top1):
        what = f"{method} {'won' if top1['mean'] > 0 else 'is worse'}"
    return (
        f"Accuracy: {what}: {top1['mean']:+.2f} points of {name} against the control, mean of {seeds} seeds, better in "
        f"{sum(value > EXACT for value in top1['values'])} of them. {interval}"
    )


def _seeds_similarity(method: str, similarity: Mapping[str, Any], seeds: int) -> str:
    how = f"{'less' if similarity['mean'] < 0 else 'more'} alike, by more than chance"
    if contains_zero(similarity):
        how = "no difference shown, within chance"
    return (
        f"Smoothing: the mean cosine similarity of the last block's tokens in {method} differs by "
        f"{similarity['mean']:+.3f} from the control's, mean of {seeds} seeds: {how}. {_interval(similarity, 3)}."
    )


def _interval(difference: Mapping[str, Any], digits: int) -> str:
    contains = "contains 0" if contains_zero(difference) else "does not contain 0"
    return f"The 95 % interval {difference['low']:+.{digits}f} to {difference['high']:+.{digits}f} {contains}"
