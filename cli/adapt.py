"""`neutreno adapt`: its options, and what it prints. The run itself is in adaptation.py."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from . import config_file
from .config import RECIPES, AdaptConfig, Recipe, check_config
from .errors import UsageError
from .loggers import check as check_loggers

DATA, MODEL, FIDELITY, TRAIN, RUN, HUB = "Data", "Checkpoint", "Fidelity", "Training", "Run", "Hugging Face Hub"
SPEED, FAULTS = "Many GPUs, memory and speed", "Long runs"
GIVEN = {item.name for item in fields(Recipe)} - {"lr"}


def show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"timm-neutreno {version('timm-neutreno')}")
        raise typer.Exit


def option(help: str, panel: str, *names: str, **kwargs: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_envvar=False, **kwargs)


def adapt(
    ctx: typer.Context,
    checkpoint: Annotated[str, option("demo, a timm name (deit_tiny), hf-hub:..., local-dir:..., a folder, or a file of weights.", MODEL)] = "demo",
    arch: Annotated[str | None, option("timm name of a file's architecture, if the file does not say.", MODEL)] = None,
    weights: Annotated[str | None, option("raw or ema, of a file that has both. (default: ema, where there is one)", MODEL)] = None,
    model_kwargs: Annotated[list[str] | None, option("key=value for the model's constructor; repeat.", MODEL)] = None,
    img_size: Annotated[int | None, option("Another input size; the position embedding is resampled.", MODEL, min=1)] = None,
    data: Annotated[str | None, option("Folder with train/ and val/, folder of class folders, or torch/..., hfds/..., wds/... (default: the embedded digits)", DATA)] = None,
    data_dir: Annotated[str | None, option("Where a torch/, hfds/, wds/ or tfds/ source keeps its files.", DATA)] = None,
    train_split: Annotated[str, option("Name of the train split of such a source.", DATA)] = "train",
    val_split: Annotated[str, option("Name of its val split; or, for a folder without one, the part held out (0.1).", DATA)] = "validation",
    num_classes: Annotated[int | None, option("For a source that does not say.", DATA, min=1)] = None,
    skip_bad_images: Annotated[bool, option("Pass over unreadable images, and count them.", DATA, "--skip-bad-images")] = False,
    workers: Annotated[int | None, option("Data loader processes. (default: one per core but one, at most 8)", DATA, min=0)] = None,
    fidelity: Annotated[float | None, option("Weight of the fidelity term. (default: 0.6, or the checkpoint's own)", FIDELITY)] = None,
    learnable_fidelity: Annotated[str | None, option("layer or head: learn it, starting at --fidelity.", FIDELITY)] = None,
    fidelity_warmup: Annotated[float, option("Epochs over which it rises from 0.", FIDELITY)] = 0.0,
    control: Annotated[bool, option("Also fine-tune the same checkpoint at fidelity 0.", TRAIN)] = True,
    recipe: Annotated[str | None, option(f"{', '.join(RECIPES)}. The options below change it.", TRAIN)] = None,
    epochs: Annotated[int | None, option("Passes over the train images. (default: the recipe's)", TRAIN, min=1)] = None,
    batch_size: Annotated[int | None, option("Images per step, over all processes and accumulation steps.", TRAIN, min=1)] = None,
    lr: Annotated[float | None, option("Peak learning rate. (default: the recipe's, scaled to the batch)", TRAIN)] = None,
    min_lr: Annotated[float | None, option("Learning rate at the end.", TRAIN)] = None,
    weight_decay: Annotated[float | None, option("AdamW's; biases, norms and fidelities have none.", TRAIN)] = None,
    warmup_epochs: Annotated[int | None, option("Of the learning rate; at most a fifth of the epochs.", TRAIN, min=0)] = None,
    layer_decay: Annotated[float | None, option("Learning rate of a block, as a factor of the next block's.", TRAIN)] = None,
    drop_path: Annotated[float | None, option("Stochastic depth rate of the last block.", TRAIN)] = None,
    smoothing: Annotated[float | None, option("Label smoothing.", TRAIN)] = None,
    mixup: Annotated[float | None, option("Mixup alpha; 0 for none.", TRAIN)] = None,
    cutmix: Annotated[float | None, option("CutMix alpha; 0 for none.", TRAIN)] = None,
    random_erasing: Annotated[float | None, option("Probability of erasing a rectangle.", TRAIN)] = None,
    auto_augment: Annotated[str | None, option("timm's policy string, such as rand-m9-mstd0.5-inc1.", TRAIN)] = None,
    color_jitter: Annotated[float | None, option("Strength of colour jitter.", TRAIN)] = None,
    hflip: Annotated[float | None, option("Probability of mirroring an image.", TRAIN)] = None,
    crop_scale: Annotated[float | None, option("Smallest part of an image that a random crop keeps.", TRAIN)] = None,
    clip_grad: Annotated[float | None, option("Largest gradient norm; 0 for any.", TRAIN)] = None,
    repeated_aug: Annotated[int | None, option("Augmentations of an image per epoch, of so many fewer images.", TRAIN, min=1)] = None,
    ema_decay: Annotated[float | None, option("Average the weights, and evaluate them beside the raw ones; 0 for none.", TRAIN)] = None,
    train: Annotated[str, option("What is trained: all, attention, fidelity or head. All but fidelity include the head.", TRAIN)] = "all",
    teacher: Annotated[str | None, option("Distil from a timm model with the same classes.", TRAIN)] = None,
    distill_weight: Annotated[float, option("Share of the teacher in the loss.", TRAIN)] = 0.5,
    distill_temperature: Annotated[float, option("Of both softmaxes in it.", TRAIN)] = 1.0,
    patience: Annotated[int | None, option("Stop after so many epochs without a better top-1.", TRAIN, min=1)] = None,
    limit_batches: Annotated[int | None, option("At most so many batches per epoch, of train and of val.", TRAIN, min=1)] = None,
    device: Annotated[str | None, option("cpu, cuda, ... (default: cuda if there is one)", RUN)] = None,
    gpus: Annotated[str | None, option("Processes to start on this machine, one per GPU: a number, or all.", SPEED)] = None,
    fsdp: Annotated[bool, option("Shard model and optimizer over the processes.", SPEED, "--fsdp")] = False,
    accumulate: Annotated[int, option("Split a step into so many forward and backward passes.", SPEED, min=1)] = 1,
    grad_checkpointing: Annotated[bool, option("Recompute activations instead of keeping them.", SPEED, "--grad-checkpointing")] = False,
    compile: Annotated[bool, option("torch.compile the training step's model.", SPEED, "--compile")] = False,
    channels_last: Annotated[bool, option("Memory format of the images.", SPEED, "--channels-last")] = False,
    amp: Annotated[bool | None, option("Mixed precision. (default: where CUDA has bfloat16)", SPEED, "--amp/--no-amp")] = None,
    amp_dtype: Annotated[str, option("bfloat16 or float16, of mixed precision.", SPEED)] = "bfloat16",
    tf32: Annotated[bool, option("TensorFloat-32 in float32 products.", SPEED, "--tf32/--no-tf32")] = True,
    resume: Annotated[str | None, option("Go on with this run; auto: with --output if it is a run, else start it.", FAULTS)] = None,
    allow_changes: Annotated[bool, option("Resume although settings or data differ.", FAULTS, "--allow-changes")] = False,
    save_every_steps: Annotated[int | None, option("Save inside epochs too.", FAULTS, min=1)] = None,
    time_limit: Annotated[float | None, option("Hours after which the run saves and stops, to be resumed.", FAULTS)] = None,
    dry_run: Annotated[bool, option("Print the plan, from a few measured steps; write nothing.", RUN, "--dry-run")] = False,
    log: Annotated[list[str] | None, option("tensorboard, wandb or trackio, beside metrics.jsonl and metrics.csv; repeat.", RUN)] = None,
    seed: Annotated[int, option("Of data order, augmentation, dropout and a new head.", RUN)] = 0,
    seeds: Annotated[int, option("Run so many seeds, from --seed on, and compare in pairs.", RUN, min=1)] = 1,
    config_path: Annotated[str | None, option("YAML file of options, such as a run's args.yaml. Options given here, or as NEUTRENO_<OPTION>, go first.", RUN, "--config", envvar="NEUTRENO_CONFIG", callback=config_file.load, is_eager=True)] = None,
    output: Annotated[str | None, option("Folder of the run, never overwritten. (default: runs/<time>-<model>)", RUN)] = None,
    push_to_hub: Annotated[str | None, option("OWNER/NAME of a repository to push the model to; checked before training.", HUB)] = None,
    private: Annotated[bool, option("Make the repository private, if it is made.", HUB, "--private")] = False,
    revision: Annotated[str | None, option("Branch to push to; made if missing. (default: main)", HUB)] = None,
    create_pr: Annotated[bool, option("Open a pull request instead.", HUB, "--create-pr")] = False,
    quiet: Annotated[bool, option("Only the result.", RUN, "--quiet", "-q")] = False,
    as_json: Annotated[bool, option("The result as one JSON document on stdout.", RUN, "--json", envvar="NEUTRENO_JSON")] = False,
    version: Annotated[bool, option("Print the version.", RUN, "--version", callback=show_version, is_eager=True, allow_from_autoenv=False)] = False,
) -> None:  # fmt: skip
    """Fine-tune a pretrained checkpoint into a NeuTRENO model, and compare it with a control.

    Exit codes: 0 done, 2 usage, 3 data, 4 checkpoint or model, 5 Hub, 6 output cannot be written, 7 training failed,
    130 interrupted, 1 anything else.
    """
    values = locals()
    settings = {name: values[name] for name in GIVEN if values[name] is not None}
    config = AdaptConfig(
        **{item.name: values[item.name] for item in fields(AdaptConfig) if item.name in values} | {
            "model_kwargs": parse_model_kwargs(model_kwargs or []),
            "log": log or [],
            "settings": settings,
            "json": as_json,
            "given": given_options(ctx, val_split),
            **val_options(val_split),
        }
    )  # fmt: skip
    go(config)


def go(config: AdaptConfig) -> None:
    """Run here, or in as many processes as asked for."""
    from . import processes
    from .resume import find_run, own_settings

    config = find_run(config)
    check_config(config)
    check_loggers(config.log)
    gpus, device = config.gpus, config.device
    if config.resume and (earlier := own_settings(Path(config.resume))):
        gpus, device = gpus or earlier.gpus, device or earlier.device
    if gpus and not processes.in_worker():
        count = processes.count_gpus(gpus, device)
        if count > 1:
            sys.exit(processes.launch(count, sys.argv))
    from .adaptation import run

    document = run(config)
    if processes.rank():
        return
    print_result(document, config.json)
    if config.push_to_hub and not config.dry_run:
        push_result(document["output"], config)


def push_result(directory: str, config: AdaptConfig) -> None:
    """Push after everything is saved and printed, so that a failed push costs nothing."""
    from .push import pushed

    assert config.push_to_hub
    address = pushed(
        Path(directory), config.push_to_hub, config.private, config.revision, config.create_pr, quiet=config.quiet
    )
    print(f"pushed to {address}", file=sys.stderr if config.json or config.quiet else sys.stdout)


def val_options(val_split: str) -> dict[str, Any]:
    """--val-split is a name, or a fraction for a folder without a split."""
    try:
        return {"val_fraction": float(val_split), "val_split": "validation"}
    except ValueError:
        return {"val_split": val_split}


def given_options(ctx: typer.Context, val_split: str) -> tuple[str, ...]:
    """The fields of AdaptConfig that were given, also those that were given their default value."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    names = {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}
    names |= {"json"} & {name.removeprefix("as_") for name in names}
    return tuple(sorted(names | (set(val_options(val_split)) if "val_split" in names else set())))


def parse_model_kwargs(pairs: list[str]) -> dict[str, Any]:
    """key=value with YAML values: embed_dim=64, qk_norm=true.

    Raises:
        UsageError: If a pair has no =, or its value is not YAML.
    """
    import yaml

    parsed = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        try:
            parsed[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            sign = ""
        if not sign or not key.isidentifier():
            raise UsageError(f"--model-kwargs takes key=value, such as embed_dim=64, got {pair!r}.")
    return parsed


def print_result(document: dict[str, Any], as_json: bool) -> None:
    """The result on stdout: one JSON document, or the table, the verdict and how to load the model."""
    from .summary import load_lines

    if as_json:
        print(json.dumps({key: value for key, value in document.items() if key != "table"}))
        return
    if "plan" in document:
        print(plan_text(document))
        return
    print(f"\n{document['table']}\n")
    for sentence in document["verdict"]:
        print(sentence)
    if "seeds" in document:
        print(f"\nRuns, tables and models: {document['output']}")
        return
    if document["skipped_images"]:
        print(f"Unreadable images were passed over {document['skipped_images']} times.")
    print(f"\n{document['seconds']:.0f} s. Model, checkpoints and plot: {document['output']}. Load it with:\n")
    print("\n".join(load_lines(document["output"])))


def plan_text(document: dict[str, Any]) -> str:
    """The plan as lines, with the files at the end."""
    width = max(map(len, document["plan"]))
    lines = [f"{name:<{width}}  {value}" for name, value in document["plan"].items()]
    return "\n".join([*lines, f"{'writes':<{width}}  {', '.join(document['files'])}", "Nothing was written."])
