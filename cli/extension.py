"""Another number of epochs than a run was begun with: how far its arms are, and what of a finished run is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import run_directory
from .errors import CheckpointError, UsageError

BEFORE = "epochs_before"  # in args.yaml: the numbers of epochs that the run had before this one


def planned(state: dict[str, Any], steps: int) -> int:
    """For how many epochs a checkpoint's learning rates were planned; `steps` of an epoch, for older checkpoints."""
    return state["epochs"] if "epochs" in state else state["scheduler"]["t_initial"] // steps


def check(directory: Path, epochs: int) -> None:
    """Refuse a number of epochs that an arm has reached or passed under another plan.

    Raises:
        UsageError: With the arm.
        CheckpointError: If an arm has checkpoints and none is whole.
    """
    for name, folder in (("control", directory / "control"), ("adapted model", directory)):
        state, _ = run_directory.load_checkpoint(folder)
        if state and state["progress"]["epoch"] >= epochs and state.get("epochs") != epochs:
            raise UsageError(
                f"--epochs {epochs}: the {name} of {directory} has done {state['progress']['epoch']} epochs already. "
                "Ask for more, or leave the option out."
            )


def is_trained(folder: Path, epochs: int) -> bool:
    """Whether an arm's model is saved, and was trained for so many epochs."""
    if not (folder / "model.safetensors").exists():
        return False
    try:
        state, _ = run_directory.load_checkpoint(folder)
    except CheckpointError:  # the model itself is there
        return True
    return state is None or state.get("epochs", state["progress"]["epoch"]) == epochs


def keep_results(directory: Path, epochs: int) -> str:
    """Rename the results of a finished run, so that it counts as unfinished and they are not lost; the new name."""
    kept = directory / f"results-{epochs}-epochs.json"
    with run_directory.writing(kept):
        (directory / "results.json").rename(kept)
    return kept.name
