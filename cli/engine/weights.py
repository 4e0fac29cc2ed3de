"""The weights in a file: which of several are taken, what is taken off their names, and whether those are the model's.

timm loads non-strictly as soon as the head does not fit, and then any file loads into any model. So names are compared
here, after timm's own filter: only the classifier and the strengths may be missing or left over.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor, nn

from timm_neutreno.methods import STRENGTHS

from ..errors import CheckpointError, one_line

# names of averaged and of raw weights in a training's checkpoint; DINO's teacher is an average of its student
AVERAGED, RAW = ("state_dict_ema", "model_ema"), ("state_dict", "model")
FAMILIES = ({"ema": AVERAGED, "raw": RAW}, {"ema": ("teacher",), "raw": ("student",)})
PREFIX = re.compile(r"((?:(?:_orig_mod|module|backbone|encoder|model|student|teacher)\.)*)blocks\.\d+\.")
HEAD = re.compile(r"(?:(?:_orig_mod|module|student|teacher)\.)*(?:\w*head\w*|fc|classifier|projector|predictor)\.")


def is_strength(key: str, strengths: Iterable[str] = STRENGTHS) -> bool:
    return key.rpartition(".")[2] in strengths


def read(path: Path) -> dict[str, Any]:
    """What a file holds: a state_dict, bare or in a training's checkpoint.

    Args:
        path: A .safetensors file, or one of torch.save.

    Raises:
        CheckpointError: If the file is not weights, or is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            saved: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every format has its own exceptions for a damaged file
        raise CheckpointError(
            f"cannot read the weights in {path}: {one_line(error)[:200]}. The file may be truncated or no checkpoint; "
            "compare its size with the original."
        ) from error
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path} holds a {type(saved).__name__}, no state_dict: expected tensors by name.")
    return saved


def choose(saved: dict[str, Any], path: Path, which: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """The state_dict of what was read, and which it is of several, in words.

    Args:
        saved: What `read` gave.
        path: The file, for messages.
        which: "raw" or "ema"; None for the averaged weights if there are some.

    Raises:
        CheckpointError: If there is none, or not the one that was asked for.
    """
    weights, notes = _choose(saved, path, which)
    named = isinstance(weights, dict) and all(isinstance(key, str) for key in weights)
    if not named or not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(
            f"{path} holds no state_dict: expected tensors by name, as torch.save or safetensors write."
        )
    return weights, notes


def _choose(there: dict[str, Any], path: Path, which: str | None) -> tuple[Any, list[str]]:
    """Of the state_dicts in a training's checkpoint the one asked for."""
    for family in FAMILIES:
        found = {kind: next((k for k in keys if isinstance(there.get(k), dict)), None) for kind, keys in family.items()}
        names = [name for name in found.values() if name]
        if not names:
            continue
        name = found[which] if which else names[0]
        if name is None:
            raise CheckpointError(f"{path} has no weights of the kind --weights {which}: it has {names[0]} only.")
        others = [f"{other} with --weights {kind}" for kind, other in found.items() if other not in (None, name)]
        if others:
            return there[name], [f"{name} is taken, of several in the file (or {', '.join(others)})"]
        return there[name], [] if name in RAW else [f"{name} is taken, the only ones in the file"]
    if which == "ema" and not any("teacher." in str(key) for key in there):
        raise CheckpointError(f"{path} has one state_dict and does not say that it is averaged: leave out --weights.")
    return there, []


def without_prefix(
    weights: dict[str, Tensor], arch: str, label: str, which: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights with names that begin as the model's do, and what was taken off, in words.

    Args:
        weights: As a file has them. A head beside the prefix, such as DINO's, is left out.
        arch: timm name of the model.
        label: The file, for messages.
        which: "raw" or "ema", where the prefixes are student. and teacher.; None for the teacher.

    Raises:
        CheckpointError: If they are those of several models.
    """
    prefixes = list(dict.fromkeys(match[1] for key in weights if (match := PREFIX.match(key))))
    own = _own_prefix(arch) if any(prefixes) else ""
    if not prefixes or own in prefixes or "" in prefixes:
        return clean_state_dict(weights), []  # the model's own names, or those of another project, which timm knows
    notes, prefix = [], prefixes[0]
    if len(prefixes) > 1:
        kinds = {"ema" if "teacher." in name else "raw" if "student." in name else name: name for name in prefixes}
        if kinds.keys() != {"ema", "raw"}:
            raise CheckpointError(f"{label} has the weights of several models ({', '.join(prefixes)}): save one alone.")
        prefix = kinds[which or "ema"]
        notes.append(f"{prefix} is taken, of {' and '.join(prefixes)} in the file (--weights raw or ema chooses)")
        other = next(name for name in prefixes if name != prefix).partition(".")[0]
        weights = {key: value for key, value in weights.items() if not key.startswith(f"{other}.")}
    taken_off = prefix.removesuffix(own)
    beside = [key for key in weights if not key.startswith(taken_off)]
    left_out = [key for key in beside if HEAD.match(key)]
    notes.append(f"the prefix {taken_off} is taken off their names")
    if left_out:
        notes.append(f"the head beside it is left out ({some(left_out)})")
    return {key.removeprefix(taken_off): value for key, value in weights.items() if key not in left_out}, notes


def _own_prefix(arch: str) -> str:
    """What stands before `blocks.` in the model's own names: mostly nothing."""
    with torch.device("meta"):
        names = timm.create_model(arch).state_dict()
    return next((match[1] for name in names if (match := PREFIX.match(name))), "")


def load_strengths(model: nn.Module, learned: dict[str, Tensor]) -> None:
    """Put learned strengths into a model that learns some.

    Raises:
        RuntimeError: If it has others, or they have another size.
    """
    if missing := [key for key in model.state_dict() if is_strength(key) and key not in learned]:
        raise RuntimeError(f"the weights have no learned {some(missing)}: learn what they have learned.")
    model.load_state_dict(learned, strict=False)


def forget(model: Any) -> None:
    """Drop the weights that a model's pretrained_cfg was given: they would live, and be copied, as long as it."""
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, "state_dict": None}


@contextmanager
def compared(label: str, arch: str) -> Iterator[None]:
    """Within it, a model refuses weights with other names than its own.

    timm's filters, which rename what other projects wrote, can only be reached through timm's loading. It ends in
    `load_state_dict`, so that the names are compared there.

    Raises:
        CheckpointError: With the first names that are missing or too many.
    """
    original = nn.Module.load_state_dict

    def load_state_dict(self: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        whole = hasattr(self, "pretrained_cfg") and not all(map(is_strength, state_dict))
        if fault := misfit(self, state_dict) if whole else "":
            raise CheckpointError(
                f"the weights in {label} are not those of {arch}: {fault}. Name the right architecture with --arch, "
                "and constructor arguments with --model-kwargs key=value."
            )
        return original(self, state_dict, *args, **kwargs)

    nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


def misfit(model: Any, weights: Iterable[str], strengths: Iterable[str] = STRENGTHS) -> str:
    """How the names of weights differ from those of a timm model, in words; "" if they do not.

    Args:
        model: Built by timm, not loaded yet. If it has another number of classes than the weights, its classifier is
            not compared.
        weights: Names after timm's filter.
        strengths: Last part of names that are not compared.
    """
    own, theirs, cfg = model.state_dict().keys(), dict.fromkeys(weights), model.pretrained_cfg
    heads = cfg.get("classifier") or ()
    free = {f"{head}.{part}" for head in ([heads] if isinstance(heads, str) else heads) for part in ("weight", "bias")}
    if model.num_classes == cfg.get("num_classes"):
        free = set()
    missing = [key for key in own if key not in theirs and key not in free and not is_strength(key, strengths)]
    extra = [key for key in theirs if key not in own and key not in free and not is_strength(key, strengths)]
    if "siglip" in (cfg.get("architecture") or "") and getattr(model, "attn_pool", None) is None:
        extra = [key for key in extra if not key.startswith("attn_pool.")]  # as timm does for its models without one
    faults = [f"{len(missing)} of its tensors are missing ({some(missing)})"] if missing else []
    faults += [f"{len(extra)} do not belong to it ({some(extra)})"] if extra else []
    return " and ".join(faults)


def some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
