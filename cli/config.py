"""The settings of `neutreno adapt`. Defaults live here and nowhere else; the command line and args.yaml read them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """How to train. Every value can be set on the command line.

    `lr` is for a batch of 512 images and scales linearly with the batch; --lr sets the final value instead.
    """

    epochs: int = 30
    batch_size: int = 64
    lr: float = 5e-4
    min_lr: float = 1e-6
    weight_decay: float = 0.05
    warmup_epochs: int = 3
    layer_decay: float = 0.9
    drop_path: float = 0.1
    smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    random_erasing: float = 0.0
    auto_augment: str = ""
    color_jitter: float = 0.4
    hflip: float = 0.5
    crop_scale: float = 0.35  # smallest part of an image that a random crop keeps
    clip_grad: float = 1.0
    repeated_aug: int = 1  # augmentations of an image per epoch, of so many fewer images
    ema_decay: float = 0.0  # of averaged weights, evaluated beside the raw ones; 0 for none


RECIPES = {
    "finetune": Recipe(),
    # DeiT's own recipe (facebookresearch/deit main.py), for a third of its 300 epochs: the paper's NeuTRENO Adaptation
    "deit": Recipe(
        epochs=100, batch_size=1024, min_lr=1e-5, warmup_epochs=5, layer_decay=1.0, mixup=0.8, cutmix=1.0,
        random_erasing=0.25, auto_augment="rand-m9-mstd0.5-inc1", crop_scale=0.08, clip_grad=0.0, repeated_aug=3,
        ema_decay=0.99996,
    ),
    # the embedded digits, for a third of the checkpoint's epochs: a mirrored or heavily cropped digit is another digit
    "digits": Recipe(
        epochs=16, batch_size=100, lr=1e-3, warmup_epochs=2, layer_decay=1.0, drop_path=0.05,
        color_jitter=0.0, hflip=0.0, crop_scale=0.8,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class AdaptConfig:
    """What one run is asked to do. None means: not given, found out from the checkpoint, the data or the recipe."""

    checkpoint: str = "demo"
    arch: str | None = None
    weights: str | None = None  # of a file that has several
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    data_dir: str | None = None
    train_split: str = "train"
    val_split: str = "validation"
    val_fraction: float = 0.1
    num_classes: int | None = None
    skip_bad_images: bool = False
    fidelity: float | None = None
    learnable_fidelity: str | None = None
    fidelity_warmup: float = 0.0
    control: bool = True
    recipe: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # values of the recipe that were given
    lr: float | None = None
    img_size: int | None = None
    limit_batches: int | None = None
    workers: int | None = None
    device: str | None = None
    amp: bool | None = None
    amp_dtype: str = "bfloat16"
    compile: bool = False
    grad_checkpointing: bool = False
    accumulate: int = 1
    channels_last: bool = False
    tf32: bool = True
    gpus: str | None = None
    fsdp: bool = False
    train: str = "all"
    teacher: str | None = None
    distill_weight: float = 0.5
    distill_temperature: float = 1.0
    patience: int | None = None
    time_limit: float | None = None
    save_every_steps: int | None = None
    log: list[str] = field(default_factory=list)
    seed: int = 0
    seeds: int = 1
    split_seed: int | None = None  # of the images held out of a folder without val/; None: seed
    output: str | None = None
    resume: str | None = None
    allow_changes: bool = False
    dry_run: bool = False
    given: tuple[str, ...] = ()  # fields that the command line, the environment or --config has set, to whatever value
    push_to_hub: str | None = None
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    quiet: bool = False
    json: bool = False

    @property
    def seeds_given(self) -> bool:
        return self.seeds > 1


TRAINED = ("all", "attention", "fidelity", "head")
EXCLUSIVE = [
    ("fsdp", ("compile",), "sharded blocks are not compiled. Leave one out."),
    ("fsdp", ("teacher",), "the teacher would not be sharded. Leave one out."),
    ("seeds_given", ("push_to_hub",), "push the run that you choose afterwards, with neutreno push."),
]


def _option(name: str) -> str:
    return {"seeds_given": "seeds"}.get(name, name.replace("_", "-"))


def resolve_recipe(config: AdaptConfig) -> Recipe:
    """The named recipe (or the one that fits the data) with the given values put in.

    Raises:
        UsageError: If the name is unknown or a value makes no sense.
    """
    name = config.recipe or ("digits" if config.data in (None, "demo") else "finetune")
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}. Choose from: {', '.join(RECIPES)}.")
    recipe = replace(RECIPES[name], **config.settings)
    for item in fields(recipe):
        value = getattr(recipe, item.name)
        if isinstance(value, float) and (not math.isfinite(value) or value < 0):
            raise UsageError(f"--{item.name.replace('_', '-')} must be a finite number of at least 0, got {value}.")
    if recipe.epochs < 1 or recipe.batch_size < 1 or recipe.repeated_aug < 1:
        raise UsageError("--epochs, --batch-size and --repeated-aug must be at least 1.")
    if recipe.ema_decay >= 1:
        raise UsageError(f"--ema-decay must be below 1, such as 0.9999, got {recipe.ema_decay:g}.")
    return replace(recipe, warmup_epochs=min(recipe.warmup_epochs, recipe.epochs // 5))


def check_config(config: AdaptConfig) -> None:
    """Refuse what can be refused before anything is loaded.

    Raises:
        UsageError: With the option's name and what it takes.
    """
    if config.fidelity is not None and not math.isfinite(config.fidelity):
        raise UsageError(f"--fidelity must be a finite number such as 0.6, got {config.fidelity}.")
    if not 0 <= config.fidelity_warmup < math.inf:
        raise UsageError(f"--fidelity-warmup must be a number of epochs of at least 0, got {config.fidelity_warmup}.")
    if config.learnable_fidelity not in (None, "layer", "head"):
        raise UsageError(f"--learnable-fidelity takes layer or head, got {config.learnable_fidelity!r}.")
    if config.weights not in (None, "raw", "ema"):
        raise UsageError(f"--weights takes raw or ema, got {config.weights!r}.")
    if not 0 < config.val_fraction < 1:
        raise UsageError(f"--val-fraction must be between 0 and 1, got {config.val_fraction}.")
    if config.train not in TRAINED:
        raise UsageError(f"--train takes {', '.join(TRAINED)}; got {config.train!r}.")
    if config.train == "fidelity" and not config.learnable_fidelity:
        raise UsageError("--train fidelity needs --learnable-fidelity layer or head: else there is nothing to train.")
    if config.train == "fidelity" and config.control:
        raise UsageError("--train fidelity leaves the control nothing to train: pass --no-control too.")
    if config.amp_dtype not in ("bfloat16", "float16"):
        raise UsageError(f"--amp-dtype takes bfloat16 or float16, got {config.amp_dtype!r}.")
    if not 0 <= config.distill_weight <= 1 or not 0 < config.distill_temperature < math.inf:
        raise UsageError("--distill-weight must be between 0 and 1, and --distill-temperature above 0.")
    if config.time_limit is not None and not 0 < config.time_limit < math.inf:
        raise UsageError(f"--time-limit must be a number of hours above 0, got {config.time_limit}.")
    for one, others, why in EXCLUSIVE:
        for other in others:
            if getattr(config, one) and getattr(config, other):
                raise UsageError(f"--{_option(one)} and --{_option(other)} do not go together: {why}")
    if not config.push_to_hub and (config.private or config.revision or config.create_pr):
        raise UsageError("--private, --revision and --create-pr are for --push-to-hub OWNER/NAME, which is missing.")


def as_dict(config: AdaptConfig, recipe: Recipe) -> dict[str, Any]:
    """Everything that decides the run, for args.yaml."""
    values = asdict(config)
    for name in ("settings", "resume", "allow_changes", "dry_run", "given"):
        values.pop(name)
    return {**values, "recipe": {"name": values["recipe"], **asdict(recipe)}}
