"""The arms of a run, all equals: each method that is asked for, and the control, which is the arm without one."""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils import random_seed
from torch import nn

from timm_neutreno import UnsupportedModelError, is_patched, unpatch
from timm_neutreno.twins import base_name, twin_name

from ..config import Config
from ..data.sources import Datasets
from ..errors import CheckpointError, UsageError, one_line
from ..tasks import classification
from . import checkpoint, methods

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
    """

    name: str
    method: str | None
    options: dict[str, Any]
    warmup: float
    directory: Path

    @property
    def exact_at_start(self) -> bool:
        """Whether its training starts from the checkpoint's own function."""
        names = methods.method_strengths(self.method) if self.method else {}
        at_start = [0.0 if name == "fidelity" and self.warmup else self.options[name] for name in names]
        return self.method is None or (bool(names) and not any(at_start))


def list_arms(config: Config, source: checkpoint.Source, directory: Path) -> list[Arm]:
    """The control, if it is wanted, and then the methods in the order in which they were asked for.

    Given options go first, then the checkpoint's own, then the papers'.

    Raises:
        UsageError: If a method is unknown or named twice, or an option belongs to none of them.
    """
    try:
        names = [methods.canonical(name) for name in config.method or [source.method or "neutreno"]]
    except ValueError as error:
        raise UsageError(f"--method: {one_line(error)}") from error
    if len(set(names)) < len(names):
        raise UsageError(f"--method {next(name for name in names if names.count(name) > 1)} is named twice.")
    given = config.method_options
    arms = [Arm(CONTROL, None, {}, 0.0, directory / "arms" / CONTROL)] if config.control else []
    taken: set[str] = {"layers"}
    for name in names:
        defaults = methods.method_strengths(name)
        known = {*defaults, *(f"learnable_{strength}" for strength in defaults), "layers"}
        options = {key: value for key, value in {**defaults, **source.options, **given}.items() if key in known}
        taken |= known
        warmup = config.fidelity_warmup if "fidelity" in defaults else 0.0
        arms.append(Arm(name, name, options, warmup, directory / "arms" / name))
    for key in given.keys() - taken:
        near = difflib.get_close_matches(key, taken, n=3) or sorted(taken)
        raise UsageError(f"--set {key}: no method of this run has it. Did you mean: {', '.join(near)}?")
    for key, own in source.options.items():
        if key.startswith("learnable_") and own and given.get(key, own) != own:
            raise UsageError(
                f"{source.label} has a {key.removeprefix('learnable_')} learned per {own}; {key} {given[key]} does not "
                "fit. Leave the option out to go on learning."
            )
    return arms


class Models:
    """The models of a run, all from one reading of the checkpoint: same weights, same new head if there is one.

    Attributes:
        original: The checkpoint as it came, on the CPU.
        new_head: Why its head was initialised anew; "" if it was not.
        learned: The strengths that the checkpoint has learned, by their names in the state_dict.
    """

    def __init__(self, source: checkpoint.Source, datasets: Datasets, config: Config, device: torch.device):
        self.device, self.source = device, source
        self.new_head = classification.head_mismatch(
            source.num_classes, source.label_names, datasets.num_classes, datasets.class_names
        )
        random_seed(config.seed)  # of a new head
        self.original = checkpoint.build(
            source, num_classes=datasets.num_classes, img_size=config.img_size, drop_path=config.drop_path
        )
        if self.new_head and datasets.num_classes == source.num_classes:
            random_seed(config.seed)
            self.original.reset_classifier(datasets.num_classes)  # type: ignore[operator]
        self.learned = {**source.learned, **methods.learned(self.original)}

    def build(self, arm: Arm) -> nn.Module:
        """The arm's model as its training starts, on the device.

        Raises:
            CheckpointError: If the method cannot be applied to the architecture.
        """
        model = copy.deepcopy(self.original)
        if is_patched(model):
            unpatch(model)
        if arm.method:
            try:
                methods.patch(model, arm.method, **arm.options)
            except UnsupportedModelError as error:
                raise CheckpointError(one_line(error)) from error
            own = methods.learned(model)
            for name, value in self.learned.items():  # what the checkpoint has learned, unless it starts elsewhere
                strength = name.rpartition(".")[2]
                if name in own and arm.options[strength] == self.source.options.get(strength, arm.options[strength]):
                    if own[name].shape != value.shape:
                        raise CheckpointError(f"{name} was learned per head or layer, and not as it is asked for now.")
                    own[name].data.copy_(value.detach())
        return model.to(self.device)

    def full_model(self, arm: Arm, weights: dict[str, Any]) -> nn.Module:
        """The arm's model with gathered weights of a sharded one; without weights, as it starts."""
        model = self.build(arm)
        if weights:
            model.load_state_dict(weights)
        return model

    def architecture(self, arm: Arm) -> str:
        """The name by which timm makes the arm's model."""
        return twin_name(self.source.arch) if arm.method else base_name(self.source.arch)
