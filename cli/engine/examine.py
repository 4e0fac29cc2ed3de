"""`neutreno evaluate --per-class` and `--robustness`: all arms of a run on the same images, paired with the control."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Config
from ..errors import UsageError
from ..reports import classes, confusion, robustness
from ..reports.results import RESULTS, RunResult
from ..runtime import files
from ..runtime.console import Console
from . import checkpoint, setup
from .arms import CONTROL
from .evaluate import evaluate
from .evaluate_model import Opened, open_model, run_of
from .responses import ATTACKED, CLEAN, CORRUPTED, Condition, Responses, respond
from .tasks import TASKS


def examine(
    name: str, given: Config, console: Console, output: Path, *, per_class: bool, robust: bool
) -> dict[str, Any]:  # fmt: skip
    """Evaluate a model or, of a run's folder, all its arms.

    Args:
        name: As of `evaluate_model`.
        given: Likewise.
        console: Likewise.
        output: Folder that exists, for results.json, per_class.csv, confusion.png and confusion-MODEL.csv.
        per_class: Compare class by class.
        robust: Corrupt and attack the images.

    Returns:
        {"model", "data", "output", "models" (as of a run, by arm), "verdict", "per_class", "mistaken",
        "robustness"}.

    Raises:
        CliError: As `evaluate_model`.
    """
    opened = open_model(name, given, console)
    if robust and opened.data_config["input_size"][0] != 3:
        raise UsageError(
            f"--robustness is for colour images; {name} takes {opened.data_config['input_size'][0]} channels."
        )
    if opened.config.task != "classification":
        raise UsageError("--per-class and --robustness are for classifiers; a segmentation's own figures are by class.")
    models, rules = _arms(name, opened), TASKS[opened.config.task].rules
    autocast = setup.autocast(opened.config, opened.device)
    found = {arm: evaluate(model, opened.loader, opened.device, autocast, rules) for arm, model in models.items()}
    conditions: list[Condition] = [CLEAN, *(CORRUPTED + ATTACKED if robust else [])]
    answers = respond(models, opened.loader, opened.data_config, autocast, conditions, console)
    document: dict[str, Any] = {
        "model": name, "data": opened.datasets.label, "output": str(output), "models": found, "verdict": []
    }  # fmt: skip
    if per_class:
        document["per_class"], document["mistaken"] = _classes(answers, opened, output)
        methods = list(document["per_class"][0]["against_control"])
        document["verdict"] += classes.sentences(document["per_class"], methods, len(answers.target))
    if robust:
        document["robustness"] = summary(answers)
        document["verdict"] += robustness.sentences(document["robustness"])
    files.write_text(output / RESULTS, json.dumps(document, indent=2) + "\n")
    return document


def _arms(name: str, opened: Opened) -> dict[str, nn.Module]:
    """The control and the methods of a finished run, or the one model that was named."""
    folder = Path(name)
    result = RunResult.read(folder) if folder.is_dir() and run_of(folder) == folder else None
    if result is None:
        return {folder.name or name: opened.model}
    return {
        arm: checkpoint.build(checkpoint.resolve_checkpoint(str(folder / "arms" / arm))).to(opened.device)
        for arm in result.arms
    }


def confusion_matrix(target: Tensor, predicted: Tensor, count: int) -> Tensor:
    """(count, count): images of class (row) that were taken for class (column)."""
    return torch.bincount(target * count + predicted, minlength=count**2).reshape(count, count)


def _classes(answers: Responses, opened: Opened, output: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The figures of each class, and each model's most frequent mistakes; the picture and the tables are written."""
    count = opened.datasets.num_classes
    names = opened.datasets.class_names or list(map(str, range(count)))
    predicted = answers.predicted[CLEAN]
    matrices = {arm: confusion_matrix(answers.target, found, count).tolist() for arm, found in predicted.items()}
    wins = {arm: _wins(answers, arm, count) for arm in predicted if CONTROL in predicted and arm != CONTROL}
    rows = classes.per_class(names, matrices, wins)
    files.write_text(output / "per_class.csv", classes.to_csv(rows))
    for arm, matrix in matrices.items():
        lines = [["", *names], *([name, *map(str, row)] for name, row in zip(names, matrix, strict=True))]
        files.write_text(output / f"confusion-{arm}.csv", classes.csv_text(lines))
    titles = {arm: f"{arm}: {100 * answers.correct(CLEAN, arm).mean():.2f} % right" for arm in matrices}
    with files.writing(output / "confusion.png"):
        confusion.plot_confusion({titles[arm]: matrices[arm] for arm in matrices}, names, output / "confusion.png")
    return rows, {arm: classes.confused(matrix, names) for arm, matrix in matrices.items()}


def _wins(answers: Responses, method: str, count: int) -> list[tuple[int, int]]:
    """Of each class, the images that the method alone recognises, and those that the control alone does."""
    ours, control = (answers.correct(CLEAN, arm).bool() for arm in (method, CONTROL))
    won, lost = (
        torch.bincount(answers.target[which], minlength=count).tolist() for which in (ours & ~control, control & ~ours)
    )
    return list(zip(won, lost, strict=True))


def summary(answers: Responses) -> dict[str, Any]:
    """Accuracies and losses by condition, means over corruptions and attacks, and differences from the control."""
    arms = list(answers.predicted[CLEAN])
    conditions = [
        {
            "name": name, "strength": strength,
            "top1": {arm: 100 * answers.correct((name, strength), arm).mean().item() for arm in arms},
            "loss": {arm: answers.losses[name, strength][arm].mean().item() for arm in arms},
        }
        for name, strength in answers.predicted
    ]  # fmt: skip
    groups = {"corruptions": CORRUPTED, **{kind: [c for c in ATTACKED if c[0] == kind] for kind in ("fgsm", "pgd")}}
    right = {
        group: {arm: [answers.correct(each, arm).tolist() for each in members] for arm in arms}
        for group, members in groups.items()
    }
    methods = [arm for arm in arms if arm != CONTROL] if CONTROL in arms else []
    comparisons = max(len(methods) * len(groups), 1)
    return {
        "conditions": conditions,
        "means": {group: {arm: _mean(lists) for arm, lists in by_arm.items()} for group, by_arm in right.items()},
        "against_control": {
            method: {
                group: robustness.paired(by_arm[method], by_arm[CONTROL], comparisons)
                for group, by_arm in right.items()
            }
            for method in methods
        },
    }


def _mean(lists: list[list[float]]) -> float:
    return 100 * sum(map(sum, lists)) / sum(map(len, lists))


def printed(document: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """The tables of the document, each with its title."""
    tables = []
    if "per_class" in document:
        rows = document["per_class"]
        more = f" ({classes.SHOWN} of {len(rows)}; the rest is in per_class.csv)" if len(rows) > classes.SHOWN else ""
        tables.append((f"top-1 by class, in per cent{more}", classes.cells(rows)))
    if "robustness" in document:
        tables.append(("top-1 under corruptions and attacks, in per cent", robustness.cells(document["robustness"])))
    return tables
