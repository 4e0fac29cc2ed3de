"""Every option of `neutreno-adapt`, once: its default, help, panel, range, and what resuming a run does with it.

commands/options.py makes the command line from this table; args.yaml is this table of a run, with its values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

from .errors import UsageError

DATA, MODEL, METHOD, TRAIN, RUN, HUB = "Data", "Checkpoint", "Method", "Training", "Run", "Hugging Face Hub"
SPEED, LONG = "Many GPUs, memory and speed", "Long runs"

# What resuming does with an option. SAME: another value than the run's is refused, since it would change its figures.
# FREE: obeyed, and kept by the run. ONCE: holds for one start of the command; neither --resume nor --config repeats it.
SAME, FREE, ONCE = "same", "free", "once"


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
    """

    help: str
    panel: str
    resume: str = SAME
    recipe: bool = False
    range: str | None = None
    choices: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    parse: Callable[[Any], Any] | None = None


def _option(default: Any, help: str, panel: str, resume: str = SAME, *flags: str, **more: Any) -> Any:
    metadata = {"option": Option(help, panel, resume, flags=flags, **more)}
    made: dict[str, Any] = {"default_factory": type(default)} if isinstance(default, list | dict) else {}
    return field(**(made or {"default": default}), metadata=metadata)


def _recipe(default: Any, help: str, range: str | None = None, *flags: str) -> Any:
    return _option(default, help, TRAIN, SAME, *flags, recipe=True, range=range)


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
        except yaml.YAMLError:
            sign = ""
        if not sign or not key.isidentifier():
            raise UsageError(f"--model-kwargs and --set take key=value, such as embed_dim=64, got {pair!r}.")
    return parsed


@dataclass(frozen=True)
class Config:
    """What one run is asked to do. None means: found out from the checkpoint, the data or the machine."""

    # fmt: off
    checkpoint: str = _option("demo", "demo, a timm name (deit_tiny), hf-hub:..., local-dir:..., a folder, or a file of weights.", MODEL)
    arch: str | None = _option(None, "timm name of a file's architecture, if the file does not say.", MODEL)
    weights: str | None = _option(None, "raw or ema, of a file that has both. (default: ema, where there is one)", MODEL, choices=("raw", "ema"))
    model_kwargs: dict[str, Any] = _option({}, "key=value for the model's constructor; repeat.", MODEL, parse=parse_pairs)
    img_size: int | None = _option(None, "Another input size; the position embedding is resampled.", MODEL, range="[1, inf)")
    data: str | None = _option(None, "Folder with train/ and val/, folder of class folders, or torch/..., hfds/... (default: the embedded digits)", DATA)
    data_dir: str | None = _option(None, "Where a torch/ or hfds/ source keeps its files.", DATA, FREE)
    train_split: str = _option("train", "Name of the train split of such a source.", DATA)
    val_split: str = _option("validation", "Name of its val split; or, for a folder without one, the part held out (0.1).", DATA)
    split_seed: int | None = _option(None, "Seed that chooses the images held out of such a folder. (default: --seed)", DATA)
    num_classes: int | None = _option(None, "Number of classes, for a source that does not say.", DATA, range="[1, inf)")
    skip_bad_images: bool = _option(False, "Pass over unreadable images, and count them.", DATA, FREE)
    workers: int | None = _option(None, "Data loader processes. (default: one per core but one, at most 8)", DATA, FREE, range="[0, inf)")
    method: list[str] = _option([], "attnscale, gfsa, twicing, laplacian, xsa, neutreno, value_residual, kernel, symmetric or featscale; + joins several in one model; repeat for several models. (default: neutreno, or the checkpoint's own)", METHOD)
    set: dict[str, Any] = _option({}, "Strength of a method, or how it is learned: fidelity=0.4, learnable_fidelity=head; repeat.", METHOD, parse=parse_pairs)
    fidelity: float | None = _option(None, "Weight of NeuTRENO's term, as --set fidelity. (default: 0.6, or the checkpoint's own)", METHOD, range="(-inf, inf)")
    learnable_fidelity: str | None = _option(None, "layer or head: learn it, starting at --fidelity.", METHOD, choices=("layer", "head"))
    fidelity_warmup: float = _option(0.0, "Epochs over which the fidelity rises from 0.", METHOD, range="[0, inf)")
    control: bool = _option(True, "Also fine-tune the same checkpoint without a method.", TRAIN)
    recipe: str | None = _option(None, "finetune, deit or digits. The options below change it.", TRAIN)
    epochs: int = _recipe(30, "Passes over the train images. (default: the recipe's)", "[1, inf)")
    batch_size: int = _recipe(64, "Images per step, over all processes and accumulation steps.", "[1, inf)")
    lr: float | None = _option(None, "Peak learning rate. (default: the recipe's, scaled to the batch)", TRAIN, range="[0, inf)")
    min_lr: float = _recipe(1e-6, "Learning rate at the end.", "[0, inf)")
    weight_decay: float = _recipe(0.05, "AdamW's; biases, norms and strengths of methods have none.", "[0, inf)")
    warmup_epochs: int = _recipe(3, "Epochs over which the learning rate rises; at most a fifth of all.", "[0, inf)")
    layer_decay: float = _recipe(0.9, "Learning rate of a block, as a factor of the next block's.", "[0, inf)")
    drop_path: float = _recipe(0.1, "Stochastic depth rate of the last block.", "[0, inf)")
    label_smoothing: float = _recipe(0.1, "Share of the target that goes to all classes alike.", "[0, inf)", "--label-smoothing", "--smoothing")
    mixup: float = _recipe(0.0, "Mixup alpha; 0 for none.", "[0, inf)")
    cutmix: float = _recipe(0.0, "CutMix alpha; 0 for none.", "[0, inf)")
    random_erasing: float = _recipe(0.0, "Probability of erasing a rectangle.", "[0, inf)")
    auto_augment: str = _recipe("", "timm's policy string, such as rand-m9-mstd0.5-inc1.")
    color_jitter: float = _recipe(0.4, "Strength of colour jitter.", "[0, inf)")
    hflip: float = _recipe(0.5, "Probability of mirroring an image.", "[0, inf)")
    crop_scale: float = _recipe(0.35, "Smallest part of an image that a random crop keeps.", "[0, inf)")
    clip_grad: float = _recipe(1.0, "Largest gradient norm; 0 for any.", "[0, inf)")
    repeated_aug: int = _recipe(1, "Augmentations of an image per epoch, of so many fewer images.", "[1, inf)")
    ema_decay: float = _recipe(0.0, "Average the weights, and evaluate them beside the raw ones; 0 for none.", "[0, 1)")
    trainable: str = _option("all", "What is trained: all, attention, strengths (of methods), fidelity or head. The first two include the head.", TRAIN, SAME, "--trainable", "--train", choices=("all", "attention", "strengths", "fidelity", "head"))
    freeze_blocks: int = _option(0, "Leave the patch embedding and the first so many blocks as they are.", TRAIN, range="[0, inf)")
    class_weights: str = _option("none", "balanced: a class of few train images counts as much as one of many.", TRAIN, choices=("none", "balanced"))
    anchor: str = _option("none", "gram: keep the similarities of patch tokens that the checkpoint has (DINOv3's Gram loss).", TRAIN, choices=("none", "gram"))
    anchor_weight: float = _option(1.0, "Weight of that loss beside the task's.", TRAIN, range="(0, inf)")
    teacher: str | None = _option(None, "Distil from a timm model with the same classes.", TRAIN)
    distill_weight: float = _option(0.5, "Share of the teacher in the loss.", TRAIN, range="[0, 1]")
    distill_temperature: float = _option(1.0, "Temperature of both softmaxes in that share.", TRAIN, range="(0, inf)")
    patience: int | None = _option(None, "Stop after so many epochs without a better top-1.", TRAIN, FREE, range="[1, inf)")
    limit_batches: int | None = _option(None, "At most so many batches per epoch, of train and of val.", TRAIN, range="[1, inf)")
    device: str | None = _option(None, "cpu, cuda, ... (default: cuda if there is one)", RUN, FREE)
    gpus: str | None = _option(None, "Processes to start on this machine, one per GPU: a number, or all.", SPEED, FREE)
    fsdp: bool = _option(False, "Shard model and optimizer over the processes.", SPEED, FREE)
    accumulate: int = _option(1, "Split a step into so many forward and backward passes.", SPEED, FREE, range="[1, inf)")
    grad_checkpointing: bool = _option(False, "Recompute activations instead of keeping them.", SPEED, FREE)
    compile: bool = _option(False, "torch.compile the training step's model.", SPEED, FREE)
    channels_last: bool = _option(False, "Memory format of the images.", SPEED, FREE)
    amp: bool | None = _option(None, "Mixed precision. (default: where CUDA has bfloat16)", SPEED, SAME, "--amp/--no-amp")
    amp_dtype: str = _option("bfloat16", "bfloat16 or float16, of mixed precision.", SPEED, choices=("bfloat16", "float16"))
    tf32: bool = _option(True, "TensorFloat-32 in float32 products.", SPEED)
    resume: str | None = _option(None, "Go on with this run; auto: with --output if it is a run, else start it.", LONG, ONCE)
    allow_changes: bool = _option(False, "Resume although settings or data differ.", LONG, ONCE)
    save_every_steps: int | None = _option(None, "Save inside epochs too.", LONG, FREE, range="[1, inf)")
    time_limit: float | None = _option(None, "Hours after which the run saves and stops, to be resumed.", LONG, ONCE, range="(0, inf)")
    dry_run: bool = _option(False, "Print the plan, from a few measured steps; write nothing.", RUN, ONCE)
    log: list[str] = _option([], "tensorboard, wandb or trackio, beside metrics.jsonl and metrics.csv; repeat.", RUN, FREE)
    seed: int = _option(0, "Seed of data order, augmentation, dropout and a new head.", RUN)
    seeds: int = _option(1, "Run so many seeds, from --seed on, and compare in pairs.", RUN, range="[1, inf)")
    output: str | None = _option(None, "Folder of the run, never overwritten. (default: runs/<time>-<model>)", RUN, ONCE)
    push_to_hub: str | None = _option(None, "OWNER/NAME of a repository to push the model to; checked before training.", HUB, ONCE)
    private: bool = _option(False, "Make the repository private, if it is made.", HUB, ONCE)
    revision: str | None = _option(None, "Branch to push to; made if missing. (default: main)", HUB, ONCE)
    create_pr: bool = _option(False, "Open a pull request instead.", HUB, ONCE)
    quiet: bool = _option(False, "Only the result.", RUN, ONCE, "--quiet", "-q")
    json: bool = _option(False, "The result as one JSON document on stdout.", RUN, ONCE)
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


OPTIONS: dict[str, Option] = {item.name: item.metadata["option"] for item in fields(Config) if item.metadata}

# base_lr is the learning rate for 512 images, and scales linearly with the batch; other values replace Config's defaults
RECIPES: dict[str, dict[str, Any]] = {
    "finetune": {"base_lr": 5e-4},
    # DeiT's own recipe (facebookresearch/deit main.py), for a third of its 300 epochs: the paper's NeuTRENO Adaptation
    "deit": dict(
        base_lr=5e-4, epochs=100, batch_size=1024, min_lr=1e-5, warmup_epochs=5, layer_decay=1.0, mixup=0.8, cutmix=1.0,
        random_erasing=0.25, auto_augment="rand-m9-mstd0.5-inc1", crop_scale=0.08, clip_grad=0.0, repeated_aug=3,
        ema_decay=0.99996,
    ),
    # the embedded digits, for a third of the checkpoint's epochs: a mirrored or heavily cropped digit is another digit
    "digits": dict(
        base_lr=1e-3, epochs=16, batch_size=100, warmup_epochs=2, layer_decay=1.0, drop_path=0.05,
        color_jitter=0.0, hflip=0.0, crop_scale=0.8,
    ),
}  # fmt: skip


def from_given(values: Mapping[str, Any]) -> Config:
    """The config of the options that were given: a recipe's values, or the defaults, stand for the others.

    Raises:
        UsageError: If the recipe is unknown.
    """
    name = values.get("recipe") or ("digits" if values.get("data") in (None, "demo") else "finetune")
    return Config(**{**recipe_values(name), **values, "recipe": name}, given=frozenset(values))


def recipe_values(name: str) -> dict[str, Any]:
    """Every field that a recipe decides, with its value.

    Raises:
        UsageError: If there is no such recipe.
    """
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}. Choose from: {', '.join(RECIPES)}.")
    return {
        item.name: RECIPES[name].get(item.name, item.default)
        for item in fields(Config)
        if item.name in OPTIONS and OPTIONS[item.name].recipe
    }


def resolve(config: Config) -> Config:
    """--lr found from the recipe and the batch, if it was not given."""
    base_lr = RECIPES[config.recipe or "finetune"]["base_lr"]
    lr = config.lr if config.lr is not None else base_lr * config.batch_size / 512
    return replace(config, lr=lr)


def flag(name: str) -> str:
    """A field's option as one types it."""
    return f"--{name.replace('_', '-')}"


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
        if option.choices and value is not None and value not in option.choices:
            raise UsageError(f"{flag(name)} takes {', '.join(option.choices)}; got {value!r}.")
    for name in ("fidelity", "learnable_fidelity"):
        if getattr(config, name) is not None and config.set.get(name, getattr(config, name)) != getattr(config, name):
            raise UsageError(f"{flag(name)} {getattr(config, name)} and --set {name}={config.set[name]}: give one.")
    if config.val_fraction is not None and not 0 < config.val_fraction < 1:
        raise UsageError(f"--val-split is a name or a number between 0 and 1, got {config.val_split}.")
    if config.trainable == "fidelity" and not config.learnable_fidelity:
        raise UsageError("--trainable fidelity needs --learnable-fidelity layer or head: else nothing is trained.")
    if config.trainable in ("fidelity", "strengths") and config.control:
        raise UsageError(f"--trainable {config.trainable} leaves the control nothing to train: pass --no-control too.")
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
    values = {**recipe_values(config.recipe or ""), "lr": None} if "recipe" in changed else {}
    return replace(own, **{**values, **{name: getattr(config, name) for name in now}}, given=config.given)


def to_yaml(config: Config) -> dict[str, Any]:
    """The config for args.yaml: every option."""
    values = asdict(config)
    return {name: values[name] for name in OPTIONS}


def from_yaml(values: Mapping[str, Any]) -> Config:
    """The config that args.yaml records; other keys are passed over."""
    return Config(**{name: values[name] for name in OPTIONS if name in values})


def default(item: Field) -> Any:
    """The default of a field, made anew if it is a list or a mapping."""
    return item.default if item.default_factory is MISSING else item.default_factory()
