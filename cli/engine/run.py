"""One run of `neutreno adapt`, from checkpoint and data to the table: the story in order."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from timm_neutreno.smoothing import plot_similarity

from ..config import Config
from ..errors import CliError, Interrupted, one_line
from ..reports import cautions, curves, run_report, seeds, tables
from ..reports.results import RESULTS, Evaluations, RunResult
from ..runtime import files, processes
from ..runtime.processes import World
from ..runtime.signals import StopSignal
from . import checkpoint, examples, extension, lora, pictures, plan, resume, setup
from .arms import Arm
from .evaluate import evaluate, multi_scale
from .failures import translate_error
from .prepare import Parts, announce, found_out, prepare, run_directory
from .save import WEIGHTS, link, save_model
from .state import EMA, RAW
from .tasks import TASKS
from .trainer import Trainer

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
    if config.dry_run:
        return run_each_seed(config, world, stop, directory)[0]
    known = resume.read_arguments(directory) if (directory / RESULTS).exists() else {}
    finished = all(known.get(name) == getattr(config, name) for name in ("epochs", "seeds"))
    with owned(directory, config, world):
        if world.first and not finished:
            resume.write_arguments(directory, config, {})
        documents = [document for document, _ in run_each_seed(config, world, stop, directory)]
        if not world.first:
            return {}, ""
        document = {**seeds.summarise(documents), "output": str(directory)}
        if not finished:
            seeds.write(document, directory, resume.read_arguments(directory))
    return document, seeds.text(document)


def run_each_seed(config: Config, world: World, stop: StopSignal, directory: Path) -> list[Printed]:
    """One run per seed, each in a folder of its own; of a dry run the first one's plan."""
    split_seed = config.seed if config.split_seed is None else config.split_seed  # all seeds hold out the same images
    printed: list[Printed] = []
    for seed in range(config.seed, config.seed + config.seeds):
        folder = directory / f"seed-{seed}"
        begun = processes.broadcast((folder / resume.ARGUMENTS).exists())
        one = replace(
            config, seed=seed, seeds=1, split_seed=split_seed, output=str(folder), resume=str(folder) if begun else None
        )
        seeds_after = config.seed + config.seeds - 1 - seed
        printed.append(run_one(one, world, stop, str(directory), seeds_after))
        if config.dry_run:
            break
    return printed


def run_one(config: Config, world: World, stop: StopSignal, folder: str | None = None, seeds_after: int = 0) -> Printed:
    """One seed: the story in order. `folder` is the one to name for resuming, if not the run's own."""
    start = time.perf_counter()
    finished = processes.broadcast(RunResult.read(Path(config.resume))) if config.resume else None
    if finished and finished.epochs == config.epochs:
        return finished.document(), finished.text()
    parts, directory = prepare(config, world, stop, folder)
    config = parts.context.config
    announce(parts)
    if config.dry_run:
        return plan.make(parts, directory)
    with owned(directory, config, world):
        if world.first:
            if finished:
                parts.context.console.say(extension.keep_results(directory, finished.epochs, config.epochs))
            resume.write_arguments(directory, config, found_out(parts))
        result = carry_out(parts, directory, start, seeds_after)
    return (result.document(), result.text()) if result else ({}, "")


@contextmanager
def owned(directory: Path, config: Config, world: World) -> Iterator[None]:
    """Make the folder of a run, or find it, and be its only writer; another process but the first does nothing."""
    if not world.first:
        yield
        return
    with files.locked(files.make_directory(directory)):
        if not config.resume:
            files.choose_directory(str(directory), "")  # another run may have begun there since it was chosen
        files.remove_partial(directory)
        yield


def carry_out(parts: Parts, directory: Path, start: float, seeds_after: int) -> RunResult | None:
    """Evaluate, train every arm that is not done, and conclude; the result in the first process."""
    world, config = parts.context.world, parts.context.config
    evaluations = Evaluations(directory, world.first)
    evaluate_before(parts, evaluations)
    for index, arm in enumerate(parts.arms, 1):
        if not processes.broadcast(arm.name in evaluations.rows and extension.is_trained(arm, config.epochs)):
            train_arm(arm, parts, evaluations, index, seeds_after)
    return conclude(parts, evaluations, directory, round(time.perf_counter() - start, 1)) if world.first else None


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
                name, say = tables.label(key), context.console
                found = evaluate(
                    model, parts.val, context.device, autocast, TASKS[context.config.task].rules, stop=context.stop,
                    console=say, title=f"evaluating the {name}" if key == tables.CHECKPOINT else f"evaluating {name}",
                )  # fmt: skip
                evaluations.add(key, found)
                say.say(f"{name}: {tables.in_words(found, bool(parts.models.new_head))}")
                if words := cautions.near_chance(name, found, parts.datasets.num_classes, parts.models.new_head):
                    say.caution(words)
    except Interrupted as error:
        raise Interrupted(f"{one_line(error)} Nothing was trained yet. {context.resume_line}") from error


def train_arm(arm: Arm, parts: Parts, evaluations: Evaluations, index: int, seeds_after: int) -> None:
    """Train one arm from the checkpoint, on the same images as every other, and save it."""
    context, count = parts.context, len(parts.arms)
    if context.world.first:
        files.make_directory(arm.directory)
    processes.broadcast(None)  # the others look into the folder when it is there
    model, architecture = parts.models.build(arm), parts.models.architecture(arm)
    start = parts.models.original if context.config.anchor == "gram" else None
    trainer = Trainer(
        model, architecture, parts.teacher, parts.train(), parts.val, arm, context, f"arm {index}/{count}",
        count - index + count * seeds_after, start,
    )  # fmt: skip
    if context.world.first and not trainer.state.done:
        (arm.directory / WEIGHTS[-1]).unlink(missing_ok=True)  # of fewer epochs; its weights are in last.pth.tar
    found = trainer.run()
    if context.config.trainable == "lora":
        for trained in filter(None, (model, trainer.ema)):
            lora.merge(trained)
    full = parts.models.full_model(arm, setup.gather_weights(model)) if context.config.fsdp else model
    if context.world.first:
        if context.config.task == "segmentation":
            examples.predict(full, parts.datasets.val, arm.directory)
        save = partial(save_model, data_config=parts.data_config, class_names=parts.datasets.class_names)
        if trainer.ema is not None:
            save(trainer.ema, arm.directory / "ema")
        save(full, arm.directory)
    if context.config.multi_scale:
        for name, tried in ((RAW, model), (EMA, trainer.ema)):
            if tried is not None:
                found[name] = {**found[name], **at_scales(tried, parts)}
    if trainer.ema is not None:
        evaluations.add(arm.name + tables.EMA, found[EMA])
    evaluations.add(arm.name, found[RAW])


def at_scales(model: nn.Module, parts: Parts) -> dict[str, Any]:
    """The figures at several scales and mirrored."""
    context, rules = parts.context, TASKS[parts.context.config.task].rules
    autocast, stop = setup.autocast(context.config, context.device), context.stop
    try:
        found = evaluate(
            model, parts.val, context.device, autocast, rules, similarity=False, stop=stop, multi_scale=True
        )
    except Interrupted as error:
        raise Interrupted(f"{one_line(error)} The training is done and saved. {context.resume_line}") from error
    return multi_scale(found)


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
        models=evaluations.in_order(names), task=context.config.task, **checkpoint.origin(parts.source),
    )  # fmt: skip
    with context.console.waiting("writing the report"):
        draw(parts, result, directory)
        run_report.write(result, directory, resume.read_arguments(directory))
    return result


def draw(parts: Parts, result: RunResult, directory: Path) -> None:
    """The pictures of the run's documents."""
    similarity = {tables.label(key): row["similarity"] for key, row in result.models.items()}
    with files.writing(directory / run_report.SIMILARITY):
        plot_similarity(similarity, directory / run_report.SIMILARITY)
    if records := curves.read_records(directory, result.arms):
        with files.writing(directory / run_report.CURVES):
            curves.plot_training(records, directory / run_report.CURVES)
    if parts.context.config.task == "segmentation":
        examples.plot(parts.datasets.val, parts.arms, parts.datasets.class_names, directory)
        return
    try:
        pictures.draw_token_maps(parts, directory / run_report.TOKENS)
    except Exception as error:  # a model or source may have no such tokens or photos: the run is worth more
        parts.context.console.caution(f"no token maps in the report: {one_line(error)[:200]}")
