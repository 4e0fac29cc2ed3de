"""One run of `neutreno adapt`, from checkpoint and data to the table: the story in order."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.data import resolve_model_data_config
from timm.models._input import get_model_input_config
from timm.utils import random_seed
from torch import nn

from timm_neutreno import METHODS, UnsupportedModelError, set_fidelity, strengths
from timm_neutreno.hub import save_pretrained
from timm_neutreno.names import neutreno_name
from timm_neutreno.smoothing import plot_similarity

from . import checkpoint, data, extension, parallel, plan, processes, push, resume, run_directory, seeds, summary
from .config import AdaptConfig, Recipe, as_dict, check_config, resolve_recipe
from .errors import CheckpointError, CliError, Interrupted, TrainingError, UsageError, one_line
from .evaluate import Evaluation, evaluate
from .processes import Processes
from .progress import Narrator
from .stopping import Stop
from .train import EMA, Arm, Session, Trainer, explain, learning_rate

EVAL_BATCH = 128  # at most; fixed, so that the figures do not depend on the number of processes


def run(config: AdaptConfig) -> dict[str, Any]:
    """Adapt a checkpoint, and compare it with itself and with a control. Called in every process of the run.

    Returns:
        The result, as printed by --json; empty in all processes but the first.

    Raises:
        CliError: One of its kinds; nothing that exists is overwritten.
    """
    stop = Stop(config.time_limit)
    with stop.listening():
        members = processes.join(config.device)
        try:
            document = run_seeds(config, members, stop) if config.seeds > 1 else run_one(config, members, stop)
        except CliError:
            raise
        except Exception as error:
            raise explain(error) from error
        processes.leave()
    return document


def run_seeds(config: AdaptConfig, members: Processes, stop: Stop) -> dict[str, Any]:
    """The same run with several seeds, each in a folder of its own; then their mean, spread and paired difference."""
    if config.resume:
        directory, fresh = Path(config.resume), resume.first_seed(config)
    else:
        name = checkpoint.find(config.checkpoint, config.arch, config.model_kwargs, config.weights).name
        chosen = run_directory.choose(config.output, f"neutreno-{name}-seeds") if members.first else None
        directory, fresh = processes.agree(chosen), config
    if members.first and not config.dry_run:
        run_directory.create(directory)
        run_directory.write_text(directory / resume.SEEDS, json.dumps({"seed": config.seed, "seeds": config.seeds}))
    documents = []
    for seed in range(config.seed, config.seed + config.seeds):
        folder = directory / f"seed-{seed}"
        if processes.agree((folder / resume.ARGUMENTS).exists()):
            one = replace(config, resume=str(folder), output=None, seed=seed, seeds=1)
        else:
            split = config.seed if fresh.split_seed is None else fresh.split_seed  # all seeds hold out the same images
            one = replace(fresh, resume=None, output=str(folder), seed=seed, seeds=1, split_seed=split)
        documents.append(run_one(one, members, stop, str(directory)))
        if config.dry_run:
            return documents[0]
    if not members.first:
        return {}
    document = {**seeds.summarise(documents), "output": str(directory)}
    run_directory.write_text(directory / "results.json", json.dumps(document, indent=2) + "\n")
    run_directory.write_text(directory / "README.md", seeds.readme(document))
    return {**document, "table": seeds.table(document)}


def run_one(config: AdaptConfig, members: Processes, stop: Stop, resume_label: str | None = None) -> dict[str, Any]:
    """One seed: the story in order. `resume_label` is the folder to name for resuming, if not the run's own."""
    start = time.perf_counter()
    earlier = finished = None
    if config.resume:
        finished = processes.agree(resume.result(Path(config.resume)))
        config, earlier = resume.settle(config, finished is not None)
        if finished is not None and config.settings["epochs"] == earlier["recipe"]["epochs"]:
            return finished if members.first else {}
    check_config(config)
    recipe = resolve_recipe(config)
    if config.fsdp and (recipe.ema_decay or config.amp_dtype == "float16"):
        raise UsageError("--fsdp takes bfloat16 and no averaged weights: pass --ema-decay 0 and --amp-dtype bfloat16.")
    narrator = Narrator(config.quiet or not members.first)
    device = choose_device(config.device, members)
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    share_cores(config, device)
    if config.push_to_hub and members.first:
        push.check_name(config.push_to_hub, config.private, config.revision, config.create_pr)
    source = checkpoint.find(config.checkpoint, config.arch, config.model_kwargs, config.weights)
    config = replace(config, **settle_fidelity(config, source))
    images = data.find(config)
    recipe = replace(recipe, batch_size=fit_batch(recipe, images, config, members))
    check_warmup(recipe, images, config)
    if config.limit_batches:
        data.thin(images.val, config.limit_batches * recipe.batch_size)
    if earlier is not None:
        directory = Path(config.resume or "")
        resume.check_data(earlier, data.fingerprint(images), config)
        if recipe.epochs != earlier["recipe"]["epochs"]:
            extension.check(directory, recipe.epochs)
    else:
        chosen = run_directory.choose(config.output, f"neutreno-{source.name}") if members.first else None
        directory = processes.agree(chosen)
    if config.push_to_hub and members.first and not config.dry_run:
        # as soon as nothing else can be refused, since it makes the repository
        push.prepare(config.push_to_hub, config.private, config.revision, config.create_pr, neutreno_name(source.arch))

    models = Models(source, images, config, recipe, device)
    plain = models.build(source.fidelity or 0.0, own=True)
    data_config = {**resolve_model_data_config(plain), "input_size": get_model_input_config(plain)["input_size"]}
    teacher = parallel.load_teacher(config, images.num_classes, device)
    lr = learning_rate(recipe, config.lr)
    session = Session(config, recipe, lr, device, members, narrator, stop, resume_label or str(directory))
    announce(session, source, images, data_config)

    def train_loader() -> data.Loader:
        return data.train_loader(images, recipe, data_config, config, device, members)

    val = data.val_loader(images, min(recipe.batch_size, EVAL_BATCH), data_config, config, device, members)
    if config.dry_run:
        return plan.make(session, models.build(config.fidelity), teacher, train_loader(), directory, images)
    if members.first:
        run_directory.create(directory)
        run_directory.sweep(directory)
        if finished is not None and earlier is not None:
            done = earlier["recipe"]["epochs"]
            kept = extension.keep_results(directory, done)
            narrator.say(
                f"longer      {done} epochs are done, {recipe.epochs} asked for: every arm goes on from its "
                f"last.pth.tar with the learning rates of {recipe.epochs} epochs; the results so far are in {kept}"
            )
        run_directory.write_text(directory / resume.ARGUMENTS, _arguments(session, data_config, images, earlier))
    results = Results(directory, members.first)

    def evaluated(model: nn.Module) -> Evaluation:
        return evaluate(model, val, device, parallel.autocast(config, device), stop=stop)

    try:
        results.once(summary.BEFORE, partial(evaluated, plain))
        del plain
        results.once(summary.UNADAPTED, lambda: evaluated(models.build(config.fidelity)))
    except Interrupted as error:
        raise Interrupted(f"{one_line(error)} Nothing was trained yet. {session.resume_line}") from error

    def trained(name: str, row: str, fidelity: float, folder: Path) -> nn.Module:
        """Train one arm from the checkpoint, on data in the same order, and save it."""
        if members.first:
            run_directory.create(folder)
            run_directory.sweep(folder)
        processes.agree(None)  # the others look into the folder when it is there
        model = models.build(fidelity)
        if not fidelity:
            freeze_fidelity(model)
        arm = Arm(name, fidelity, config.fidelity_warmup, folder, {"arch": f"neutreno_{source.arch}"})
        trainer = Trainer(model, teacher, train_loader(), val, arm, session)
        if members.first and not trainer.progress.done:
            (folder / "model.safetensors").unlink(missing_ok=True)  # of fewer epochs; its weights are in last.pth.tar
        evaluations = trainer.run()
        results.add({row + (summary.AVERAGED if kind == EMA else ""): value for kind, value in evaluations.items()})
        whole = models.whole(model, fidelity) if config.fsdp else model
        if members.first:
            if trainer.ema is not None:
                save(trainer.ema, run_directory.create(folder / "ema"), data_config, images)
            save(whole, folder, data_config, images)
        return whole

    assert config.fidelity is not None
    control = directory / "control"
    if config.control and not processes.agree(extension.is_trained(control, recipe.epochs)):
        trained("control", summary.CONTROL, 0.0, control)
    model = trained("adapted", summary.ADAPTED, config.fidelity, directory)
    facts = dict(
        checkpoint=source.label, data=images.label, output=str(directory), epochs=recipe.epochs, seed=config.seed,
        device=str(device), processes=members.count, skipped_images=images.skipped,
        new_head=models.new_head, seconds=round(time.perf_counter() - start, 1), **checkpoint.origin(source),
        **{extension.BEFORE: (earlier or {}).get(extension.BEFORE, [])},
    )  # fmt: skip
    return report(directory, config, results.rows, model, models.new_head, facts) if members.first else {}


class Results:
    """The run's evaluations, kept in a file as they come: a resumed run does not make them again."""

    def __init__(self, directory: Path, writes: bool):
        self.path, self.writes = directory / "evaluations.json", writes
        known = json.loads(self.path.read_text()) if writes and self.path.exists() else {}
        self.rows = {name: Evaluation(**value) for name, value in processes.agree(known).items()}

    def once(self, name: str, measure: Callable[[], Evaluation]) -> None:
        if name not in self.rows:
            self.add({name: measure()})

    def add(self, rows: dict[str, Evaluation]) -> None:
        self.rows.update(rows)
        if self.writes:
            text = json.dumps({name: asdict(value) for name, value in self.rows.items()}, indent=2)
            run_directory.write_text(self.path, text + "\n")


def fit_batch(recipe: Recipe, images: data.Data, config: AdaptConfig, members: Processes) -> int:
    """The images of a step: at most the train images, and the same number for each process and accumulation step.

    Raises:
        UsageError: If they cannot be dealt out evenly, or a stream would have to be.
    """
    if data.is_stream(images.train):
        if members.count > 1 or config.save_every_steps:
            raise UsageError(
                f"{config.data} is a stream, which cannot be dealt out to processes or entered in the middle: use one "
                "process without --save-every-steps, or a folder of images."
            )
        return recipe.batch_size
    parts = members.count * config.accumulate
    step = parts * (2 if recipe.mixup or recipe.cutmix else 1)  # mixing pairs images
    size = recipe.batch_size
    if size > len(images.train):
        size = len(images.train) - len(images.train) % step
    if size % step or not size:
        down = max(size - size % step, step)
        raise UsageError(
            f"--batch-size {size} cannot be dealt out evenly to {members.count} processes x {config.accumulate} "
            f"accumulation steps{' in pairs for mixup' if step > parts else ''}. Use {down} or {down + step}."
        )
    return size


def check_warmup(recipe: Recipe, images: data.Data, config: AdaptConfig) -> None:
    """Refuse a fidelity that would still be rising in the last step.

    Raises:
        UsageError: With the number of steps.
    """
    warmup = config.fidelity_warmup
    if warmup and warmup >= recipe.epochs:
        raise UsageError(f"--fidelity-warmup {warmup:g} must be shorter than --epochs {recipe.epochs}.")
    if not data.is_stream(images.train):
        steps = min(len(images.train) // recipe.batch_size, config.limit_batches or sys.maxsize)
        if warmup * steps > recipe.epochs * steps - 1:
            raise UsageError(
                f"--fidelity-warmup {warmup:g} ends after the last of {recipe.epochs * steps} steps, so --fidelity "
                "would never be reached. Make it shorter."
            )


class Models:
    """Builds the run's models from the checkpoint, all alike: same weights, same new head if there is one."""

    def __init__(
        self, source: checkpoint.Source, images: data.Data, config: AdaptConfig, recipe: Recipe, device: torch.device
    ):
        self.source, self.config, self.recipe, self.device = source, config, recipe, device
        self.num_classes = images.num_classes
        self.new_head = other_classes(source, images) != ""

    def build(self, fidelity: float | None, own: bool = False) -> nn.Module:
        """A model at `fidelity`; `own`: with the checkpoint's own learned fidelities, if it has some."""
        random_seed(self.config.seed)  # a new head is drawn, and must be the same in every arm
        keep = own or (fidelity == self.source.fidelity and self.source.learnable_fidelity is not None)
        try:
            model = checkpoint.build(
                self.source,
                num_classes=self.num_classes,
                fidelity=None if keep else fidelity,
                learnable_fidelity=None if own else self.config.learnable_fidelity,
                img_size=self.config.img_size,
                drop_path=self.recipe.drop_path,
            )
        except UnsupportedModelError as error:
            raise CheckpointError(one_line(error)) from error
        if self.new_head and self.num_classes == self.source.num_classes:
            random_seed(self.config.seed)
            model.reset_classifier(self.num_classes)  # type: ignore[operator]
        return model.to(self.device)

    def whole(self, sharded: nn.Module, fidelity: float) -> nn.Module:
        """A model with the weights of a sharded one; all processes must call it."""
        weights = parallel.gather_weights(sharded)
        model = self.build(fidelity)
        if weights:
            model.load_state_dict(weights)
        return model


def other_classes(source: checkpoint.Source, images: data.Data) -> str:
    """Why the checkpoint's head does not fit the data; "" if it does, or nothing speaks against it."""
    if images.num_classes != source.num_classes:
        return f"{source.num_classes} classes in checkpoint, {images.num_classes} in data"
    ours, theirs = source.label_names, images.class_names
    if ours and theirs and ours != theirs:
        return f"classes {', '.join(ours[:3])}, ... in checkpoint, {', '.join(theirs[:3])}, ... in data"
    return ""


def settle_fidelity(config: AdaptConfig, source: checkpoint.Source) -> dict[str, Any]:
    """Given values go first, then the checkpoint's own, then the paper's."""
    learnable = config.learnable_fidelity or source.learnable_fidelity
    if source.learnable_fidelity and learnable != source.learnable_fidelity:
        raise UsageError(
            f"{source.label} has a fidelity learned per {source.learnable_fidelity}; --learnable-fidelity {learnable} "
            "does not fit. Leave the option out to go on learning."
        )
    own = source.fidelity if source.fidelity is not None else METHODS["neutreno"].strengths["fidelity"]
    return {
        "fidelity": config.fidelity if config.fidelity is not None else own,
        "learnable_fidelity": learnable,
    }


def freeze_fidelity(model: nn.Module) -> None:
    """The control stays plain softmax attention."""
    set_fidelity(model, 0.0)
    for value in strengths(model).values():
        if isinstance(value, nn.Parameter):
            value.requires_grad_(False)


def choose_device(name: str | None, members: Processes) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if members.count > 1 and ":" in name:
        raise UsageError(f"--device {name} would be shared by {members.count} processes: pass --device cuda or cpu.")
    if name == "cuda":
        name = f"cuda:{members.local_rank}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name} cannot be used here: {one_line(error)[:160]} Try --device cpu.") from error
    return device


def share_cores(config: AdaptConfig, device: torch.device) -> None:
    """Computing threads get the cores that the loader processes leave: more of both than cores slow each other down."""
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        workers = data.default_workers() if config.workers is None else config.workers
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - workers))


def announce(session: Session, source: checkpoint.Source, images: data.Data, data_config: dict[str, Any]) -> None:
    """Say what is about to happen."""
    config, recipe, say = session.config, session.recipe, session.narrator.say
    learnable = f", learnable per {config.learnable_fidelity}" if config.learnable_fidelity else ""
    warmup = f", rising over {config.fidelity_warmup:g} epochs" if config.fidelity_warmup else ""
    count = f"{session.processes.count} processes, " if session.processes.count > 1 else ""
    say(f"checkpoint  {source.label} ({source.arch}), input {'x'.join(map(str, data_config['input_size']))}")
    for note in source.notes:
        say(f"weights     {note}")
    say(f"data        {images.label}: {images.num_classes} classes")
    say(f"fidelity    {config.fidelity:g}{learnable}{warmup}")
    say(
        f"training    {recipe.epochs} epochs, batch {recipe.batch_size}, AdamW {session.lr:.2e}, seed {config.seed}, "
        f"{count}{session.device}"
    )
    if difference := other_classes(source, images):
        say(f"head        initialised anew: {difference}")


def _arguments(session: Session, data_config: dict[str, Any], images: data.Data, earlier: dict[str, Any] | None) -> str:
    resolved = {key: list(value) if isinstance(value, tuple) else value for key, value in data_config.items()}
    versions = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "timm", "timm-neutreno")},
    }
    values = {
        **as_dict(session.config, session.recipe),
        "lr": session.lr,
        "device": session.device.type if session.processes.count > 1 else str(session.device),
        "gpus": str(session.processes.count) if session.processes.count > 1 else None,
        "data_config": resolved,
        "class_names": images.class_names,
        resume.FINGERPRINT: data.fingerprint(images),
        "versions": versions,
    }
    if earlier is not None:
        values |= {"versions": earlier["versions"], "resumed": [*earlier.get("resumed", []), versions]}
        values |= {key: earlier[key] for key in (extension.BEFORE,) if key in earlier}
    return yaml.safe_dump(values, sort_keys=False)


def save(model: nn.Module, directory: Path, data_config: dict[str, Any], images: data.Data) -> None:
    """model.safetensors and config.json, which timm.create_model("local-dir:...") reads."""
    if any(not torch.isfinite(p).all() for p in model.parameters()):
        raise TrainingError(f"the trained weights are not finite. The last checkpoint is in {directory}; lower --lr.")
    with run_directory.writing(directory / "model.safetensors"):
        beside = directory / run_directory.SAVING
        shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed while it saved
        save_pretrained(model.eval(), beside, data_config=data_config, label_names=images.class_names, tag="neutreno")
        for name in ("config.json", "model.safetensors"):  # the weights last: where they are, the arm is done
            (beside / name).replace(directory / name)
        shutil.rmtree(beside)


def report(
    directory: Path, config: AdaptConfig, results: dict[str, Evaluation], model: nn.Module, new_head: bool, facts: dict
) -> dict[str, Any]:
    """Write similarity.png, results.json and README.md; return the result."""
    results = {name: results[name] for name in summary.ORDER if name in results}
    fidelities = _fidelities(config, results, model)
    table = summary.rows(results, fidelities, new_head)
    sentences = summary.verdict(results)
    with run_directory.writing(directory / "similarity.png"):
        plot_similarity({name: value.similarity for name, value in results.items()}, directory / "similarity.png")
    notes = [
        f"Checkpoint: {facts['checkpoint']}. Data: {facts['data']}, evaluated on {results[summary.ADAPTED].images} val "
        f"images. {facts['epochs']} epochs, seed {facts['seed']}, {facts['device']}. Weights of the last epoch.",
    ]
    if facts["skipped_images"]:
        notes.append(f"Unreadable images were passed over {facts['skipped_images']} times.")
    if facts[extension.BEFORE]:
        notes.append(
            f"The run was planned for {', then '.join(map(str, facts[extension.BEFORE]))} epochs before it was made "
            f"{facts['epochs']}: the learning rates of each part are those of its own plan."
        )
    text = summary.readme("NeuTRENO adaptation", table, sentences, str(directory), notes)
    run_directory.write_text(directory / "README.md", text)
    document = summary.document(results, fidelities, sentences, **facts)
    for_card = {**document, "adapted": summary.ADAPTED, "table": [summary.HEADER, *table]}
    run_directory.write_text(directory / "results.json", json.dumps(for_card, indent=2) + "\n")
    document["table"] = summary.plain_table(table)
    return document


def _fidelities(config: AdaptConfig, results: dict[str, Evaluation], model: nn.Module) -> dict[str, str]:
    after = f"{config.fidelity:g}"
    if config.learnable_fidelity:
        flat = torch.cat([f.detach().flatten().cpu() for f in strengths(model).values() if isinstance(f, torch.Tensor)])
        after = f"{flat.min():.2f} to {flat.max():.2f}"
    values = {
        summary.BEFORE: "-",
        summary.UNADAPTED: f"{config.fidelity:g}",
        summary.CONTROL: "0",
        summary.ADAPTED: after,
    }
    values |= {arm + summary.AVERAGED: values[arm] for arm in (summary.CONTROL, summary.ADAPTED)}
    return {name: values[name] for name in results}
