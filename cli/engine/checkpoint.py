"""What `--checkpoint` names, and building NeuTRENO models from it."""

from __future__ import annotations

import argparse
import difflib
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg_value, split_model_name_tag
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path
from torch import Tensor, nn

import timm_neutreno
from timm_neutreno import demo
from timm_neutreno.names import METHOD_ARGUMENTS, PREFIX, base_name, neutreno_name
from timm_neutreno.neutreno_vit import ALIASES
from timm_neutreno.probing import FeatureError, check_image_size

from ..config import place
from ..errors import CheckpointError, HubError, UsageError
from ..runtime import records
from . import sizes
from . import weights as weight_files
from .load_errors import hub_errors, offline_if_silent, weight_errors
from .recorded import check_kinds, config_errors

FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")


@dataclass(frozen=True)
class Source:
    """A checkpoint, found but not loaded.

    Attributes:
        label: How to call it in print.
        arch: Its timm architecture, without the `neutreno_` prefix.
        pretrained_cfg: A tag, or a whole pretrained cfg; None for the architecture's default.
        overlay: Entries that replace those of the cfg, such as the file with the weights.
        model_args: Constructor arguments that the weights were made with.
        asked: Those of them that --model-kwargs gave.
        method: The method that they were trained with; None for a plain softmax model.
        options: Arguments of `patch` beside the method: strengths, how they are learned, layers.
        num_classes: Size of the checkpoint's head.
        weights: The tensors of a file, under the model's names; None if timm is to find them.
        learned: The strengths among them, which a plain model has no place for.
        notes: What a reader should know of them.
    """

    label: str
    arch: str
    pretrained_cfg: str | dict[str, Any] | None = None
    overlay: dict[str, Any] = field(default_factory=dict)
    model_args: dict[str, Any] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    num_classes: int = 1000
    weights: dict[str, Tensor] | None = field(default=None, repr=False)
    learned: dict[str, Tensor] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def label_names(self) -> list[str] | None:
        """Names of its classes by index, if its config tells."""
        names = self.pretrained_cfg.get("label_names") if isinstance(self.pretrained_cfg, dict) else None
        return [str(name) for name in names] if isinstance(names, list | tuple) else None

    @property
    def name(self) -> str:
        """Short and fit for a folder's name."""
        return "demo" if self.label == "demo" else self.arch


def resolve_checkpoint(
    checkpoint: str, arch: str | None = None, model_kwargs: dict[str, Any] | None = None, weights: str | None = None
) -> Source:
    """Find out what a checkpoint is.

    Args:
        checkpoint: "demo", a timm name (short, with or without tag), `hf-hub:...`, `local-dir:...`, a folder with
            config.json, or a file of weights.
        arch: The timm name of a file's architecture, where the file does not say it.
        model_kwargs: Constructor arguments beyond the name.
        weights: "raw" or "ema", of a file that has both.

    Raises:
        UsageError: If `weights` is given for what is not a file.
        CheckpointError: If it does not exist, cannot be read, or its architecture is unknown or not supported.
        HubError: If it is on the Hub and cannot be had.
    """
    kwargs = dict(model_kwargs or {})
    path = place(checkpoint)
    if weights and not path.is_file():
        raise UsageError(f"--weights {weights} chooses between the weights in one file, and {checkpoint} is no file.")
    if checkpoint == "demo":
        return _from_directory(Path(demo.__file__).parent, "demo", kwargs)
    if checkpoint.startswith("local-dir:"):
        return _from_directory(place(checkpoint.removeprefix("local-dir:")), checkpoint, kwargs)
    if checkpoint.startswith(("hf-hub:", "hf_hub:")):
        return _from_hub(checkpoint, kwargs)
    if path.is_dir():
        return _from_directory(path, checkpoint, kwargs)
    if path.is_file():
        return _from_file(path, arch, kwargs, weights)
    if "/" in checkpoint or checkpoint.endswith(FILE_ENDINGS):
        raise CheckpointError(f"no such file or folder: {checkpoint}. For a repository on the Hub: hf-hub:OWNER/NAME.")
    return _from_name(checkpoint, kwargs)


def _known(arch: str, where: str = "") -> str:
    """The timm name of an architecture that has a twin."""
    arch = base_name(arch)
    arch = ALIASES.get(arch, arch)
    if timm.is_model(neutreno_name(arch)):
        return arch
    if not timm.is_model(arch):
        names = [*timm_neutreno.supported_models(), *ALIASES]
        near = difflib.get_close_matches(arch, names, n=3) or ["deit_tiny", "vit_small_patch16_224"]
        raise CheckpointError(f"unknown model {arch!r}{where}. Did you mean: {', '.join(near)}?")
    with torch.device("meta"):
        refused = [layer for layer in timm_neutreno.check_support(timm.create_model(arch)) if not layer.supported]
    raise CheckpointError(
        f"cannot apply NeuTRENO to {arch}{where}: {_why(refused[0].reason) if refused else 'it has no twin'}. "
        "`neutreno models` lists the models that it can be applied to."
    )


def _why(reason: str) -> str:
    """A layer's reason in a sentence about the model."""
    kind, _, why = reason.partition(": ")
    subject = "it " if why.startswith(("has ", "attends ", "is ")) else ""
    return f"{subject}{why}{' (not supported yet)' if kind == 'not yet' else ''}"


def _from_name(name: str, kwargs: dict[str, Any]) -> Source:
    arch, tag = split_model_name_tag(name)
    arch = _known(arch)
    cfgs = {cfg.tag or "": cfg for cfg in get_arch_pretrained_cfgs(arch).values()}
    if tag and tag not in cfgs:
        raise CheckpointError(f"{arch} has no weights tagged {tag!r}. Tags: {', '.join(cfgs)}.")
    cfg = cfgs[tag] if tag else next(iter(cfgs.values()), None)
    if cfg is None or not cfg.has_weights:
        raise CheckpointError(f"{name} has no pretrained weights in timm. Give a file with weights and --arch {arch}.")
    return Source(name, arch, tag or None, model_args=kwargs, asked=tuple(kwargs), num_classes=cfg.num_classes)


def _from_config(
    label: str, cfg: dict[str, Any], arch: str, args: dict[str, Any] | None, kwargs: dict[str, Any]
) -> Source:
    args = args or {}
    check_kinds({**cfg, **args, "architecture": arch})
    method = args.get("method", "neutreno") if arch.startswith(PREFIX) else None
    options = {key: args[key] for key in METHOD_ARGUMENTS if key in args and key != "method"}
    plain = {key: value for key, value in args.items() if key not in METHOD_ARGUMENTS}
    arch = _known(arch, f" (in the config.json of {label})")
    return Source(
        label, arch, cfg, model_args={**plain, **kwargs}, asked=tuple(kwargs), method=method, options=options,
        num_classes=cfg.get("num_classes", 1000),
    )  # fmt: skip


def seeds_refused(directory: Path) -> None:
    """Refuse the folder of a run of several seeds, where one model is wanted.

    Raises:
        CheckpointError: With the seeds that are there.
    """
    seeds = sorted(path.parent.name for path in directory.glob("seed-*/config.json"))
    if seeds:
        raise CheckpointError(
            f"{directory} holds one model for each seed: {', '.join(seeds)}. Name one of them: {directory / seeds[0]}."
        )


def _from_directory(directory: Path, label: str, kwargs: dict[str, Any]) -> Source:
    if not (directory / "config.json").is_file():
        seeds_refused(directory)
        raise CheckpointError(
            f"{directory} has no config.json, so it is not a saved model. Give the file with the weights and --arch."
        )
    with config_errors(str(directory / "config.json")):
        cfg, arch, args = load_model_config_from_path(str(directory))
        return _from_config(label, cfg, arch, args, kwargs)


def _from_hub(checkpoint: str, kwargs: dict[str, Any]) -> Source:
    name = checkpoint.partition(":")[2]
    if not name:
        raise CheckpointError(f"{checkpoint} names no repository: give hf-hub:OWNER/NAME.")
    with hub_errors(checkpoint), offline_if_silent(), config_errors(f"what the Hub gives as {name}", HubError):
        cfg, arch, args = load_model_config_from_hf(name)
    with config_errors(f"the config.json of {checkpoint}"):
        return _from_config(checkpoint, cfg, arch, args, kwargs)


def _from_file(path: Path, arch: str | None, kwargs: dict[str, Any], which: str | None) -> Source:
    """A file of weights: what it is comes from --arch, from a config.json beside it, or from timm's CheckpointSaver."""
    config = path.parent / "config.json"
    saved = weight_files.read(path)
    tensors, notes = weight_files.choose(saved, path, which)
    if not arch and config.is_file() and "architecture" in records.read_json(config, {}):
        source = _from_directory(path.parent, str(path), kwargs)
        overlay: dict[str, Any] = {"source": "", "file": str(path)}
    else:
        recorded_arch, args, preprocessing = _recorded_arguments(saved)
        arch = arch or recorded_arch
        if not arch:
            raise CheckpointError(
                f"{path} does not say which model its weights are for: say it with --arch, timm's name."
            )
        arch = _known(arch, f" (for {path})")
        args = {**args, **kwargs}
        overlay = {"file": str(path), **preprocessing}
        if img_size := args.get("img_size"):
            overlay["input_size"] = (3, img_size, img_size) if isinstance(img_size, int) else (3, *img_size)
        source = Source(str(path), arch, model_args=args, asked=tuple(kwargs))
    named, more = weight_files.without_prefix(tensors, source.arch, str(path), which)
    learned = {key: named.pop(key) for key in list(named) if weight_files.is_strength(key)}
    if learned:
        some = weight_files.some(list(learned))
        more.append(f"learned strengths are used if the model learns them, else left out ({some})")
    if not source.pretrained_cfg:
        head = _head_size(named, source.arch) or 0
        overlay, source = {**overlay, "num_classes": head}, replace(source, num_classes=head)
    return replace(source, overlay=overlay, weights=named, learned=learned, notes=(*notes, *more))


def origin(source: Source) -> dict[str, str | None]:
    """The repository of the base model on the Hub, and its licence; None where we cannot know."""
    if "file" in source.overlay:
        return {"base_model": None, "license": None}
    if isinstance(source.pretrained_cfg, dict):
        on_hub = source.label.startswith(("hf-hub:", "hf_hub:"))
        base = source.label.partition(":")[2].partition("@")[0] if on_hub else None
        return {"base_model": base, "license": source.pretrained_cfg.get("license")}
    tag = source.pretrained_cfg
    name = f"{source.arch}.{tag}" if tag else source.arch
    return {
        key: get_pretrained_cfg_value(name, item) for key, item in (("base_model", "hf_hub_id"), ("license", "license"))
    }


def _recorded_arguments(saved: Any) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
    """What timm's CheckpointSaver wrote beside the weights: arch, constructor arguments, preprocessing."""
    if not isinstance(saved.get("arch"), str):
        return None, {}, {}
    args = vars(saved["args"]) if isinstance(saved.get("args"), argparse.Namespace) else {}
    with config_errors("the arguments that the file records"):
        check_kinds({key: value for key, value in args.items() if value})
        model_args = dict(args.get("model_kwargs") or {})
    if args.get("img_size"):
        model_args.setdefault("img_size", args["img_size"])
    preprocessing = {key: args[key] for key in ("mean", "std", "interpolation", "crop_pct") if args.get(key)}
    return saved["arch"], model_args, preprocessing


def _head_size(weights: dict[str, Tensor], arch: str) -> int | None:
    classifier = get_pretrained_cfg_value(arch, "classifier") or "head"
    for name in [classifier] if isinstance(classifier, str) else classifier:
        if f"{name}.weight" in weights:
            return weights[f"{name}.weight"].shape[0]
    return None


def build(
    source: Source,
    *,
    num_classes: int | None = None,
    img_size: int | None = None,
    drop_path: float | None = None,
    pretrained: bool = True,
    **more: Any,
) -> nn.Module:
    """A checkpoint as it came: timm's own model, or the patched one that it was saved from, with its weights.

    Args:
        source: What `resolve_checkpoint` gave.
        num_classes: Size of the head; another one than the checkpoint's is initialised anew. None: as it is.
        img_size: Another than the checkpoint's resamples the position embedding.
        drop_path: Stochastic depth rate of the last block.
        pretrained: Load the weights.
        **more: Further arguments of its constructor.

    Raises:
        CheckpointError: If the weights do not fit the architecture, or cannot be read.
        UsageError: If the input size is no multiple of the patch's: timm would cut off the rest of every image.
        HubError: If they are on the Hub and cannot be had.
    """
    given = {"num_classes": num_classes, "img_size": img_size, "drop_path_rate": drop_path}
    plain = {**source.model_args, **more, **{key: value for key, value in given.items() if value is not None}}
    kwargs = {**plain, "method": source.method, **source.options} if source.method else plain
    overlay = source.overlay
    if pretrained and source.weights is not None:  # timm would choose of several by itself, and know fewer prefixes
        overlay = {**overlay, "source": "", "file": None, "state_dict": dict(source.weights)}
    cfg = source.pretrained_cfg if isinstance(source.pretrained_cfg, dict) else {"source": "hf-hub"}
    on_hub = source.weights is None and cfg.get("source") == "hf-hub"
    with (
        weight_errors(source.label, source.arch, source.asked),
        hub_errors(source.label),
        offline_if_silent() if pretrained and on_hub else nullcontext(),
        weight_files.compared(source.label, source.arch),
    ):
        if pretrained or not on_hub:
            sizes.compare(source, plain, source.overlay)
        model = timm.create_model(
            neutreno_name(source.arch) if source.method else source.arch,
            pretrained=pretrained,
            pretrained_cfg=source.pretrained_cfg,
            pretrained_cfg_overlay=overlay or None,
            pretrained_model_args=source.model_args,
            **kwargs,
        )
        if pretrained and source.learned and any(map(weight_files.is_strength, model.state_dict())):
            weight_files.load_strengths(model, source.learned)
    if "state_dict" in overlay:
        weight_files.forget(model)
    if size := kwargs.get("img_size"):
        try:
            check_image_size(model, *(size if isinstance(size, tuple | list) else (size, size)))
        except FeatureError as error:
            raise UsageError(f"--img-size: {error}") from error
    return model
