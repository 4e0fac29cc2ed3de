"""One run of `neutreno adapt`, from checkpoint and data to the table: the story in order."""

from __future__ import annotations

import json
import os
import platform
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.data import resolve_model_data_config
from timm.models._input import get_model_input_config
from timm.utils import random_seed
from torch import nn

from timm_neutreno import UnsupportedModelError, set_fidelity
from timm_neutreno.fidelity import DEFAULT_FIDELITY
from timm_neutreno.hub import save_pretrained
from timm_neutreno.smoothing import plot_similarity
from timm_neutreno.support import find_layers
from timm_neutreno.surgery import fidelity_holders
from timm_neutreno.twins import twin_name

from . import checkpoint, data, push, run_directory, summary
from .config import AdaptConfig, Recipe, as_dict, check_config, resolve_recipe
from .errors import CheckpointError, TrainingError, UsageError, one_line
from .evaluate import Evaluation, evaluate
from .progress import Narrator
from .train import Arm, learning_rate, train


def run(config: AdaptConfig) -> dict[str, Any]:
    """Adapt a checkpoint, and compare it with itself and with a control.

    Returns:
        The result, as printed by --json.

    Raises:
        CliError: One of its kinds; nothing that exists is overwritten.
    """
    start = time.perf_counter()
    check_config(config)
    recipe = resolve_recipe(config)
    if config.fidelity_warmup and config.fidelity_warmup >= recipe.epochs:
        raise UsageError(f"--fidelity-warmup {config.fidelity_warmup:g} must be shorter than --epochs {recipe.epochs}.")
    narrator = Narrator(config.quiet)
    device = choose_device(config.device)
    share_cores(config, device)
    if config.push_to_hub:
        push.check_name(config.push_to_hub, config.private, config.revision, config.create_pr)
    source = checkpoint.find(config.checkpoint, config.arch, config.model_kwargs)
    config = replace(config, **settle_fidelity(config, source))
    images = data.find(config)
    recipe = replace(recipe, batch_size=min(recipe.batch_size, _length(images.train, recipe.batch_size)))
    if config.limit_batches:
        data.thin(images.val, config.limit_batches * recipe.batch_size)
    directory = run_directory.choose(config.output, f"neutreno-{source.name}")
    if config.push_to_hub:  # as soon as nothing else can be refused, since it makes the repository
        arch = twin_name(source.arch)
        push.prepare(config.push_to_hub, config.private, config.revision, config.create_pr, arch)

    models = Models(source, images, config, recipe, device)
    plain = models.build(source.fidelity or 0.0, own=True)
    data_config = {**resolve_model_data_config(plain), "input_size": get_model_input_config(plain)["input_size"]}
    lr = learning_rate(recipe, config.lr)
    announce(narrator, config, source, images, recipe, lr, data_config, device)
    run_directory.create(directory)
    run_directory.write_text(directory / "args.yaml", _arguments(config, recipe, lr, data_config, images, device))

    def loaders() -> dict[str, Any]:
        return {part: data.loader(images, part, recipe, data_config, config, device) for part in ("train", "val")}

    def evaluated(model: nn.Module) -> Evaluation:
        return evaluate(model, islice(val, config.limit_batches), device, autocast(config, device))

    val = data.loader(images, "val", recipe, data_config, config, device)
    results = {summary.BEFORE: evaluated(plain), summary.UNADAPTED: evaluated(models.build(config.fidelity))}
    del plain

    def trained(name: str, fidelity: float, folder: Path) -> nn.Module:
        """Train one arm from the checkpoint, on data in the same order."""
        model = models.build(fidelity)
        arm = Arm(name, fidelity, config.fidelity_warmup, run_directory.create(folder))
        if not fidelity:
            freeze_fidelity(model)
        row = summary.ADAPTED if name == "adapted" else summary.CONTROL
        results[row] = train(
            model, loaders(), arm, recipe, lr=lr, device=device, autocast=autocast(config, device), narrator=narrator,
            limit_batches=config.limit_batches, context={"arch": f"neutreno_{source.arch}"}, seed=config.seed,
        )  # fmt: skip
        return model

    assert config.fidelity is not None
    if config.control:
        trained("control", 0.0, directory / "control")
    model = trained("adapted", config.fidelity, directory)
    save(model, directory, data_config, images)
    facts = dict(
        checkpoint=source.label, data=images.label, output=str(directory), epochs=recipe.epochs, seed=config.seed,
        device=str(device), skipped_images=images.skipped, seconds=round(time.perf_counter() - start, 1),
        **checkpoint.origin(source),
    )  # fmt: skip
    return report(directory, config, results, model, models.new_head, facts)


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
    own = source.fidelity if source.fidelity is not None else DEFAULT_FIDELITY
    return {
        "fidelity": config.fidelity if config.fidelity is not None else own,
        "learnable_fidelity": learnable,
    }


def freeze_fidelity(model: nn.Module) -> None:
    """The control stays plain softmax attention."""
    set_fidelity(model, 0.0)
    for owner in find_layers(model):
        for holder in fidelity_holders(owner):
            if isinstance(holder.fidelity, nn.Parameter):
                holder.fidelity.requires_grad_(False)


def choose_device(name: str | None) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
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


def autocast(config: AdaptConfig, device: torch.device) -> AbstractContextManager:
    """bfloat16 where the device has it; on the CPU only if asked for, where it is mostly slower."""
    wanted = config.amp if config.amp is not None else device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else nullcontext()


def _length(dataset: Any, default: int) -> int:
    try:
        return len(dataset)
    except TypeError:  # a stream
        return default


def announce(narrator, config, source, images, recipe, lr, data_config, device) -> None:
    """Say what is about to happen."""
    learnable = f", learnable per {config.learnable_fidelity}" if config.learnable_fidelity else ""
    warmup = f", rising over {config.fidelity_warmup:g} epochs" if config.fidelity_warmup else ""
    narrator.say(f"checkpoint  {source.label} ({source.arch}), input {'x'.join(map(str, data_config['input_size']))}")
    narrator.say(f"data        {images.label}: {images.num_classes} classes")
    narrator.say(f"fidelity    {config.fidelity:g}{learnable}{warmup}")
    narrator.say(
        f"training    {recipe.epochs} epochs, batch {recipe.batch_size}, AdamW {lr:.2e}, seed {config.seed}, {device}"
    )
    if difference := other_classes(source, images):
        narrator.say(f"head        initialised anew: {difference}")


def _arguments(config, recipe, lr, data_config, images, device) -> str:
    resolved = {key: list(value) if isinstance(value, tuple) else value for key, value in data_config.items()}
    values = {
        **as_dict(config, recipe),
        "lr": lr,
        "device": str(device),
        "data_config": resolved,
        "class_names": images.class_names,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "timm", "timm-neutreno")},
        },
    }
    return yaml.safe_dump(values, sort_keys=False)


def save(model: nn.Module, directory: Path, data_config: dict[str, Any], images: data.Data) -> None:
    """model.safetensors and config.json, which timm.create_model("local-dir:...") reads."""
    if any(not torch.isfinite(p).all() for p in model.parameters()):
        raise TrainingError(f"the trained weights are not finite. The last checkpoint is in {directory}; lower --lr.")
    with run_directory.writing(directory / "model.safetensors"):
        beside = directory / ".saving"
        save_pretrained(model.eval(), beside, data_config=data_config, label_names=images.class_names, tag="neutreno")
        for name in ("model.safetensors", "config.json"):
            (beside / name).replace(directory / name)
        beside.rmdir()


def report(
    directory: Path, config: AdaptConfig, results: dict[str, Evaluation], model: nn.Module, new_head: bool, facts: dict
) -> dict[str, Any]:
    """Write similarity.png, results.json and README.md; return the result."""
    order = (summary.BEFORE, summary.UNADAPTED, summary.CONTROL, summary.ADAPTED)
    results = {name: results[name] for name in order if name in results}
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
    text = summary.readme("NeuTRENO adaptation", table, sentences, str(directory), notes)
    run_directory.write_text(directory / "README.md", text)
    document = summary.document(results, fidelities, sentences, **facts)
    for_card = {**document, "adapted": summary.ADAPTED, "table": [summary.HEADER, *table]}
    run_directory.write_text(directory / "results.json", json.dumps(for_card, indent=2) + "\n")
    document["table"] = summary.plain_table(table)
    return document


def _fidelities(config: AdaptConfig, results: dict[str, Evaluation], model: nn.Module) -> dict[str, str]:
    learned = [h.fidelity for owner in find_layers(model) for h in fidelity_holders(owner)]
    after = f"{config.fidelity:g}"
    if config.learnable_fidelity:
        flat = torch.cat([f.detach().flatten().cpu() for f in learned if isinstance(f, torch.Tensor)])
        after = f"{flat.min():.2f} to {flat.max():.2f}"
    values = {
        summary.BEFORE: "-",
        summary.UNADAPTED: f"{config.fidelity:g}",
        summary.CONTROL: "0",
        summary.ADAPTED: after,
    }
    return {name: values[name] for name in results}
