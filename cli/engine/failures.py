"""What happens when a run is stopped or something dies: what can be saved is saved, and one sentence says the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from ..errors import DEAD_WORKER, CliError, DataError, Interrupted, OutputError, TrainingError, one_line
from ..runtime import files, processes
from . import state
from .state import Training

NO_MEMORY = ("not enough memory", "out of memory", "can't allocate memory", "Cannot allocate memory")

T = TypeVar("T")


class PeerFailure(CliError):
    """Only the trace of another process's error."""


def translate_error(error: BaseException) -> BaseException:
    """A user's sentence for what torch raises; the error itself if it is none of these."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(words in text for words in NO_MEMORY):
        return TrainingError(
            f"out of memory ({one_line(error)[:160]}). --accumulate 2 (or 4, ...) halves what a step needs at the same "
            "result, --grad-checkpointing keeps fewer activations, --amp halves them, --fsdp shards the optimizer over "
            "processes; a smaller --batch-size changes the recipe."
        )
    if DEAD_WORKER in text:
        if isinstance(error.__context__, CliError):  # another process died while that sentence was on its way
            return error.__context__
        return DataError(
            f"a data loader process died: {one_line(error)[:200]} Mostly memory ran out: use fewer --workers, or free "
            "memory (in a container: a larger /dev/shm)."
        )
    if processes.is_peer_failure(error):
        return PeerFailure(
            f"contact with another process of the run was lost ({one_line(error)[:160]}). If it has printed no error, "
            "it was killed, mostly because memory ran out."
        )
    return error


@contextmanager
def saved(trainer: Training) -> Iterator[None]:
    """Whatever ends the training inside: save what can be saved, and tell what happened in one sentence.

    Raises:
        CliError: One of its kinds; any other error as it came.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        raise _whatever_dies(partial(_after, trainer, error)) from error


def _after(trainer: Training, error: BaseException) -> BaseException:
    signal, able = trainer.context.stop.signal, trainer.first
    if trainer.config.fsdp:
        able = isinstance(error, Interrupted)
    found = error if isinstance(error, CliError) else translate_error(error)
    if isinstance(error, KeyboardInterrupt) or (signal and not isinstance(error, CliError)):
        found = Interrupted(f"interrupted by {signal or 'Ctrl-C'} in epoch {trainer.state.epoch + 1}.")
    kept = _save(trainer, able and not isinstance(error, OutputError))
    return type(found)(f"{one_line(found)} {kept}") if isinstance(found, CliError) else found


def _save(trainer: Training, able: bool) -> str:
    """Save if this process can: rank 0 alone, or all of a sharded model, which agreed to stop."""
    last = trainer.arm.directory / state.LAST
    kept = f"The last checkpoint is in {last.parent}." if last.exists() else "No step was saved."
    if able and trainer.state_is_consistent and (trainer.state.epoch or trainer.state.step):
        try:
            trainer.read_losses()  # one that is not finite is not saved
            _whatever_dies(lambda: state.save(trainer))
            kept = f"Everything up to then is saved in {last.parent}."
        except CliError as error:
            kept = f"{kept} Saving failed: {one_line(error)}"
    return f"{kept} {trainer.context.resume_line}"


def _whatever_dies(act: Callable[[], T]) -> T:
    """Call it again if a loader process that dies breaks in: torch raises that wherever Python happens to be."""
    for _ in range(8):
        try:
            return act()
        except RuntimeError as error:
            if DEAD_WORKER not in str(error):
                raise
    raise OutputError("loader processes die one after another.")


def check_finite(trainer: Training, loss: float, step: int) -> None:
    """Refuse a loss that is not finite, and list the files of its batch.

    Raises:
        TrainingError: With step and arm.
    """
    if math.isfinite(loss):
        return
    trainer.state_is_consistent = False  # what is in memory may be spoilt, what is on the disk is not
    arm, epoch = trainer.arm, trainer.state.epoch
    names, where = trainer.loader.names(epoch, step), ""
    if names:
        path = arm.directory / "not_finite.json"
        where = f" The files of its batch are in {path}, the first is {names[0]}."
        record = {"arm": arm.name, "epoch": epoch + 1, "step": step + 1, "loss": str(loss), "files": names}
        files.write_text(path, json.dumps(record, indent=2) + "\n")
    raise TrainingError(
        f"the loss became {loss} in step {step + 1} (epoch {epoch + 1}) of the {arm.name} model.{where} "
        f"Lower --lr, raise --warmup-epochs, or pass --no-amp. Earlier checkpoints are in {arm.directory}."
    )
