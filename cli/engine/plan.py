"""`--dry-run`: what a run would do, what it would write, and what it would take, from a few measured steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from ..reports.results import EVALUATIONS, REPORT, RESULTS
from ..reports.run_report import CURVES, SIMILARITY, TOKENS
from ..reports.tables import count
from ..runtime.console import fold, width
from ..runtime.loggers import CSV, JSONL
from . import examples, setup
from .prepare import Parts
from .resume import ARGUMENTS
from .save import WEIGHTS
from .state import BEST, LAST, PREVIOUS
from .trainer import Trainer

STEPS = 3  # measured, after one that warms up
OF_THE_RUN = (ARGUMENTS, EVALUATIONS, RESULTS, "README.md", REPORT, SIMILARITY, CURVES, TOKENS, *WEIGHTS)
OF_PICTURES = (examples.PICTURE,)
OF_AN_ARM = (*WEIGHTS, LAST, PREVIOUS, BEST, JSONL, CSV)


def make(parts: Parts, directory: Path) -> tuple[dict[str, Any], str]:
    """Measure a few steps, and lay the plan out, as a document and as text; nothing is written."""
    context, models, arms, datasets = parts.context, parts.models, parts.arms, parts.datasets
    config, world = context.config, context.world
    arm = arms[-1]  # of the control the steps would be shorter
    model = models.build(arm)
    parameters = sum(p.numel() for p in model.parameters())
    start = models.original if config.anchor == "gram" else None
    trainer = Trainer(model, models.architecture(arm), parts.teacher, parts.train(), None, arm, context, start=start)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    step, wait = _measure(trainer)
    runs, steps = len(arms) * config.seeds, trainer.steps * config.epochs
    seconds, memory = step * steps * runs, setup.peak_memory(context.device)
    of_an_arm = [*OF_AN_ARM, *(f"ema/{name}" for name in WEIGHTS if config.ema_decay)]
    segments = config.task == "segmentation"
    files = [str(directory / name) for name in (*OF_THE_RUN, *(OF_PICTURES if segments else ()))]
    of_an_arm += [examples.FILE] if segments else []
    files += [str(arm.directory / name) for arm in arms for name in of_an_arm]
    part = config.batch_size // config.accumulate // world.size
    batch = f"{config.batch_size} images in a step"
    if part != config.batch_size:
        batch += f": {part} at once, in {count(world.size, 'process')} and {count(config.accumulate, 'pass')} of each"
    lines = {
        "model": f"{type(model).__name__}, {parameters / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained",
        "data": f"{datasets.label}: {len(datasets.train):,} train and {count(len(datasets.val), 'val image')}, "
        f"{count(datasets.num_classes, 'class')}",
        "arms": ", ".join(arm.name for arm in arms),
        "batch": batch,
        "steps": f"{steps:,}: {trainer.steps:,} in an epoch, {count(config.epochs, 'epoch')}",
        "learning rate": f"{config.lr:.3g} after {count(config.lr_warmup, 'epoch')}, then {config.sched} to "
        f"{config.min_lr:g}",
        "step": f"{step:.3f} s, {config.batch_size / step:.0f} images/s; {100 * wait:.0f} % of it waiting for data",
        "memory": f"{memory or 0:.0f} MiB at most so far, per process, on {context.device}",
        "time": f"about {_duration(seconds)} for training, without evaluation, extrapolated from {STEPS} steps",
        "disk": f"about {_checkpoint_mib(parameters, config.ema_decay) * 3 * runs:.0f} MiB",
    }
    document = {
        "plan": lines, "files": files, "steps": steps, "seconds": round(seconds, 1),
        "images_per_second": round(config.batch_size / step, 1), "memory_mib": memory,
        "batch_size": config.batch_size, "lr": config.lr, "num_classes": datasets.num_classes,
    }  # fmt: skip
    name_width = max(map(len, lines)) + 2
    text = [f"{name:<{name_width}}{value}" for name, value in {**lines, "writes": ", ".join(files)}.items()]
    text = [fold(line, width(), " " * name_width) for line in text]
    return document, "\n".join([*text, "Nothing was written."])


def _measure(trainer: Trainer) -> tuple[float, float]:
    """Seconds of a step, and the part of it that waited for data."""
    trainer.loader.sampler.set_position(0, 0)
    trainer.task.train()
    batches = iter(trainer.loader.batches)
    steps = min(STEPS + 1, trainer.steps)
    waited, start = 0.0, time.perf_counter()
    for step in range(steps):
        if step == 1:
            _wait(trainer.context.device)
            waited, start = 0.0, time.perf_counter()
        waited += trainer.train_step(batches, step)
    _wait(trainer.context.device)
    seconds = time.perf_counter() - start
    return seconds / max(steps - 1, 1), waited / seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()


def _checkpoint_mib(parameters: int, ema: float) -> float:
    """Weights and AdamW's two moments in float32, and averaged weights."""
    return parameters * 4 * (4 if ema else 3) / 2**20


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
