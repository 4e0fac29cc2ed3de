"""`--dry-run`: what a run would do, what it would write, and what it would take, from a few measured steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import sources as data
from ..data.sources import Loader
from ..runtime import files as run_directory
from .trainer import Arm, Session, Trainer, memory

STEPS = 3  # measured, after one that warms up


def make(
    session: Session, model: nn.Module, teacher: nn.Module | None, loader: Loader, directory: Path,
    images: data.Data,
) -> dict[str, Any]:  # fmt: skip
    """Measure a few steps, and lay the plan out; nothing is written."""
    config, recipe = session.config, session.recipe
    parameters = sum(p.numel() for p in model.parameters())
    arm = Arm("adapted", config.fidelity or 0.0, config.fidelity_warmup, directory, {})
    trainer = Trainer(model, teacher, loader, None, arm, session)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    step, wait = _measure(trainer)
    arms = 2 if config.control else 1
    seconds = step * trainer.steps * recipe.epochs * arms * config.seeds
    folders = [directory / "control", directory] if config.control else [directory]
    names = [*WRITTEN, *(f"ema/{name}" for name in WRITTEN[:2] if recipe.ema_decay)]
    files = [str(directory / name) for name in OF_THE_RUN] + [str(f / name) for f in folders for name in names]
    accumulate = f" = {recipe.batch_size // config.accumulate // session.processes.count} images x " + (
        f"{config.accumulate} accumulation steps x {session.processes.count} processes"
    )
    lines = {
        "model": f"{type(model).__name__}, {parameters / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained",
        "data": f"{images.label}: {_count(images.train)} train and {_count(images.val)} val images, "
        f"{images.num_classes} classes",
        "fidelity": f"{config.fidelity:g}, {arms} arm{'s' if arms > 1 else ''}",
        "batch": f"{recipe.batch_size}{accumulate}",
        "steps": f"{trainer.steps} per epoch x {recipe.epochs} epochs = {trainer.steps * recipe.epochs}",
        "learning rate": f"{session.lr:.3g} after {recipe.warmup_epochs} epochs, then cosine to {recipe.min_lr:g}",
        "step": f"{step:.3f} s, {recipe.batch_size / step:.0f} images/s; {100 * wait:.0f} % of it waiting for data",
        "memory": f"{memory(session.device) or 0:.0f} MiB at most so far, per process, on {session.device}",
        "time": f"about {_duration(seconds)} for training, without evaluation, extrapolated from {STEPS} steps",
        "disk": f"about {_checkpoint_mib(parameters, recipe.ema_decay) * 3 * arms * config.seeds:.0f} MiB",
    }
    return {
        "plan": lines, "files": files, "steps": trainer.steps * recipe.epochs, "seconds": round(seconds, 1),
        "images_per_second": round(recipe.batch_size / step, 1), "memory_mib": memory(session.device),
        "batch_size": recipe.batch_size, "lr": session.lr, "num_classes": images.num_classes,
    }  # fmt: skip


OF_THE_RUN = ("args.yaml", "evaluations.json", "results.json", "README.md", "similarity.png")
WRITTEN = (
    "model.safetensors", "config.json", run_directory.LAST, run_directory.PREVIOUS, run_directory.BEST,
    "metrics.jsonl", "metrics.csv",
)  # fmt: skip


def _measure(trainer: Trainer) -> tuple[float, float]:
    """Seconds of a step, and the part of it that waited for data."""
    if trainer.loader.order:
        trainer.loader.order.go_to(0, 0)
    trainer.task.train()
    batches = iter(trainer.loader.batches)
    steps = min(STEPS + 1, trainer.steps)
    waited, start = 0.0, time.perf_counter()
    for step in range(steps):
        if step == 1:
            _wait(trainer.session.device)
            waited, start = 0.0, time.perf_counter()
        waited += trainer._step(batches, step)[1]
    _wait(trainer.session.device)
    seconds = time.perf_counter() - start
    return seconds / max(steps - 1, 1), waited / seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _count(images: Any) -> str:
    return "?" if data.is_stream(images) else str(len(images))


def _checkpoint_mib(parameters: int, ema: float) -> float:
    """Weights and AdamW's two moments in float32, and averaged weights."""
    return parameters * 4 * (4 if ema else 3) / 2**20


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
