"""Another number of epochs than a run was begun with: how far its arms are, and what of a finished run is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import CheckpointError, UsageError
from ..reports.results import RESULTS
from ..runtime import files
from . import state
from .arms import Arm
from .save import WEIGHTS


def check(arms: Sequence[Arm], epochs: int) -> None:
    """Refuse a number of epochs that an arm has reached or passed under another plan.

    Raises:
        UsageError: With the arm.
        CheckpointError: If an arm has checkpoints and none is complete.
    """
    for arm in arms:
        content, _ = state.read_newest(arm.directory)
        if content and content["train_state"]["epoch"] >= epochs and content["epochs"] != epochs:
            raise UsageError(
                f"--epochs {epochs}: {arm.directory} has done {content['train_state']['epoch']} epochs already. "
                "Ask for more, or leave the option out."
            )


def is_trained(arm: Arm, epochs: int) -> bool:
    """Whether an arm's model is saved, and was trained for so many epochs."""
    if not (arm.directory / WEIGHTS[-1]).exists():
        return False
    try:
        content, _ = state.read_newest(arm.directory)
    except CheckpointError:  # the model itself is there
        return True
    return content is None or content["epochs"] == epochs


def keep_results(directory: Path, done: int, epochs: int) -> str:
    """Rename the results of a finished run, so that it counts as unfinished and they are not lost; says so."""
    kept = directory / f"results-{done}-epochs.json"
    with files.writing(kept):
        (directory / WEIGHTS[-1]).unlink(missing_ok=True)  # the arm has it too
        (directory / RESULTS).rename(kept)
    return (
        f"longer      {done} epochs are done, {epochs} asked for: every arm goes on from its last.pth.tar with the "
        f"learning rates of {epochs} epochs; the results so far are in {kept.name}"
    )
