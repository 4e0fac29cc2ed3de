"""One run of `neutreno adapt`, from checkpoint and data to the table: the story in order."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.models import save_for_hf
from timm.models._input import get_model_input_config
from torch import nn

from timm_neutreno import is_patched
from timm_neutreno.hub import save_pretrained
from timm_neutreno.smoothing import plot_similarity

from ..config import Config, check, resolve
from ..data import loaders, sources
from ..errors import CliError, Interrupted, TrainingError, UsageError, one_line
from ..reports import seeds, tables
from ..reports.results import Evaluations, RunResult
from ..runtime import files, processes
from ..runtime.console import Console
from ..runtime.processes import World
from ..runtime.signals import StopSignal
from . import checkpoint, extension, hub, plan, resume, setup
from .arms import CONTROL, Arm, Models, list_arms
from .evaluate import evaluate
from .extension import WEIGHTS
from .failures import translate_error
from .setup import RunContext
from .state import EMA
from .trainer import Trainer

EVAL_BATCH = 128  # at most; fixed, so that the figures do not depend on the number of processes

Printed = tuple[dict[str, Any], str]  # a result as --json prints it, and as text


def run(config: Config) -> Printed:
    """Adapt a checkpoint with every method, and compare them with a control. Called in every process of the run.

    Returns:
        The result; nothing in all processes but the first.

    Raises:
        CliError: One of its kinds; nothing that exists is overwritten.
    """
    stop = StopSignal(config.time_limit)
    with stop.installed():
        world = processes.init(config.device)
        try:
            printed = run_seeds(config, world, stop) if config.seeds > 1 else run_one(config, world, stop)
        except CliError:
            raise
        except Exception as error:
            raise translate_error(error) from error
        processes.shutdown()
    return printed


def run_seeds(config: Config, world: World, stop: StopSignal) -> Printed:
    """The same run with several seeds, each in a folder of its own; then their mean, spread and paired differences."""
    directory = run_directory(config, "seeds", world)
    split_seed = config.seed if config.split_seed is None else config.split_seed  # all seeds hold out the same images
    if world.first and not config.dry_run:
        files.make_directory(directory)
        resume.write_arguments(directory, config, {})
    documents = []
    for seed in range(config.seed, config.seed + config.seeds):
        folder = directory / f"seed-{seed}"
        begun = processes.broadcast((folder / resume.ARGUMENTS).exists())
        one = replace(
            config, seed=seed, seeds=1, split_seed=split_seed, output=str(folder), resume=str(folder) if begun else None
        )
        printed = run_one(one, world, stop, str(directory))
        if config.dry_run:
            return printed
        documents.append(printed[0])
    if not world.first:
        return {}, ""
    document = {**seeds.summarise(documents), "output": str(directory)}
    files.write_text(directory / resume.RESULTS, json.dumps(document, indent=2) + "\n")
    files.write_text(directory / "README.md", seeds.readme(document))
    return document, seeds.text(document)


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


def run_one(config: Config, world: World, stop: StopSignal, folder: str | None = None) -> Printed:
    """One seed: the story in order. `folder` is the one to name for resuming, if not the run's own."""
    start = time.perf_counter()
    finished = processes.broadcast(RunResult.read(Path(config.resume))) if config.resume else None
    if finished and finished.epochs == config.epochs:
        return finished.document(), finished.text()
    parts, directory = prepare(config, world, stop, folder)
    config = parts.context.config
    announce(parts)
    if config.dry_run:
        return plan.make(
            parts.context, parts.models, parts.arms, parts.teacher, parts.train(), directory, parts.datasets
        )
    if world.first:
        files.make_directory(directory)
        files.remove_partial(directory)
        if finished:
            kept = extension.keep_results(directory, finished.epochs)
            parts.context.console.say(
                f"longer      {finished.epochs} epochs are done, {config.epochs} asked for: every arm goes on from its "
                f"last.pth.tar with the learning rates of {config.epochs} epochs; the results so far are in {kept}"
            )
        resume.write_arguments(directory, config, found_out(parts))
    evaluations = Evaluations(directory, world.first)
    evaluate_before(parts, evaluations)
    for arm in parts.arms:
        if not processes.broadcast(arm.name in evaluations.rows and extension.is_trained(arm, config.epochs)):
            train_arm(arm, parts, evaluations)
    if not world.first:
        return {}, ""
    result = conclude(parts, evaluations, directory, round(time.perf_counter() - start, 1))
    return result.document(), result.text()


def prepare(config: Config, world: World, stop: StopSignal, folder: str | None) -> tuple[Parts, Path]:
    """Open everything and refuse what cannot be, before anything is written or trained."""
    check(config)
    device = setup.set_up_device(config, world)
    if config.push_to_hub and world.first:
        hub.check_target(hub.target(config))
    source = checkpoint.resolve_checkpoint(config.checkpoint, config.arch, config.model_kwargs, config.weights)
    datasets = sources.open_datasets(config)
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
    config = replace(config, method=[arm.name for arm in arms if arm.method], fidelity=fidelity)
    if config.push_to_hub and world.first and not config.dry_run:
        hub.prepare(hub.target(config), f"neutreno_{source.arch}")  # last of all checks: it makes the repository
    models = Models(source, datasets, config, device)
    original: Any = models.original
    data_config = {**resolve_model_data_config(original), "input_size": get_model_input_config(original)["input_size"]}
    teacher = setup.load_teacher(config, datasets.num_classes, device)
    console = Console(config.quiet or not world.first)
    context = RunContext(config, device, world, console, stop, folder or str(directory))

    def train() -> loaders.BatchLoader:
        return loaders.train_loader(datasets, data_config, config, device, world)

    val_batch = min(config.batch_size, EVAL_BATCH)
    val = loaders.val_loader(datasets, val_batch, data_config, config, device, world)
    return Parts(source, datasets, data_config, models, teacher, train, val, arms, context), directory


def run_directory(config: Config, name: str, world: World) -> Path:
    """The resumed run's folder, or the one to make; the same in all processes."""
    if config.resume:
        return Path(config.resume)
    return processes.broadcast(files.choose_directory(config.output, f"neutreno-{name}") if world.first else None)


def fit_batch(config: Config, images: int, world: World) -> int:
    """The images of a step: at most the train images, and the same number for each process and accumulation step.

    Raises:
        UsageError: If they cannot be dealt out evenly.
    """
    parts = world.size * config.accumulate
    step = parts * (2 if config.mixup or config.cutmix else 1)  # mixing pairs images
    size = config.batch_size
    if size > images:
        size = images - images % step
    if size % step or not size:
        down = max(size - size % step, step)
        raise UsageError(
            f"--batch-size {size} cannot be dealt out evenly to {world.size} processes x {config.accumulate} "
            f"accumulation steps{' in pairs for mixup' if step > parts else ''}. Use {down} or {down + step}."
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
    context, config = parts.context, parts.context.config
    say, world = context.console.say, context.world
    size = "x".join(map(str, parts.data_config["input_size"]))
    say(f"checkpoint  {parts.source.label} ({parts.source.arch}), input {size}")
    for note in parts.source.notes:
        say(f"weights     {note}")
    say(f"data        {parts.datasets.label}: {parts.datasets.num_classes} classes")
    for arm in parts.arms:
        options = ", ".join(f"{name} {value}" for name, value in arm.options.items() if value is not None)
        warmup = f", rising over {arm.warmup:g} epochs" if arm.warmup else ""
        say(f"arm         {arm.name}{': ' if options else ''}{options}{warmup}")
    count = f"{world.size} processes, " if world.size > 1 else ""
    say(
        f"training    {config.epochs} epochs, batch {config.batch_size}, AdamW {config.lr:.2e}, seed {config.seed}, "
        f"{count}{context.device}"
    )
    if parts.models.new_head:
        say(f"head        initialised anew: {parts.models.new_head}")


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


def evaluate_before(parts: Parts, evaluations: Evaluations) -> None:
    """The checkpoint as it came, and each arm that does not start from the checkpoint's own function."""
    context = parts.context
    builders: dict[str, Callable[[], nn.Module]] = {
        tables.CHECKPOINT: lambda: copy.deepcopy(parts.models.original).to(context.device)
    }
    for arm in parts.arms:
        if not arm.exact_at_start:
            builders[arm.name + tables.START] = lambda arm=arm: parts.models.build(arm)  # type: ignore[misc]
    try:
        for key, build in builders.items():
            if key not in evaluations.rows:
                model = build()
                autocast = setup.autocast(context.config, context.device)
                found = evaluate(model, parts.val, context.device, autocast, stop=context.stop)
                evaluations.add(key, found)
    except Interrupted as error:
        raise Interrupted(f"{one_line(error)} Nothing was trained yet. {context.resume_line}") from error


def train_arm(arm: Arm, parts: Parts, evaluations: Evaluations) -> None:
    """Train one arm from the checkpoint, on the same images as every other, and save it."""
    context = parts.context
    if context.world.first:
        files.make_directory(arm.directory)
        files.remove_partial(arm.directory)
    processes.broadcast(None)  # the others look into the folder when it is there
    model, architecture = parts.models.build(arm), parts.models.architecture(arm)
    trainer = Trainer(model, architecture, parts.teacher, parts.train(), parts.val, arm, context)
    if context.world.first and not trainer.state.done:
        (arm.directory / WEIGHTS[-1]).unlink(missing_ok=True)  # of fewer epochs; its weights are in last.pth.tar
    found = trainer.run()
    full = parts.models.full_model(arm, setup.gather_weights(model)) if context.config.fsdp else model
    if context.world.first:
        if trainer.ema is not None:
            save_model(trainer.ema, arm.directory / "ema", parts)
        save_model(full, arm.directory, parts)
    if trainer.ema is not None:
        evaluations.add(arm.name + tables.EMA, found[EMA])
    evaluations.add(arm.name, found["raw"])


def save_model(model: nn.Module, directory: Path, parts: Parts) -> None:
    """model.safetensors and config.json, which timm.create_model("local-dir:...") reads; both complete or not there."""
    if any(not torch.isfinite(p).all() for p in model.parameters()):
        raise TrainingError(f"the trained weights are not finite. The last checkpoint is in {directory}; lower --lr.")
    files.make_directory(directory)
    names, beside = parts.datasets.class_names, directory / files.SAVING
    model.eval().to(memory_format=torch.contiguous_format)
    with files.writing(directory / WEIGHTS[-1]):
        shutil.rmtree(beside, ignore_errors=True)  # what a killed process had written
        if is_patched(model):
            save_pretrained(model, beside, data_config=parts.data_config, label_names=names, tag="neutreno")
        else:
            about: dict[str, Any] = {"pretrained_cfg": {"tag": CONTROL}, **({"label_names": names} if names else {})}
            save_for_hf(model, str(beside), model_config=about, data_config=parts.data_config, safe_serialization=True)
            shutil.copymode(beside / "config.json", beside / WEIGHTS[-1])
        for name in WEIGHTS:  # the weights last: where they are, the arm is done
            (beside / name).replace(directory / name)
        shutil.rmtree(beside, ignore_errors=True)


def conclude(parts: Parts, evaluations: Evaluations, directory: Path, seconds: float) -> RunResult:
    """The first method's model goes to the run's root; the result is written and plotted."""
    context = parts.context
    main = next(arm for arm in parts.arms if arm.method)
    for name in WEIGHTS:
        files.write_atomic(directory / name, lambda beside, name=name: link(main.directory / name, beside))  # type: ignore[misc]
    names = [arm.name for arm in parts.arms]
    result = RunResult(
        seed=context.config.seed, checkpoint=parts.source.label, data=parts.datasets.label, output=str(directory),
        epochs=context.config.epochs, device=str(context.device), processes=context.world.size,
        skipped_images=parts.datasets.skipped, new_head=bool(parts.models.new_head), seconds=seconds, arms=names,
        main=main.name, epochs_before=resume.read_arguments(directory).get(resume.EPOCHS_BEFORE, []),
        models=evaluations.in_order(names), **checkpoint.origin(parts.source),
    )  # fmt: skip
    curves = {tables.label(key): row["similarity"] for key, row in result.models.items()}
    with files.writing(directory / "similarity.png"):
        plot_similarity(curves, directory / "similarity.png")
    result.write(directory)
    return result


def link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
