"""Every option of `neutreno-adapt`, once: its default, help, panel, range, and what resuming a run does with it.

commands/options.py makes the command line from this table; args.yaml is this table of a run, with its values.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from .errors import UsageError

DATA, MODEL, METHOD, TRAIN, RUN, HUB = "Data", "Checkpoint", "Method", "Training", "Run", "Hugging Face Hub"
SPEED, LONG = "Many GPUs, memory and speed", "Long runs"
PIXELS = "Segmentation"
TASKS = ("classification", "segmentation")

# What resuming does with an option. SAME: another value than the run's is refused, since it would change its figures.
# FREE: obeyed, and kept by the run. ONCE: holds for one start of the command; neither --resume nor --config repeats it.
SAME, FREE, ONCE = "same", "free", "once"

# The largest constant in benchmarks/fair_table.py that is not below the control on val: a short fine-tuning does not
# recover from the paper's 0.6.
FINETUNE_FIDELITY = 0.2


# what --help shows; --help-all shows every option
MAIN = (
    "checkpoint", "data", "method", "fidelity", "epochs", "batch_size", "lr", "seeds", "output", "resume", "dry_run",
    "gpus", "push_to_hub",
)  # fmt: skip
METHOD_NAMES = (
    "attnscale", "gfsa", "twicing", "laplacian", "xsa", "neutreno", "value_residual", "kernel", "symmetric", "featscale",
)  # fmt: skip


class Option(NamedTuple):
    """What the command line must know of a field, beside its name, type and default.

    Attributes:
        help: One line for --help.
        panel: The part of --help that it stands in.
        resume: SAME, FREE or ONCE.
        recipe: Whether a recipe may set it; then --help shows no default.
        range: An interval such as "[0, 1)"; None for any value.
        choices: The words that it takes; empty for any.
        flags: Names on the command line; empty for the field's own.
        parse: From the words of the command line to the field's value.
        task: The only task that it is for; empty for all.
    """

    help: str
    panel: str
    resume: str = SAME
    recipe: bool = False
    range: str | None = None
    choices: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    parse: Callable[[Any], Any] | None = None
    task: str = ""


def _option(default: Any, help: str, panel: str, resume: str = SAME, *flags: str, **more: Any) -> Any:
    metadata = {"option": Option(help, panel, resume, flags=flags, **more)}
    made: dict[str, Any] = {"default_factory": type(default)} if isinstance(default, list | dict) else {}
    return field(**(made or {"default": default}), metadata=metadata)


def _recipe(default: Any, help: str, range: str | None = None, *flags: str, **more: Any) -> Any:
    return _option(default, help, TRAIN, SAME, *flags, recipe=True, range=range, **more)


_CLASSES = {"task": "classification"}  # options that mean nothing to masks
_MASKS = {"task": "segmentation"}


def parse_pairs(pairs: list[str]) -> dict[str, Any]:
    """key=value words with YAML values: embed_dim=64, qk_norm=true.

    Raises:
        UsageError: If a pair has no =, or its value is not YAML.
    """
    import yaml

    parsed = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        try:
            parsed[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):  # also a number without end, or brackets
            sign = ""
        if not sign or not key.isidentifier():
            raise UsageError(f"--model-kwargs and --set take key=value, such as embed_dim=64, got {pair!r}.")
    return parsed


@dataclass(frozen=True)
class Config:
    """What one run is asked to do. None means: found out from the checkpoint, the data or the machine."""

    # fmt: off
    task: str = _option("classification", "What the model is trained for: classification, or segmentation, with a Segmenter around the checkpoint.", MODEL, choices=TASKS)
    checkpoint: str = _option("demo", "What to start from: demo, a name in timm such as deit_tiny, hf-hub:OWNER/NAME, local-dir:FOLDER, the folder of a saved model, or a file of weights.", MODEL)
    arch: str | None = _option(None, "Name in timm of the architecture of a file of weights, if the file does not say it.", MODEL)
    weights: str | None = _option(None, "Which weights to take from a file that holds both: raw or ema (averaged). (default: ema, where there are any)", MODEL, choices=("raw", "ema"))
    model_kwargs: dict[str, Any] = _option({}, "An argument of the model's constructor, as key=value. Can be repeated.", MODEL, parse=parse_pairs)
    img_size: int | None = _option(None, "Train and evaluate at this input size in pixels; the position embedding is resampled to it. In segmentation it is the side of a crop, and of a window.", MODEL, recipe=True, range="[1, inf)")
    data: str | None = _option(None, "A folder with train/ and val/, a folder of class folders, or a source of timm such as torch/cifar10 or hfds/OWNER/NAME; in segmentation a folder with images/ and annotations/, or hfds/OWNER/NAME. (default: the embedded digits)", DATA)
    data_dir: str | None = _option(None, "Folder where a torch/ or hfds/ source keeps its files.", DATA, FREE)
    train_split: str = _option("train", "Name of the train split of a torch/ or hfds/ source.", DATA)
    val_split: str = _option("validation", "Name of the val split of a torch/ or hfds/ source. For a folder of class folders, a number: the share of images to hold out. (default: validation, and 0.1)", DATA)
    split_seed: int | None = _option(None, "Seed that chooses which images of a folder of class folders are held out. (default: --seed)", DATA)
    num_classes: int | None = _option(None, "Number of classes, for a source of data that does not say it.", DATA, range="[1, inf)")
    skip_bad_images: bool = _option(False, "Pass over images that cannot be read, and count them, instead of stopping.", DATA, FREE)
    workers: int | None = _option(None, "Number of processes that load images. (default: one less than the cores, at most 8)", DATA, FREE, range="[0, inf)")
    ignore_label: int | None = _option(None, "Label in the masks that does not count, such as 255.", PIXELS, **_MASKS)
    reduce_zero_label: bool = _option(False, "Label 0 does not count either, and label 1 is the first class, as in ADE20K.", PIXELS, **_MASKS)
    part: list[str] = _option([], "Where the methods act: both, encoder or decoder. Repeat the option to compare. (default: both)", PIXELS, choices=("both", "encoder", "decoder"), **_MASKS)
    decoder_depth: int = _option(2, "Number of blocks of the decoder.", PIXELS, range="[1, inf)", **_MASKS)
    decoder_dropout: float = _option(0.1, "Dropout rate in the decoder: of its attention, projections and MLPs.", PIXELS, recipe=True, range="[0, 1)", **_MASKS)
    window_stride: int | None = _option(None, "Pixels from one window to the next in evaluation. (default: the window)", PIXELS, range="[1, inf)", **_MASKS)
    multi_scale: bool = _option(False, "Evaluate, at the end, at six scales and mirrored too.", PIXELS, **_MASKS)
    method: list[str] = _option([], "What to put into the attention: attnscale, gfsa, twicing, laplacian, xsa, neutreno, value_residual, kernel, symmetric or featscale. A + joins several in one model; repeat the option to compare several models. (default: neutreno, or the checkpoint's own)", METHOD)
    set: dict[str, Any] = _option({}, "Strength of a method, or how it is learned, as key=value: fidelity=0.4, learnable_fidelity=head. Can be repeated.", METHOD, parse=parse_pairs)
    fidelity: float | None = _option(None, f"Weight of NeuTRENO's term, short for --set fidelity=NUMBER; 0 is plain attention. (default: the checkpoint's own; else {FINETUNE_FIDELITY} in the recipe finetune of classification and 0.6, the paper's, in the others)", METHOD, range="(-inf, inf)")
    learnable_fidelity: str | None = _option(None, "Learn the fidelity, one number per layer or per head, starting at --fidelity.", METHOD, choices=("layer", "head"))
    fidelity_warmup: float = _option(0.0, "Epochs over which the fidelity rises from 0 to its value, so that training starts from the checkpoint's own function.", METHOD, range="[0, inf)")
    control: bool = _option(True, "Also fine-tune the same checkpoint without a method. Only this comparison can tell what the method is worth.", TRAIN)
    recipe: str | None = _option(None, "A set of training options: finetune, deit or digits; in segmentation finetune, segmenter or digits. Every option of this group that you give goes before it. (default: finetune, or digits for the embedded digits)", TRAIN)
    epochs: int = _recipe(30, "Number of passes over the train images.", "[1, inf)")
    batch_size: int = _recipe(64, "Number of images in a step, over all processes and accumulation steps together.", "[1, inf)")
    lr: float | None = _option(None, "Peak of the learning rate. (default: the recipe's, in proportion to the batch size)", TRAIN, range="[0, inf)")
    min_lr: float = _recipe(1e-6, "Learning rate at the end of training.", "[0, inf)")
    opt: str = _recipe("adamw", "Optimizer: adamw, or sgd with momentum 0.9.", choices=("adamw", "sgd"))
    sched: str = _recipe("cosine", "How the learning rate falls: cosine, or poly (a polynomial of power 0.9).", choices=("cosine", "poly"))
    weight_decay: float = _recipe(0.05, "Weight decay of the optimizer. Biases, norms and strengths of methods have none.", "[0, inf)")
    warmup_epochs: int = _recipe(3, "Epochs over which the learning rate rises; cut to a fifth of all epochs.", "[0, inf)")
    layer_decay: float = _recipe(0.9, "Factor between the learning rate of a block and that of the block after it; 1 for equal rates.", "[0, inf)")
    drop_path: float = _recipe(0.1, "Rate of stochastic depth in the last block; it grows linearly from 0 in the first.", "[0, inf)")
    label_smoothing: float = _recipe(0.1, "Share of the target that is spread over all classes alike.", "[0, inf)", "--label-smoothing", "--smoothing")
    mixup: float = _recipe(0.0, "Alpha of mixup; 0 turns it off.", "[0, inf)", **_CLASSES)
    cutmix: float = _recipe(0.0, "Alpha of CutMix; 0 turns it off.", "[0, inf)", **_CLASSES)
    random_erasing: float = _recipe(0.0, "Probability of erasing a rectangle of a train image.", "[0, inf)", **_CLASSES)
    auto_augment: str = _recipe("", "A policy of timm for augmentation, such as rand-m9-mstd0.5-inc1.", **_CLASSES)
    color_jitter: float = _recipe(0.4, "Strength of random changes of colour; 0 turns them off.", "[0, inf)")
    hflip: float = _recipe(0.5, "Probability of mirroring a train image.", "[0, inf)")
    crop_scale: float = _recipe(0.35, "Smallest share of an image's area that a random crop keeps.", "[0, inf)", **_CLASSES)
    scale_min: float = _recipe(0.5, "Smallest random scale, of an image's short side over the crop's.", "(0, inf)", **_MASKS)
    scale_max: float = _recipe(2.0, "Largest random scale, of an image's short side over the crop's.", "(0, inf)", **_MASKS)
    clip_grad: float = _recipe(1.0, "Largest norm of the gradient, which is scaled down to it; 0 for no limit.", "[0, inf)")
    repeated_aug: int = _recipe(1, "Number of differently augmented copies of an image in an epoch, which then has as many times fewer images.", "[1, inf)", **_CLASSES)
    ema_decay: float = _recipe(0.0, "Average the weights over the steps with this decay, and evaluate the averages beside the weights; 0 turns it off.", "[0, 1)")
    trainable: str = _option("all", "Which part is trained: all, attention, lora (low-rank adapters, merged into what is saved), strengths (the learnable ones of the methods), fidelity or head. With the first three the head is trained too.", TRAIN, SAME, "--trainable", "--train", choices=("all", "attention", "lora", "strengths", "fidelity", "head"))
    freeze_blocks: int = _option(0, "Number of first blocks that are not trained, with the patch embedding; 0 trains all.", TRAIN, range="[0, inf)", **_CLASSES)
    class_weights: str = _option("none", "What a train image counts for: none for one and the same, balanced so that a class of few images counts as much as one of many.", TRAIN, choices=("none", "balanced"), **_CLASSES)
    anchor: str = _option("none", "What of the checkpoint is held on to: none, or gram for the similarities of its patch tokens (the Gram loss of DINOv3).", TRAIN, choices=("none", "gram"), **_CLASSES)
    anchor_weight: float = _option(1.0, "Weight of the loss of --anchor beside that of the task.", TRAIN, range="(0, inf)", **_CLASSES)
    lora_rank: int | None = _option(None, "Rank of the adapters of --trainable lora. (default: 16)", TRAIN, range="[1, inf)")
    lora_targets: list[str] = _option([], "Layers that get an adapter, by the end of their name, such as mlp.fc1. Can be repeated. (default: those of the attention)", TRAIN)
    teacher: str | None = _option(None, "A model in timm with the same classes, to distil from.", TRAIN, **_CLASSES)
    distill_weight: float = _option(0.5, "Share of the teacher in the loss.", TRAIN, range="[0, 1]")
    distill_temperature: float = _option(1.0, "Temperature of the teacher's and the student's softmax.", TRAIN, range="(0, inf)")
    patience: int | None = _option(None, "Stop an arm after this many epochs without a better top-1 or mIoU.", TRAIN, FREE, range="[1, inf)")
    limit_batches: int | None = _option(None, "Use at most this many batches in an epoch, of the train and of the val images.", TRAIN, range="[1, inf)")
    device: str | None = _option(None, "Where to compute, such as cpu, cuda or mps. (default: cuda, then mps, if there is one)", RUN, FREE)
    gpus: str | None = _option(None, "Number of processes to start on this machine, one per GPU, or all.", SPEED, FREE)
    fsdp: bool = _option(False, "Shard the model and the optimizer over the processes.", SPEED, FREE, **_CLASSES)
    accumulate: int = _option(1, "Split each step into this many forward and backward passes, to save memory.", SPEED, FREE, range="[1, inf)")
    grad_checkpointing: bool = _option(False, "Compute activations again in the backward pass instead of keeping them, to save memory.", SPEED, FREE)
    compile: bool = _option(False, "Compile the training step with torch.compile.", SPEED, FREE)
    channels_last: bool = _option(False, "Keep images in the channels-last memory format.", SPEED, FREE)
    amp: bool | None = _option(None, "Compute in mixed precision. (default: where CUDA has bfloat16)", SPEED, SAME, "--amp/--no-amp")
    amp_dtype: str = _option("bfloat16", "Number format of mixed precision: bfloat16 or float16.", SPEED, choices=("bfloat16", "float16"))
    tf32: bool = _option(True, "Multiply float32 matrices in TensorFloat-32, where the GPU can.", SPEED)
    resume: str | None = _option(None, "Go on with the run in this folder. With auto: go on with --output if it is a run, else start it.", LONG, ONCE)
    allow_changes: bool = _option(False, "Resume although settings or data are not those of the run.", LONG, ONCE)
    save_every_steps: int | None = _option(None, "Save a checkpoint after every so many steps, not only after each epoch.", LONG, FREE, range="[1, inf)")
    time_limit: float | None = _option(None, "Hours after which the run saves and stops, so that it can be resumed.", LONG, ONCE, range="(0, inf)")
    dry_run: bool = _option(False, "Measure a few steps and print the plan: time, memory, disk, files. Nothing is written.", RUN, ONCE)
    log: list[str] = _option([], "Also log to tensorboard, wandb or trackio; metrics.jsonl and metrics.csv are always written. Can be repeated.", RUN, FREE)
    seed: int = _option(0, "Seed of the order of images, augmentation, dropout and a new head.", RUN, range="[0, 4294967295]")
    seeds: int = _option(1, "Number of runs, with seeds from --seed on, which are compared in pairs.", RUN, range="[1, inf)")
    output: str | None = _option(None, "Folder for the run. Nothing that exists is overwritten. (default: runs/TIME-MODEL)", RUN, ONCE)
    push_to_hub: str | None = _option(None, "Push the model to this repository, OWNER/NAME, when the run is done. Rights are checked before it starts.", HUB, ONCE)
    private: bool = _option(False, "If the repository has to be made, make it private.", HUB, ONCE)
    revision: str | None = _option(None, "Branch to push to, which is made if it is missing. (default: main)", HUB, ONCE)
    create_pr: bool = _option(False, "Open a pull request instead of pushing to the branch.", HUB, ONCE)
    quiet: bool = _option(False, "Print the result alone.", RUN, ONCE, "--quiet", "-q")
    json: bool = _option(False, "Print the result as one JSON document on stdout.", RUN, ONCE)
    # fmt: on
    given: frozenset[str] = frozenset()  # the fields that were given, on the command line, as a variable or in a file

    @property
    def val_fraction(self) -> float | None:
        """The part of the images that --val-split asks to hold out; None if it is a name."""
        try:
            return float(self.val_split)
        except ValueError:
            return None

    @property
    def lr_warmup(self) -> int:
        """Epochs over which the learning rate rises: --warmup-epochs, cut to a fifth of all."""
        return min(self.warmup_epochs, self.epochs // 5)

    @property
    def method_options(self) -> dict[str, Any]:
        """Options of methods that were given: --set, and the two that have a name of their own."""
        own = {"fidelity": self.fidelity, "learnable_fidelity": self.learnable_fidelity}
        return {**self.set, **{name: value for name, value in own.items() if value is not None}}


# what `evaluate` takes of them, as a command and from Python; `compare` takes those that are not for masks
OF_EVALUATE = (
    "task", "arch", "weights", "model_kwargs", "data", "data_dir", "val_split", "num_classes", "ignore_label", "reduce_zero_label", "window_stride",
    "multi_scale", "batch_size", "limit_batches", "workers", "device", "amp",
)  # fmt: skip
# what args.yaml holds beside the options
FACTS = ("data_config", "class_names", "data_fingerprint", "epochs_before", "versions", "resumed")
PLACES = ("checkpoint", "data", "data_dir")  # options that may name a file or folder

OPTIONS: dict[str, Option] = {item.name: item.metadata["option"] for item in fields(Config) if item.metadata}

# task -> name -> base_lr, the learning rate for 512 images, which scales linearly with the batch; strengths, which methods
# start from instead of the papers'; and values that replace Config's defaults
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "classification": {
        "finetune": dict(base_lr=5e-4, strengths={"fidelity": FINETUNE_FIDELITY}),
        # DeiT's own recipe (facebookresearch/deit main.py), for a third of its 300 epochs: the paper's Adaptation
        "deit": dict(
            base_lr=5e-4, epochs=100, batch_size=1024, min_lr=1e-5, warmup_epochs=5, layer_decay=1.0, mixup=0.8,
            cutmix=1.0, random_erasing=0.25, auto_augment="rand-m9-mstd0.5-inc1", crop_scale=0.08, clip_grad=0.0,
            repeated_aug=3, ema_decay=0.99996,
        ),
        # the embedded digits, a third of the checkpoint's epochs: a mirrored or heavily cropped digit is another one; no
        # paths are dropped, since what bernoulli_ draws from a seed depends on torch's version
        "digits": dict(
            base_lr=1e-3, epochs=16, batch_size=100, warmup_epochs=2, layer_decay=1.0, drop_path=0.0,
            color_jitter=0.0, hflip=0.0, crop_scale=0.8,
        ),
    },
    "segmentation": {
        "finetune": dict(base_lr=3.2e-3, batch_size=16, label_smoothing=0.0, color_jitter=0.5),
        # NeuTRENO's own for ADE20K (segmenter/run.sh, after Strudel et al. 2021): lr 1e-3 for 8 images of 512 pixels
        "segmenter": dict(
            base_lr=0.064, epochs=64, batch_size=8, img_size=512, opt="sgd", sched="poly", min_lr=1e-5,
            weight_decay=0.0, warmup_epochs=0, layer_decay=1.0, label_smoothing=0.0, color_jitter=0.5, clip_grad=0.0,
        ),
        # the embedded digits in lines, 32 pixels high: crops and windows have the checkpoint's own size
        "digits": dict(
            base_lr=3.2e-2, epochs=24, batch_size=16, warmup_epochs=3, layer_decay=1.0, drop_path=0.0,
            decoder_dropout=0.0, label_smoothing=0.0, color_jitter=0.0, hflip=0.0, scale_min=1.0, scale_max=1.0,
        ),
    },
}  # fmt: skip


def from_given(values: Mapping[str, Any]) -> Config:
    """The config of the options that were given: a recipe's values, or the defaults, stand for the others.

    Raises:
        UsageError: If the recipe is unknown.
    """
    name = values.get("recipe") or ("digits" if values.get("data") in (None, "demo") else "finetune")
    known = recipe_values(name, values.get("task", "classification"))
    return located(Config(**{**known, **values, "recipe": name}, given=frozenset(values)))


def recipe_values(name: str, task: str) -> dict[str, Any]:
    """Every field that a task's recipe decides, with its value.

    Raises:
        UsageError: If there is no such task, or no such recipe for it.
    """
    if task not in RECIPES:
        raise UsageError(f"--task takes {', '.join(TASKS)}; got {task!r}.")
    if name not in RECIPES[task]:
        raise UsageError(f"unknown recipe {name!r}. Choose from: {', '.join(RECIPES[task])}.")
    return {
        item.name: RECIPES[task][name].get(item.name, item.default)
        for item in fields(Config)
        if item.name in OPTIONS and OPTIONS[item.name].recipe
    }


def resolve(config: Config) -> Config:
    """--lr found from the recipe and the batch, and the rank of adapters, if they were not given."""
    base_lr = RECIPES[config.task][config.recipe or "finetune"]["base_lr"]
    lr = config.lr if config.lr is not None else base_lr * config.batch_size / 512
    rank = config.lora_rank or (16 if config.trainable == "lora" else None)
    return replace(config, lr=lr, lora_rank=rank)


def recipe_strengths(config: Config) -> dict[str, float]:
    """Strengths that methods start from in the recipe instead of the papers'."""
    known: dict[str, float] = RECIPES[config.task][config.recipe or "finetune"].get("strengths", {})
    return known


def flag(name: str) -> str:
    """A field's option as one types it."""
    return f"--{name.replace('_', '-')}"


DEFAULTS = {item.name: getattr(Config(), item.name) for item in fields(Config) if item.metadata}

EXCLUSIVE = [
    ("fsdp", "compile", "sharded blocks are not compiled. Leave one out."),
    ("fsdp", "teacher", "the teacher would not be sharded. Leave one out."),
    ("fsdp", "anchor", "the frozen start model would not be sharded. Leave one out."),
    ("fsdp", "ema_decay", "averaged weights would not be sharded: pass --ema-decay 0."),
]


def check(config: Config) -> None:
    """Refuse what can be refused before anything is loaded.

    Raises:
        UsageError: With the option's name and what it takes.
    """
    for name, option in OPTIONS.items():
        value = getattr(config, name)
        if option.range and value is not None and not _inside(value, option.range):
            raise UsageError(f"{flag(name)} must be a finite number in {option.range}, got {value}.")
        words = value if isinstance(value, list) else [value]
        if option.choices and value is not None and (wrong := [word for word in words if word not in option.choices]):
            raise UsageError(f"{flag(name)} takes {', '.join(option.choices)}; got {wrong[0]!r}.")
        if option.task not in ("", config.task) and value != DEFAULTS[name]:
            raise UsageError(f"{flag(name)} is for --task {option.task}, and this is {config.task}.")
    for name in ("fidelity", "learnable_fidelity"):
        if getattr(config, name) is not None and config.set.get(name, getattr(config, name)) != getattr(config, name):
            raise UsageError(f"{flag(name)} {getattr(config, name)} and --set {name}={config.set[name]}: give one.")
    if config.val_fraction is not None and not 0 < config.val_fraction < 1:
        raise UsageError(f"--val-split is a name or a number between 0 and 1, got {config.val_split}.")
    if config.trainable == "fidelity" and not config.learnable_fidelity:
        raise UsageError("--trainable fidelity needs --learnable-fidelity layer or head: else nothing is trained.")
    if config.trainable != "lora" and (unused := {"lora_rank", "lora_targets"} & config.given):
        raise UsageError(f"{flag(min(unused))} is for --trainable lora, which is missing.")
    if config.trainable == "lora" and config.task != "classification":
        raise UsageError("--trainable lora is for classification: a Segmenter has a decoder that is trained whole.")
    if config.trainable == "lora" and config.fsdp:
        raise UsageError("--fsdp and --trainable lora do not go together: adapters are for one GPU. Leave one out.")
    if config.trainable in ("fidelity", "strengths") and config.control:
        raise UsageError(f"--trainable {config.trainable} leaves the control nothing to train: pass --no-control too.")
    for name in (*PLACES, "output", "resume", "teacher"):
        if getattr(config, name) is not None:
            place(getattr(config, name))
    if config.scale_min > config.scale_max:
        raise UsageError(f"--scale-min {config.scale_min} is above --scale-max {config.scale_max}.")
    for one, other, why in EXCLUSIVE:
        if all(getattr(config, name) not in (None, False, 0, "none") for name in (one, other)):
            raise UsageError(f"{flag(one)} and {flag(other)} do not go together: {why}")
    if config.fsdp and config.amp_dtype == "float16":
        raise UsageError("--fsdp takes bfloat16: pass --amp-dtype bfloat16.")
    if config.seeds > 1 and config.push_to_hub:
        raise UsageError(
            "--seeds and --push-to-hub do not go together: push the run that you choose with neutreno push."
        )
    if not config.push_to_hub and (config.private or config.revision or config.create_pr):
        raise UsageError("--private, --revision and --create-pr are for --push-to-hub OWNER/NAME, which is missing.")


def _inside(value: float, interval: str) -> bool:
    """Whether a finite number lies in an interval such as "[0, 1)"."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value > low or (interval[0] == "[" and value == low)
    return above and (value < high or (interval[-1] == "]" and value == high))


def changes(config: Config, own: Config) -> dict[str, tuple[Any, Any]]:
    """The options given now that must stay as they were and do not: by name, the run's value and the one given."""
    pairs = {name: (getattr(own, name), getattr(config, name)) for name in OPTIONS if name in config.given}
    return {name: pair for name, pair in pairs.items() if OPTIONS[name].resume == SAME and pair[0] != pair[1]}


def resumed(config: Config, own: Config) -> Config:
    """The run's own config with what was given now put in; what holds for one start only is as it is now."""
    now = {name for name, option in OPTIONS.items() if name in config.given or option.resume == ONCE}
    changed = changes(config, own)
    values = {**recipe_values(config.recipe or "", own.task), "lr": None} if "recipe" in changed else {}
    return replace(own, **{**values, **{name: getattr(config, name) for name in now}}, given=config.given)


def to_yaml(config: Config) -> dict[str, Any]:
    """The config for args.yaml: every option but those that hold for one start only."""
    values = asdict(config)
    return {name: values[name] for name, option in OPTIONS.items() if option.resume != ONCE}


def from_yaml(values: Mapping[str, Any], path: object = "args.yaml") -> Config:
    """The config that args.yaml records.

    Raises:
        UsageError: As `recorded`.
    """
    return located(Config(**recorded(values, path)))


def recorded(values: Mapping[str, Any], path: object) -> dict[str, Any]:
    """The options that the args.yaml of a run holds.

    Raises:
        UsageError: If a key is neither an option nor one of FACTS, or holds for one start only: nothing that a person
            has written into the file is passed over without a word.
    """
    for key, value in values.items():
        if key not in OPTIONS and key not in FACTS:
            raise UsageError(f"{path}: unknown key {key!r}.{suggestion(key, OPTIONS)}")
        if key in OPTIONS and OPTIONS[key].resume == ONCE and value not in (None, False):
            raise UsageError(
                f"{path}: {key} holds for one start, not for a run: remove the line, and give {flag(key)}."
            )
    return {key: values[key] for key in OPTIONS if key in values and OPTIONS[key].resume != ONCE}


def suggestion(key: str, known: Iterable[str]) -> str:
    """What to write in place of an unknown key."""
    near = difflib.get_close_matches(key, list(known), n=3)
    return f" Did you mean: {', '.join(near)}?" if near else " Its keys are the options of neutreno-adapt --help."


def place(text: str | Path) -> Path:
    """The file or folder that an option names, ~ replaced, whether it is there or not.

    Raises:
        UsageError: If there can be none: too long a name, a zero byte, the home of somebody unknown.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
        if "\0" in str(path):
            raise ValueError("there is a zero byte in it")
    except (OSError, RuntimeError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise UsageError(f"{str(text)[:80]!r} cannot be a file or folder: {cause}.") from error
    return path


def located(config: Config) -> Config:
    """With absolute paths, where an option names what is on this machine: args.yaml is read from other folders too."""
    values: dict[str, Any] = {name: getattr(config, name) for name in PLACES}
    found = {name: place(value) for name, value in values.items() if value not in (None, "demo")}
    there: dict[str, Any] = {name: str(path.absolute()) for name, path in found.items() if path.exists()}
    return replace(config, **there)


def default(item: Field) -> Any:
    """The default of a field, made anew if it is a list or a mapping."""
    return item.default if item.default_factory is MISSING else item.default_factory()
