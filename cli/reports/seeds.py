"""Runs that differ in the seed only: mean and spread of every row, and what each method gained over the control.

Every seed is a pair: a method and the control saw the same images in the same order. So the difference is taken seed by
seed, and its 95 % interval is Student's, widened for the number of methods that are compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ..errors import UsageError
from ..runtime import files
from ..runtime.console import fold, width
from . import run_report, tables, verdict
from .command import command_line
from .html import Section, render
from .intervals import paired
from .results import REPORT, RESULTS
from .tables import LAST_BLOCK, count, figure, header, metrics_of

SAME = ("checkpoint", "data", "epochs")  # facts that runs must share to be compared


def summarise(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several runs say together.

    Args:
        documents: One result (`RunResult.document`) per seed, in any order. A row may be missing, in one or in all.

    Returns:
        {"seeds", the shared facts, "models": {row: {"strengths", "new_head", "runs", metric: {"mean", "sd",
        "values"}}}, "differences": {method: {metric: {"mean", "low", "high", "sd", "values"}}}, "difference_seeds",
        "outcomes", "verdict"}. Differences are the method's figure minus the control's, over the seeds that have all of
        both; there are none unless two seeds have them.

    Raises:
        UsageError: If there are fewer than two runs, two of the same seed, or runs of something else.
    """
    documents = sorted(documents, key=lambda document: document["seed"])
    _check(documents)
    keys = list(dict.fromkeys(key for document in documents for key in document["models"]))
    methods = [key for key in keys if tables.is_trained(key) and "/" not in key and key != verdict.CONTROL]
    pairs = [document for document in documents if {*methods, verdict.CONTROL} <= document["models"].keys()]
    differences = {method: _differences(pairs, method, len(methods)) for method in methods} if len(pairs) > 1 else {}
    images = pairs[0]["models"][methods[0]]["images"] if pairs else 0
    return {
        "seeds": [document["seed"] for document in documents],
        **{key: documents[0][key] for key in SAME if key in documents[0]},
        "models": {key: _row(documents, key) for key in keys},
        "differences": differences,
        "difference_seeds": [document["seed"] for document in pairs],
        "outcomes": verdict.outcomes_of_seeds(differences, methods),
        "verdict": verdict.of_seeds(differences, methods, len(pairs), images),
    }


def _differences(pairs: Sequence[dict[str, Any]], method: str, comparisons: int) -> dict[str, dict[str, Any]]:
    return {
        metric: paired(
            [figure(run["models"][method], metric) - figure(run["models"]["control"], metric) for run in pairs],
            comparisons,
        )
        for metric in metrics_of([pairs[0]["models"][method]])
    }


def _row(documents: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    runs = [document["models"][key] for document in documents if key in document["models"]]
    row: dict[str, Any] = {
        "strengths": _strengths(runs),
        "new_head": not tables.is_trained(key) and bool(documents[0].get("new_head")),  # it has learned nothing yet
        "runs": len(runs),
    }
    for metric in metrics_of(runs):
        values = [figure(run, metric) for run in runs]
        row[metric] = {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None, "values": values}
    return row


def _strengths(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of all seeds together."""
    return {
        name: {
            "mean_abs": fmean(run["strengths"][name]["mean_abs"] for run in runs),
            "min": min(run["strengths"][name]["min"] for run in runs),
            "max": max(run["strengths"][name]["max"] for run in runs),
        }
        for name in runs[0]["strengths"]
    }


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


def cells(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Mean and standard deviation over the seeds, header first."""
    metrics = metrics_of(result["models"].values())
    rows = [header(metrics)]
    for key, row in result["models"].items():
        figures = [
            "new head" if row["new_head"] and metric not in LAST_BLOCK else _spread(row.get(metric), digits)
            for metric, (_, digits) in metrics.items()
        ]
        name = tables.label(key)
        name = name if row["runs"] == len(result["seeds"]) else f"{name} ({row['runs']})"
        rows.append((name, tables.strength_cell(row["strengths"]), *figures))
    return rows


def _spread(figure: dict[str, Any] | None, digits: int) -> str:
    if figure is None:
        return "-"
    mean = f"{figure['mean']:.{digits}f}"
    return mean if figure["sd"] is None else f"{mean} ± {figure['sd']:.{digits}f}"


def readme(result: dict[str, Any], title: str = "NeuTRENO adaptation, several seeds") -> str:
    """The README of the folder that holds the runs."""
    from timm_neutreno.hub.card import escaped

    facts = [f"{name.capitalize()}: {escaped(str(result[name]))}." for name in SAME if name in result]
    lines = [
        f"# {title}",
        "",
        " ".join([*facts, f"Seeds {', '.join(map(str, result['seeds']))}; mean ± standard deviation (n - 1)."]),
        "",
        tables.markdown(cells(result)),
        "",
    ]
    if result["differences"]:
        lines += [
            f"{_paired(result)}:",
            "",
            tables.markdown(_difference_cells(result)),
            "",
        ]
    if any(row["runs"] < len(result["seeds"]) for row in result["models"].values()):
        lines += ["Rows with a number in brackets are of so many seeds only.", ""]
    return "\n".join([*lines, *(f"- {sentence}" for sentence in result["verdict"]), ""])


def _difference_cells(result: dict[str, Any]) -> list[list[str]]:
    rows = [["difference", *(f"seed {seed}" for seed in result["difference_seeds"]), "mean", "95 % interval"]]
    for method, by_metric in result["differences"].items():
        metrics = metrics_of([by_metric])
        for metric, found in by_metric.items():
            name, digits = metrics[metric]
            figures = [f"{value:+.{digits}f}" for value in (*found["values"], found["mean"])]
            interval = f"{found['low']:+.{digits}f} to {found['high']:+.{digits}f}"
            rows.append([f"{method}, {name}", *figures, interval])
    return rows


def write(result: dict[str, Any], directory: Path, arguments: Mapping[str, Any]) -> None:
    """Write report.html, README.md and, last, results.json of the folder that holds the runs.

    Args:
        result: What `summarise` gave.
        directory: The folder.
        arguments: Its args.yaml.
    """
    files.write_text(directory / REPORT, report(result, arguments))
    files.write_text(directory / "README.md", readme(result))
    files.write_text(directory / RESULTS, json.dumps(result, indent=2) + "\n")


def report(result: dict[str, Any], arguments: Mapping[str, Any]) -> str:
    """The page of the folder that holds the runs."""
    methods = list(result["outcomes"])
    sections = [Section("Results", [f"{run_report.TABLE} {SPREAD}"], table=cells(result))]
    if result["differences"]:
        sections.append(Section("Differences", [f"{_paired(result)}."], table=_difference_cells(result)))
    links = [(f"seed-{seed}/{REPORT}", f"Seed {seed}: curves, similarity by layer, photos") for seed in result["seeds"]]
    about = [(name.capitalize(), str(result[name])) for name in SAME if name in result]
    sections += [
        Section("Each seed", [], links=links),
        Section("How it was done", [], facts=[*about, *run_report.facts(arguments)]),
        Section("Do it again", [], code=command_line(arguments)),
    ]
    heading = run_report.heading(methods, result["checkpoint"], result["data"])
    return render(f"{heading}, {len(result['seeds'])} seeds", result["verdict"], sections)


SPREAD = "Mean ± standard deviation (n - 1) over the seeds; a row with a number in brackets is of so many only."


def _paired(result: dict[str, Any]) -> str:
    """What the table of differences shows."""
    seeds, methods = result["difference_seeds"], len(result["differences"])
    together = f", widened so that {methods} methods' intervals hold together" if methods > 1 else ""
    return (
        "Each method minus the control, seed by seed, and the 95 % interval of the mean (Student's t, "
        f"{count(len(seeds) - 1, 'degree')} of freedom{together})"
    )


def text(result: dict[str, Any]) -> str:
    """For the terminal."""
    columns = width()
    words = "\n".join(fold(sentence, columns) for sentence in result["verdict"])
    report = f"Report, and a folder for each seed: {result['output']}/{REPORT}"
    return f"\n{tables.plain(cells(result), columns)}\n\n{words}\n\n{report}"
