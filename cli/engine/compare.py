"""Several models on the same val images: their figures, and each one's paired difference from the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..config import Config
from ..data import sources
from ..errors import UsageError
from ..reports.robustness import paired
from ..runtime.console import Console
from . import setup
from .evaluate import evaluate
from .evaluate_model import Opened, open_model
from .responses import CLEAN, respond
from .tasks import TASKS

SAME = ("classes", "val images", "val names")  # of sources.fingerprint: what two models must share to be paired


def compare(names: Sequence[str], given: Config, console: Console) -> dict[str, Any]:
    """Evaluate every model as its own run would, and pair their answers image by image.

    Args:
        names: Runs, folders in runs, or checkpoints; the first is what the others are compared with.
        given: Options that were given replace those of every run.
        console: Shows a bar.

    Returns:
        {"data", "models": {name: as `evaluate`}, "differences": {name: {"difference", "low", "high" (points of top-1),
        "won", "lost" (images that only this one, and only the first, recognises)}}}.

    Raises:
        UsageError: If there are fewer than two names, one twice, or the val images differ.
        CliError: As `open_model`.
    """
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError("give at least two different runs or models; the first is what the others are compared with.")
    opened = {name: open_model(name, given, console) for name in names}
    _check_same(opened)
    if any(each.config.task != "classification" for each in opened.values()):
        raise UsageError("neutreno compare pairs classifiers; for masks, one run with several arms has intervals.")
    models, answers, target = {}, {}, None
    for name, each in opened.items():  # each with its own input size and normalisation
        autocast = setup.autocast(each.config, each.device)
        models[name] = evaluate(each.model, each.loader, each.device, autocast, TASKS[each.config.task].rules)
        found = respond({name: each.model}, each.loader, each.data_config, autocast, [CLEAN], console)
        answers[name], target = found.correct(CLEAN, name), found.target if target is None else target
        if not found.target.equal(target):
            raise UsageError(f"{name} sees the val images in another order than {names[0]}: give all the same --data.")
    first, *others = names
    return {
        "data": opened[first].datasets.label,
        "models": models,
        "differences": {name: _difference(answers[name], answers[first], len(others)) for name in others},
    }


def _check_same(opened: dict[str, Opened]) -> None:
    prints = {name: sources.fingerprint(each.datasets) for name, each in opened.items()}
    first, *others = prints
    for name in others:
        for key in SAME:
            if prints[name].get(key) != prints[first].get(key):
                raise UsageError(
                    f"{name} and {first} have other {key}: they cannot be paired. Give --data, the same for all."
                )


def _difference(ours: Any, other: Any, comparisons: int) -> dict[str, Any]:
    pair = paired([ours.tolist()], [other.tolist()], comparisons)
    return {**pair, "won": int(((ours - other) > 0).sum()), "lost": int(((other - ours) > 0).sum())}
