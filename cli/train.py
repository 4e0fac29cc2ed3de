"""Training one arm: the same recipe, seed and data order for every arm, only the fidelity differs."""

from __future__ import annotations

import math
import random
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import random_seed
from torch import nn
from torch.utils.data import DataLoader

from timm_neutreno import set_fidelity

from . import run_directory
from .config import Recipe
from .errors import DataError, Interrupted, TrainingError
from .evaluate import Evaluation, evaluate
from .progress import Narrator


@dataclass(frozen=True)
class Arm:
    """One of the trainings that a run compares.

    Attributes:
        name: "adapted" or "control".
        fidelity: Reached after the warm-up.
        fidelity_warmup: Epochs over which the fidelity rises from 0, step by step; 0 for none.
        directory: Where its checkpoints and metrics go.
    """

    name: str
    fidelity: float
    fidelity_warmup: float
    directory: Path


def learning_rate(recipe: Recipe, given: float | None) -> float:
    """The given rate, or the recipe's for 512 images scaled to its batch."""
    return given if given is not None else recipe.lr * recipe.batch_size / 512


def ramp(fidelity: float, step: int, steps_per_epoch: int, warmup_epochs: float) -> float:
    """The fidelity at `step` (from 0): rises linearly from 0, so training starts from the checkpoint's function."""
    warmup_steps = warmup_epochs * steps_per_epoch
    return fidelity if step >= warmup_steps else fidelity * step / warmup_steps


def train(
    model: nn.Module,
    loaders: dict[str, DataLoader],
    arm: Arm,
    recipe: Recipe,
    *,
    lr: float,
    device: torch.device,
    autocast: AbstractContextManager,
    narrator: Narrator,
    limit_batches: int | None = None,
    context: dict[str, Any],
    seed: int = 0,
) -> Evaluation:
    """Train `model` in place for the recipe's epochs; write metrics.jsonl, last.pth.tar and best.pth.tar every epoch.

    Args:
        model: A NeuTRENO model on `device`.
        loaders: "train" and "val".
        arm: What is trained, and where it goes.
        recipe: How.
        lr: Peak learning rate.
        device: Where.
        autocast: Context for forward passes.
        narrator: Says how it goes.
        limit_batches: At most this many batches of each loader per epoch.
        context: Written into the checkpoints, so that they tell what they are.
        seed: Of data order, augmentation and dropout.

    Returns:
        The evaluation after the last epoch.

    Raises:
        TrainingError: If the loss is not finite.
        Interrupted: On Ctrl-C; names the last checkpoint.
        OutputError: If a checkpoint cannot be written; the one before is still there.
    """
    random_seed(seed)
    steps = min(len(loaders["train"]), limit_batches or len(loaders["train"]))
    if not steps:
        raise DataError("no training batches: there are fewer training images than --batch-size. Make it smaller.")
    task = ClassificationTask(model, criterion_kwargs=_criterion(recipe), device=device, verbose=False)
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=lr, weight_decay=recipe.weight_decay, layer_decay=_layer_decay(recipe)
    )
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=recipe.epochs, min_lr=recipe.min_lr, warmup_lr=lr / 100,
        warmup_epochs=recipe.warmup_epochs, step_on_epochs=False, updates_per_epoch=steps,
    )  # fmt: skip
    best = -1.0
    evaluation: Evaluation | None = None
    epoch = 0
    try:
        for epoch in range(recipe.epochs):
            start = time.perf_counter()
            loss = _train_epoch(
                task, loaders["train"], optimizer, scheduler, arm, recipe, epoch, steps, autocast, narrator
            )
            seconds = time.perf_counter() - start
            last = epoch == recipe.epochs - 1
            val = islice(loaders["val"], limit_batches)
            evaluation = evaluate(model, val, device, autocast, similarity=last)
            _record(arm, epoch, loss, evaluation, optimizer, seconds, steps * recipe.batch_size)
            narrator.say(
                f"{arm.name:>8}  epoch {epoch + 1:>3}/{recipe.epochs}  train loss {loss:.4f}  val loss "
                f"{evaluation.loss:.4f}  top-1 {evaluation.top1:.2f}  {steps * recipe.batch_size / seconds:.0f} img/s"
            )
            state = _state(model, optimizer, scheduler, arm, epoch, evaluation, context)
            run_directory.save_checkpoint(arm.directory / run_directory.LAST, state)
            if evaluation.top1 > best:
                best = evaluation.top1
                run_directory.save_checkpoint(arm.directory / run_directory.BEST, state)
    except KeyboardInterrupt:
        saved = arm.directory / run_directory.LAST
        kept = (
            f"The last whole epoch is in {saved}." if saved.exists() else "No epoch was finished, so nothing was saved."
        )
        raise Interrupted(f"interrupted in epoch {epoch + 1} of the {arm.name} model. {kept}") from None
    assert evaluation is not None
    return evaluation


def _criterion(recipe: Recipe) -> dict[str, Any]:
    mixing = bool(recipe.mixup or recipe.cutmix)
    return {"smoothing": recipe.smoothing, "soft_targets": mixing}


def _layer_decay(recipe: Recipe) -> float | None:
    return recipe.layer_decay if recipe.layer_decay != 1.0 else None


def _train_epoch(task, batches, optimizer, scheduler, arm, recipe, epoch, steps, autocast, narrator) -> float:
    """One pass over at most `steps` batches; returns the mean loss."""
    model = task.trainable_module.train()
    total = torch.zeros((), dtype=torch.float64)
    title = f"{arm.name} {epoch + 1}/{recipe.epochs}"
    for index, (images, target) in enumerate(narrator.track(islice(batches, steps), title, steps)):
        step = epoch * steps + index
        if arm.fidelity_warmup and step < arm.fidelity_warmup * steps + 1:
            set_fidelity(model, ramp(arm.fidelity, step, steps, arm.fidelity_warmup))
        with autocast:
            loss = task(images, target)["loss"]
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} in step {step + 1} (epoch {epoch + 1}) of the {arm.name} model. Lower --lr, "
                f"raise --warmup-epochs, or pass --no-amp. Checkpoints of finished epochs are in {arm.directory}."
            )
        optimizer.zero_grad()
        loss.backward()
        if recipe.clip_grad:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
        optimizer.step()
        scheduler.step_update(step + 1)
        total += value
    return (total / steps).item()


def _record(arm: Arm, epoch: int, loss: float, evaluation: Evaluation, optimizer, seconds: float, images: int) -> None:
    record = {
        "arm": arm.name,
        "epoch": epoch + 1,
        "train_loss": loss,
        "lr": max(group["lr"] for group in optimizer.param_groups),
        "images_per_second": images / seconds,
        **{f"val_{key}": value for key, value in asdict(evaluation).items()},
    }
    run_directory.append_metrics(arm.directory, record)


def _state(model, optimizer, scheduler, arm: Arm, epoch: int, evaluation: Evaluation, context) -> dict[str, Any]:
    """What a resumed run needs, in the layout of timm's CheckpointSaver."""
    return {
        **context,
        "epoch": epoch,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": {"torch": torch.get_rng_state(), "numpy": _plain(np.random.get_state()), "python": random.getstate()},
        "metric": evaluation.top1,
        "fidelity": arm.fidelity,
        "version": 2,
    }


def _plain(state: Any) -> tuple:
    return tuple(item.tolist() if isinstance(item, np.ndarray) else item for item in state)
