"""What several models answer to the same val images, as they are, corrupted, and attacked, in one reading of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.corruptions import CORRUPTIONS, corrupt
from ..data.loaders import BatchLoader
from ..data.order import derive_seed
from ..runtime.console import Console
from ..tasks.attacks import ATTACKS, BUDGETS

Condition = tuple[str, float]  # name of a corruption or an attack, and its strength
CLEAN: Condition = ("clean", 0)
CORRUPTED: list[Condition] = [(name, strength) for name, each in CORRUPTIONS.items() for strength in each.strengths]
ATTACKED: list[Condition] = [(name, budget) for name in ATTACKS for budget in BUDGETS]


@dataclass(frozen=True)
class Responses:
    """Answers, in the order of the val images.

    Attributes:
        target: Right classes, (N,).
        predicted: Condition -> name of the model -> classes, (N,).
        losses: Likewise the cross-entropies, (N,).
    """

    target: Tensor
    predicted: dict[Condition, dict[str, Tensor]]
    losses: dict[Condition, dict[str, Tensor]]

    def correct(self, condition: Condition, model: str) -> Tensor:
        """Whether a model is right, (N,) float64."""
        return (self.predicted[condition][model] == self.target).double()


@torch.no_grad()
def respond(
    models: Mapping[str, nn.Module], loader: BatchLoader, data_config: dict[str, Any],
    autocast: AbstractContextManager, conditions: list[Condition], console: Console,
) -> Responses:  # fmt: skip
    """Ask all models about all images under all conditions.

    A corrupted image is the same one for all models; an attack has each model's own gradient and the same budget.

    Args:
        models: On the loader's device, in eval mode; their parameters get no gradients.
        loader: Val images, which are normalised with the mean and std of `data_config`.
        data_config: Of timm: mean and std.
        autocast: Context for the forward passes.
        conditions: Of `CLEAN`, `CORRUPTED` and `ATTACKED`.
        console: Shows a bar.
    """
    targets: list[Tensor] = []
    found: dict[Condition, dict[str, list[Tensor]]] = {c: {name: [] for name in models} for c in conditions}
    for model in models.values():
        model.eval().requires_grad_(False)
    for images, target in console.track(loader.batches, ", ".join(models), loader.steps):
        first = sum(map(len, targets))
        mean, std = (torch.tensor(data_config[key], device=images.device).view(1, -1, 1, 1) for key in ("mean", "std"))
        pixels = ((images.float() * std + mean).clamp(0, 1) * 255).round() / 255
        for condition in conditions:
            for name, x in _changed(models, pixels, target, condition, first, mean, std, autocast):
                with autocast:
                    output = models[name]((x - mean) / std).float()
                loss = F.cross_entropy(output, target, reduction="none")
                found[condition][name].append(torch.stack([output.argmax(1).double(), loss.double()]).cpu())
        targets.append(target.cpu())
    whole = {c: {name: torch.cat(parts, 1) for name, parts in each.items()} for c, each in found.items()}
    predicted = {c: {name: values[0].long() for name, values in each.items()} for c, each in whole.items()}
    losses = {c: {name: values[1] for name, values in each.items()} for c, each in whole.items()}
    return Responses(torch.cat(targets), predicted, losses)


def _changed(
    models: Mapping[str, nn.Module], pixels: Tensor, target: Tensor, condition: Condition, first: int,
    mean: Tensor, std: Tensor, autocast: AbstractContextManager,
) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
    """(name, images in [0, 1]) for every model."""
    name, strength = condition
    if name not in ATTACKS:
        x = pixels if condition == CLEAN else corrupt(pixels, name, strength, first)
        yield from ((model, x) for model in models)
        return
    for key, model in models.items():

        def logits(x: Tensor, model: nn.Module = model) -> Tensor:
            with autocast:
                return model((x - mean) / std)

        seed = {"seed": derive_seed("attack", first)} if name == "pgd" else {}
        yield key, ATTACKS[name](logits, pixels, target, strength / 255, **seed)
