"""The arms of a run, all equals: each method that is asked for, and the control, which is the arm without one."""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.utils import random_seed
from torch import nn

from timm_neutreno import METHODS, UnsupportedModelError, is_patched, patch, strengths, unpatch
from timm_neutreno.methods import canonical, resolve, split
from timm_neutreno.names import base_name, neutreno_name

from ..config import Config, recipe_strengths
from ..data.sources import Datasets
from ..errors import CheckpointError, UsageError, one_line
from . import checkpoint
from .tasks import TASKS

CONTROL = "control"


@dataclass(frozen=True)
class Arm:
    """One of the trainings that a run compares.

    Attributes:
        name: "control", or the method's own string; names the folder, the row and the log records.
        method: As `patch` takes it; None for the control.
        options: Of `patch`: strengths at their start, and how they are learned.
        warmup: Epochs over which the fidelity rises from 0; 0 for none.
        directory: Where its checkpoints, metrics and weights go.
        part: Of the model where the method acts; "" for all of it.
    """

    name: str
    method: str | None
    options: dict[str, Any]
    warmup: float
    directory: Path
    part: str = ""

    @property
    def exact_at_start(self) -> bool:
        """Whether its training starts from the checkpoint's own function."""
        rows = [METHODS[name].strengths for name in split(self.method)] if self.method else []
        start = {**self.options, **({"fidelity": 0.0} if self.warmup else {})}
        return all(strengths and not any(start[name] for name in strengths) for strengths in rows)


def list_arms(config: Config, source: checkpoint.Source, directory: Path) -> list[Arm]:
    """The control, if it is wanted, and then the methods in the order in which they were asked for.

    Given options go first, then the checkpoint's own, then the recipe's, then the papers'.

    Raises:
        UsageError: If a method is unknown or named twice, or an option belongs to none of them or has no such value.
    """
    given, arms, known = config.method_options, [], {"layers"}
    start = {} if source.method else recipe_strengths(config)
    if config.control:
        arms.append(Arm(CONTROL, None, {}, 0.0, directory / "arms" / CONTROL))
    try:
        for name in map(canonical, config.method or [source.method or "neutreno"]):
            if name in [arm.method for arm in arms]:
                raise UsageError(f"--method {name} is named twice.")
            own = set(resolve(name, {}))
            known |= own
            chosen = {key: value for key, value in {**start, **source.options, **given}.items() if key in own}
            layers = {**source.options, **given}.get("layers")
            options = {**resolve(name, chosen), **({"layers": layers} if layers is not None else {})}
            warmup = config.fidelity_warmup if "fidelity" in options else 0.0
            for part in dict.fromkeys(config.part or ["both"]):
                part = "" if part == "both" else part
                label = f"{name}-{part}" if part else name
                arms.append(Arm(label, name, options, warmup, directory / "arms" / label, part))
    except ValueError as error:
        raise UsageError(one_line(error)) from error
    for key in given.keys() - known:
        near = difflib.get_close_matches(key, known, n=3) or sorted(known)
        raise UsageError(f"--set {key}: no method of this run has it. Did you mean: {', '.join(near)}?")
    for key, own_value in source.options.items():
        if key.startswith("learnable_") and own_value and given.get(key, own_value) != own_value:
            raise UsageError(
                f"{source.label} has a {key.removeprefix('learnable_')} learned per {own_value}; {key} {given[key]} "
                "does not fit. Leave the option out to go on learning."
            )
    return arms


def learned_strengths(model: nn.Module) -> dict[str, nn.Parameter]:
    """The strengths that are parameters, by their names in the state_dict."""
    return {name: value for name, value in strengths(model).items() if isinstance(value, nn.Parameter)}


class Models:
    """The models of a run, all from one reading of the checkpoint: same weights, same new head if there is one.

    Attributes:
        original: The checkpoint as it came, on the CPU.
        new_head: Why its head was initialised anew; "" if it was not.
        learned: The strengths that the checkpoint has learned, by their names in the state_dict.
    """

    def __init__(self, source: checkpoint.Source, datasets: Datasets, config: Config, device: torch.device):
        self.device, self.source, self.rules = device, source, TASKS[config.task].rules
        self.new_head = self.rules.head_mismatch(
            source.num_classes, source.label_names, datasets.num_classes, datasets.class_names
        )
        random_seed(config.seed)  # of a new head
        self.original = self.rules.build(partial(checkpoint.build, source), source, datasets, config)
        own = {self.rules.PREFIX + name: value for name, value in source.learned.items()}
        self.learned = {**own, **learned_strengths(self.original)}

    def build(self, arm: Arm) -> nn.Module:
        """The arm's model as its training starts, on the device. Errors as of `patched`."""
        return self.patched(arm).to(self.device)

    def patched(self, arm: Arm) -> nn.Module:
        """The arm's model as its training starts, on the CPU.

        Raises:
            CheckpointError: If the method cannot be applied to the architecture.
            UsageError: If it has no layers to act in.
        """
        model = copy.deepcopy(self.original)
        if is_patched(model):
            unpatch(model)
        if arm.method:
            try:
                patch(self.rules.part(model, arm.part), arm.method, **arm.options)
            except UnsupportedModelError as error:
                raise CheckpointError(one_line(error)) from error
            except ValueError as error:  # layers that are not there
                raise UsageError(one_line(error)) from error
            own = learned_strengths(model)
            for name, value in self.learned.items():  # what the checkpoint has learned, unless it starts elsewhere
                strength = name.rpartition(".")[2]
                if name in own and arm.options[strength] == self.source.options.get(strength, arm.options[strength]):
                    if own[name].shape != value.shape:
                        raise CheckpointError(f"{name} was learned per head or layer, and not as it is asked for now.")
                    own[name].data.copy_(value.detach())
        return model

    def full_model(self, arm: Arm, weights: dict[str, Any]) -> nn.Module:
        """The arm's model with gathered weights of a sharded one; without weights, as it starts."""
        model = self.build(arm)
        if weights:
            model.load_state_dict(weights)
        return model

    def architecture(self, arm: Arm) -> str:
        """The name by which timm makes the arm's model."""
        return neutreno_name(self.source.arch) if arm.method else base_name(self.source.arch)
