"""Everything that a run needs, opened and checked before anything is written or trained."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from timm_neutreno.names import neutreno_name

from ..config import Config, check, resolve
from ..data import loaders, sources
from ..errors import UsageError
from ..reports import cautions
from ..reports.results import RESULTS
from ..reports.tables import count
from ..runtime import files, processes
from ..runtime.console import Console
from ..runtime.processes import World
from ..runtime.signals import StopSignal
from . import checkpoint, extension, hub, lora, resume, setup
from .arms import Arm, Models, list_arms
from .setup import RunContext
from .tasks import TASKS

OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD"}
EVAL_BATCH = 128  # at most; fixed, so that the figures do not depend on the number of processes


@dataclass(frozen=True)
class Parts:
    """What the steps of a run hand on: everything that is the same for all arms."""

    source: checkpoint.Source
    datasets: sources.Datasets
    data_config: dict[str, Any]
    models: Models
    teacher: nn.Module | None
    train: Callable[[], loaders.BatchLoader]
    val: loaders.BatchLoader
    arms: list[Arm]
    context: RunContext


def prepare(config: Config, world: World, stop: StopSignal, folder: str | None) -> tuple[Parts, Path]:
    """Open everything and refuse what cannot be, before anything is written or trained."""
    check(config)
    device = setup.set_up_device(config, world)
    if config.push_to_hub and world.first:
        hub.check_target(hub.target(config))
    source = checkpoint.resolve_checkpoint(config.checkpoint, config.arch, config.model_kwargs, config.weights)
    check_meant(config, source.label)
    task = TASKS[config.task]
    datasets = task.open_datasets(config)
    sources.check_equal(processes.all_gather(sources.fingerprint(datasets)))
    asked = config.batch_size
    config = resolve(replace(config, batch_size=fit_batch(config, len(datasets.train), world)))
    check_warmup(config, len(datasets.train))
    if config.limit_batches:
        sources.subsample(datasets.val, config.limit_batches * config.batch_size)
    if config.resume:
        resume.check_data(config, sources.fingerprint(datasets))
    directory = run_directory(config, source.name, world)
    arms = list_arms(config, source, directory)
    if config.resume and resume.read_arguments(directory)["epochs"] != config.epochs:
        extension.check(arms, config.epochs)
    first = next(arm for arm in arms if arm.method)
    fidelity = first.options.get("fidelity", config.fidelity)
    methods = list(dict.fromkeys(arm.method for arm in arms if arm.method))
    config = replace(config, method=methods, fidelity=fidelity)
    models = Models(source, datasets, config, device)
    for arm in arms:  # what cannot be is refused now, and not after other arms have trained
        model = models.patched(arm)
        if config.trainable == "lora":
            lora.add(model, config)
    data_config = task.rules.data_config(models.original)
    teacher = setup.load_teacher(config, datasets.num_classes, device)
    if config.push_to_hub and world.first and not config.dry_run:
        hub.prepare(hub.target(config), pushed_name(config, source))  # last of all checks: it makes the repository
    silent = config.quiet and "quiet" in config.given  # from Python quiet is the default, and a notebook has bars
    console = Console(config.quiet or not world.first, bars=world.first and not silent)
    if config.batch_size != asked:
        console.say(
            f"batch       {config.batch_size}, not the recipe's {asked}: there are {len(datasets.train)} images"
        )
    for arm in arms:
        if not 0 <= arm.options.get("fidelity", 0.0) <= 1:
            console.warn(f"fidelity {arm.options['fidelity']:g} is outside [0, 1], for which NeuTRENO was made.")
    context = RunContext(config, device, world, console, stop, folder or str(directory))

    def train() -> loaders.BatchLoader:
        return task.train_loader(datasets, data_config, config, device, world)

    val_batch = min(config.batch_size, EVAL_BATCH)
    val = task.val_loader(datasets, val_batch, data_config, config, device, world)
    return Parts(source, datasets, data_config, models, teacher, train, val, arms, context), directory


def pushed_name(config: Config, source: checkpoint.Source) -> str:
    """The architecture that the main model's config.json will have."""
    return neutreno_name("segmenter" if config.task == "segmentation" else source.arch)


def run_directory(config: Config, name: str, world: World) -> Path:
    """The resumed run's folder, or the one to make; the same in all processes."""
    if config.resume:
        return Path(config.resume)
    if config.output and (Path(config.output) / resume.ARGUMENTS).exists():
        if (Path(config.output) / RESULTS).exists():
            raise UsageError(f"--output {config.output} is a finished run. Nothing is overwritten: choose another.")
        raise UsageError(
            f"--output {config.output} is a run that is not finished. Go on with it: neutreno adapt --resume "
            f"{config.output}. Or choose another --output, since nothing is overwritten."
        )
    return processes.broadcast(files.choose_directory(config.output, f"neutreno-{name}") if world.first else None)


def check_meant(config: Config, checkpoint: str) -> None:
    """Refuse to train somebody's own checkpoint on the digits, which are the data if none is named.

    Raises:
        UsageError: If --data is missing.
    """
    if config.data is None and checkpoint != "demo" and not config.resume:
        raise UsageError(
            f"--checkpoint {checkpoint} without --data would be trained on the embedded digits. Name your images, or "
            "pass --data demo if the digits are meant."
        )


def fit_batch(config: Config, images: int, world: World) -> int:
    """The images of a step, the same number for each process and accumulation step.

    A recipe's batch shrinks to the train images.

    Raises:
        UsageError: If they cannot be dealt out evenly, or more are asked for than there are.
    """
    parts = world.size * config.accumulate
    step = parts * (2 if config.mixup or config.cutmix else 1)  # mixing pairs images
    size = config.batch_size
    if size > images and "batch_size" in config.given:
        raise UsageError(f"--batch-size {size} is more than the {images} train images: no step could be taken.")
    if size > images:
        size = images - images % step
    if size % step or not size:
        down = max(size - size % step, step)
        raise UsageError(
            f"--batch-size {size} cannot be dealt out evenly to {count(world.size, 'process')} with "
            f"{count(config.accumulate, 'accumulation step')} each{', in pairs for mixup' if step > parts else ''}. "
            f"Use {down} or {down + step}."
        )
    return size


def check_warmup(config: Config, images: int) -> None:
    """Refuse a fidelity that would still be rising in the last step.

    Raises:
        UsageError: With the number of steps.
    """
    warmup = config.fidelity_warmup
    if warmup and warmup >= config.epochs:
        raise UsageError(f"--fidelity-warmup {warmup:g} must be shorter than --epochs {config.epochs}.")
    steps = min(images // config.batch_size, config.limit_batches or sys.maxsize)
    if warmup * steps > config.epochs * steps - 1:
        raise UsageError(
            f"--fidelity-warmup {warmup:g} ends after the last of {config.epochs * steps} steps, so --fidelity "
            "would never be reached. Make it shorter."
        )


def announce(parts: Parts) -> None:
    """Say what is about to happen."""
    context, config, datasets = parts.context, parts.context.config, parts.datasets
    world, say = context.world, partial(context.console.say, indent=12)
    size = "x".join(map(str, parts.data_config["input_size"]))
    say(f"checkpoint  {parts.source.label} ({parts.source.arch}), input {size}")
    for note in parts.source.notes:
        say(f"weights     {note}")
    classes, train, val = (
        count(datasets.num_classes, "class"),
        len(datasets.train),
        count(len(datasets.val), "val image"),
    )
    say(f"data        {datasets.label}: {classes}, {train:,} train and {val}")
    for arm in parts.arms:
        options = ", ".join(f"{name} {value}" for name, value in arm.options.items() if value is not None)
        warmup = f", rising over {count(arm.warmup, 'epoch')}" if arm.warmup else ""
        say(f"arm         {arm.name}{': ' if options else ''}{options}{warmup}")
    together = f"{world.size} processes, " if world.size > 1 else ""
    say(
        f"training    {count(config.epochs, 'epoch')}, batch size {config.batch_size}, {OPTIMIZERS[config.opt]} with "
        f"lr {config.lr:.2e}, seed {config.seed}, {together}{context.device}"
    )
    for words in cautions.of_run(config, parts.source.notes, parts.models.new_head):
        context.console.caution(words)


def found_out(parts: Parts) -> dict[str, Any]:
    """What args.yaml says beside the options."""
    size, device = parts.context.world.size, parts.context.device
    resolved = {key: list(value) if isinstance(value, tuple) else value for key, value in parts.data_config.items()}
    return {
        "device": device.type if size > 1 else str(device),
        "gpus": str(size) if size > 1 else None,
        "data_config": resolved,
        "class_names": parts.datasets.class_names,
        resume.FINGERPRINT: sources.fingerprint(parts.datasets),
    }
