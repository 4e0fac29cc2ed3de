"""Class by class: how many images of each are recognised, and which classes a method wins or loses to the control."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from .intervals import sign_test

Confusion = Sequence[Sequence[int]]  # images of class (row) that were taken for class (column)
SHOWN = 20  # rows of the printed table; per_class.csv has all


def per_class(
    names: Sequence[str], confusions: Mapping[str, Confusion], wins: Mapping[str, Sequence[tuple[int, int]]]
) -> list[dict[str, Any]]:
    """The figures of each class.

    Args:
        names: Of the classes, by index.
        confusions: Of each model.
        wins: Method -> (images that it alone recognises, images that the control alone recognises) of each class.

    Returns:
        {"name", "images", "accuracy" (percent, by model; None without images), "against_control" (by method: "won",
        "lost", "difference" in points, "p" of McNemar's exact test)} per class.
    """
    rows = []
    for index, name in enumerate(names):
        images = sum(next(iter(confusions.values()))[index])
        row: dict[str, Any] = {"name": name, "images": images, "accuracy": {}, "against_control": {}}
        for model, confusion in confusions.items():
            row["accuracy"][model] = 100 * confusion[index][index] / images if images else None
        for method, by_class in wins.items():
            won, lost = by_class[index]
            difference = 100 * (won - lost) / images if images else None
            row["against_control"][method] = {
                "won": won, "lost": lost, "difference": difference, "p": sign_test(won, lost)
            }  # fmt: skip
        rows.append(row)
    return rows


def confused(confusion: Confusion, names: Sequence[str], most: int = 3) -> str:
    """The pairs of classes that are mistaken most often, in words; "" if none is."""
    pairs = [
        (count, sum(row), f"'{names[i]}'", f"'{names[j]}'")
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return ", ".join(f"{true} taken for {other} ({count} of {images})" for count, images, true, other in pairs[:most])


def sentences(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], images: int) -> list[str]:
    """Which classes each method wins and loses, and what cannot be told."""
    found = []
    for method in methods:
        pairs = [(row, row["against_control"][method]) for row in rows]
        won, lost = (sum(pair[key] for _, pair in pairs) for key in ("won", "lost"))
        p = sign_test(won, lost)
        overall = "a difference" if p < 0.05 / len(methods) else "no difference shown"
        found.append(
            f"Pairs: of {images} images {method} alone recognises {won} and the control alone {lost}: {overall} "
            f"(McNemar's exact test, p = {p:.2g})."
        )
        level = 0.05 / (len(rows) * len(methods))
        shown = [(row["name"], pair) for row, pair in pairs if pair["p"] < level]
        better = [_words(name, pair) for name, pair in shown if pair["difference"] > 0]
        worse = [_words(name, pair) for name, pair in shown if pair["difference"] < 0]
        parts = [f"wins {', '.join(better)}"] * bool(better) + [f"loses {', '.join(worse)}"] * bool(worse)
        what = (
            f"{method} {' and '.join(parts)}"
            if parts
            else f"no difference shown between {method} and the control in any"
        )
        rest = f" For the other {len(rows) - len(shown)} no difference is shown." if shown else ""
        found.append(
            f"Classes: {what}{'' if shown else f' of {len(rows)}'}.{rest} Each was tested at 5 % / "
            f"{len(rows) * len(methods)}, so that all hold together."
        )
    return found


def _words(name: str, pair: Mapping[str, Any]) -> str:
    return f"'{name}' ({pair['difference']:+.1f} points, {pair['won']} images won, {pair['lost']} lost)"


def cells(rows: Sequence[Mapping[str, Any]], most: int | None = SHOWN) -> list[list[str]]:
    """The table, header first: all classes in order, or the `most` in which a method and the control differ most."""
    models, methods = list(rows[0]["accuracy"]), list(rows[0]["against_control"])
    header = ["class", "images", *models, *(f"{method}: difference, won, lost" for method in methods)]
    chosen = list(rows)
    if most is not None and len(rows) > most:
        order = sorted(range(len(rows)), key=lambda index: -_gap(rows[index]))[:most]
        chosen = [rows[index] for index in sorted(order)]
    lines = [header]
    for row in chosen:
        accuracies = ["-" if value is None else f"{value:.2f}" for value in row["accuracy"].values()]
        pairs = [
            "-" if pair["difference"] is None else f"{pair['difference']:+.2f}, {pair['won']}, {pair['lost']}"
            for pair in row["against_control"].values()
        ]
        lines.append([row["name"], str(row["images"]), *accuracies, *pairs])
    return lines


def _gap(row: Mapping[str, Any]) -> float:
    """How far a class is from the control or, without one, from 100 %."""
    pairs = [abs(pair["difference"] or 0) for pair in row["against_control"].values()]
    return (
        max(pairs)
        if pairs
        else 100 - min((value for value in row["accuracy"].values() if value is not None), default=100)
    )


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """All classes, a column per figure."""
    models, methods = list(rows[0]["accuracy"]), list(rows[0]["against_control"])
    keys = ("difference", "won", "lost", "p")
    lines: list[list[Any]] = [["class", "images", *models, *(f"{method} {key}" for method in methods for key in keys)]]
    for row in rows:
        pairs = [row["against_control"][method][key] for method in methods for key in keys]
        lines.append([row["name"], row["images"], *row["accuracy"].values(), *pairs])
    return csv_text(lines)


def csv_text(lines: Sequence[Sequence[Any]]) -> str:
    """Lines of cells as CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()
