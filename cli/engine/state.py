"""All that the next step of an arm depends on: how it is saved, found again, and put back."""

from __future__ import annotations

import os
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, get_type_hints

import torch
from torch import nn

from ..config import Config
from ..data.loaders import BatchLoader
from ..errors import CheckpointError, one_line
from ..runtime import files, processes, records
from . import setup
from .arms import Arm
from .tasks import TASKS

LAST, PREVIOUS, BEST = "last.pth.tar", "previous.pth.tar", "best.pth.tar"
RAW, EMA = "raw", "ema"
# of a checkpoint that can be gone on from
KEYS = {"epoch": int, "epochs": int, "state_dict": dict, "optimizer": dict, "scaler": dict, "train_state": dict}


@dataclass
class TrainState:
    """How far an arm has come.

    Attributes:
        epoch: The one that runs, from 0.
        step: Steps done in this epoch.
        loss_sum: Loss of these steps, added up by each process.
        images_sum: A number that depends on every pixel and the order of these steps' images, added up likewise: equal
            in two arms that saw the same images.
        best: Highest value of the task's main metric so far.
        epochs_since_best: Epochs since then.
        evaluations: After the last complete epoch: "raw", and "ema" if weights are averaged.
        done: Whether nothing is left to train.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    images_sum: float = 0.0
    best: float = -1.0
    epochs_since_best: int = 0
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: bool = False


STATE = get_type_hints(TrainState)


class Training(Protocol):
    """What saving and stopping must know of a Trainer, whose attributes these are."""

    model: nn.Module
    architecture: str
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    state: TrainState
    state_is_consistent: bool
    loader: BatchLoader
    arm: Arm
    context: setup.RunContext
    config: Config
    first: bool

    @property
    def ema(self) -> nn.Module | None: ...

    def read_losses(self) -> None: ...


def save(trainer: Training, best: bool = False) -> None:
    """Write last.pth.tar, and best.pth.tar if asked; rank 0 writes, a sharded model is gathered by all."""
    sharded = trainer.config.fsdp
    if not (trainer.first or sharded):
        return
    sums = (trainer.state.loss_sum, trainer.state.images_sum)
    shares = processes.all_gather(sums) if sharded else [sums]
    weights, optimizer = setup.state_dicts(trainer.model, trainer.optimizer, sharded)
    if trainer.first:
        loss_sum, images_sum = (sum(values) / len(values) for values in zip(*shares, strict=True))
        content = {
            **_content(trainer, weights, optimizer),
            "train_state": {**asdict(trainer.state), "loss_sum": loss_sum, "images_sum": images_sum},
        }
        if best:
            write(trainer.arm.directory / BEST, content)
        write(trainer.arm.directory / LAST, content)
    if sharded:
        processes.broadcast(None)  # the others do not leave before it is written


def _content(trainer: Training, weights: dict[str, Any], optimizer: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as timm's own CheckpointSaver has it, and what resuming needs beside."""
    content = {
        "arch": trainer.architecture,
        "epoch": trainer.state.epoch - 1,  # as timm counts: the last complete one, from 0
        "state_dict": weights,
        "optimizer": optimizer,
        "scheduler": trainer.scheduler.state_dict(),  # for timm; ours is a function of the step
        "scaler": trainer.scaler.state_dict(),
        "epochs": trainer.config.epochs,  # that the learning rates are planned for
        "metric": trainer.state.evaluations.get(RAW, {}).get(TASKS[trainer.config.task].rules.MAIN),
        "arm": trainer.arm.name,
        "method_options": trainer.arm.options,
        "version": 3,
    }
    if trainer.ema is not None:
        content["state_dict_ema"] = trainer.ema.state_dict()
    return content


def restore(trainer: Training) -> str | None:
    """Go to where the arm's newest complete checkpoint stands, if there is one.

    Returns:
        A sentence about checkpoints that are damaged; None if none is.
    """
    content, warning = read_newest(trainer.arm.directory)
    if content is None:
        return warning
    own = [{key: value for key, value in group.items() if key != "params"} for group in trainer.optimizer.param_groups]
    try:
        setup.load_state_dicts(trainer.model, trainer.optimizer, content, trainer.config.fsdp)
        trainer.scaler.load_state_dict(content["scaler"])
        if trainer.ema is not None:
            trainer.ema.load_state_dict(content["state_dict_ema"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the checkpoint in {trainer.arm.directory} is not of this {trainer.arm.name} model: "
            f"{one_line(error)[:200]}. Start anew with another --output."
        ) from error
    for group, values in zip(trainer.optimizer.param_groups, own, strict=True):
        group.update(values)  # this run's rates and decay, which may have been changed, not the checkpoint's
    trainer.state = TrainState(**{name: content["train_state"][name] for name in STATE})
    if content["epochs"] != trainer.config.epochs:
        trainer.state.done, trainer.state.epochs_since_best = False, 0
    return warning


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint that survives a crash of the machine; the one before stays beside it as previous.pth.tar."""
    if path.name == LAST and path.exists():
        keep = path.with_name(f".{PREVIOUS}.{os.getpid()}{files.PART}")
        keep.unlink(missing_ok=True)
        try:
            os.link(path, keep)  # a second name: at no instant is there no complete checkpoint under LAST
        except OSError:  # a file system without links
            keep = path
        with files.writing(path):
            keep.replace(path.with_name(PREVIOUS))

    def dump(beside: Path) -> None:
        with beside.open("wb") as file:
            torch.save(content, file)

    files.write_atomic(path, dump)


def read_newest(directory: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The newest complete checkpoint of an arm, and a sentence about those that are damaged.

    Every byte is compared with the checksums that torch.save wrote.

    Returns:
        (content, warning); (None, None) if there is none yet.

    Raises:
        CheckpointError: If there are some and none is complete.
    """
    damaged = []
    for name in (LAST, PREVIOUS):
        path = directory / name
        if not path.exists():
            continue
        content, fault = _read(path)
        if content is None:
            damaged.append(f"{path} is damaged ({fault})")
            continue
        after = f"after {content['epoch'] + 1} complete epochs"
        return content, f"{'; '.join(damaged)}: going on from {path}, {after}." if damaged else None
    if damaged:
        raise CheckpointError(f"{' and '.join(damaged)}. Nothing can be resumed; start anew with another --output.")
    return None, None


def _read(path: Path) -> tuple[dict[str, Any] | None, str]:
    """A checkpoint, or None and what is wrong with it."""
    try:
        with zipfile.ZipFile(path) as file:
            if bad := file.testzip():
                return None, f"wrong checksum of {bad}"
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint makes zipfile and torch raise all kinds
        return None, one_line(error)[:200] if str(error) else "truncated"
    if not isinstance(content, dict):
        return None, f"a {type(content).__name__}, no checkpoint"
    fault = records.misfit(content, KEYS) or records.misfit(content["train_state"], STATE)
    return (None, fault) if fault else (content, "")
