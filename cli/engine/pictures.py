"""A few val photos beside the patch tokens of the models that a run compares, as colours."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from timm_neutreno.probing.features import extract, find_vit
from timm_neutreno.probing.pca import colors, components
from timm_neutreno.probing.plots import plot_pca

from ..reports import tables
from .prepare import Parts
from .save import WEIGHTS

PHOTOS = 4


@torch.inference_mode()
def draw_token_maps(parts: Parts, path: Path) -> None:
    """Draw the last block's patch tokens of the checkpoint and of each trained arm.

    Their first three principal components over the photos are red, green and blue; those of the arms are rotated to lie
    near the checkpoint's, so that like colours may be compared.
    """
    photos = _photos(parts)
    mean, std = (torch.tensor(parts.data_config[name])[:, None, None] for name in ("mean", "std"))
    images = ((photos - mean) / std).to(parts.context.device)
    columns: dict[str, Any] = {}
    first = None
    for name, model in _models(parts):
        block = len(find_vit(model).blocks) - 1
        here = components(extract(model.eval(), images, [block])[block].patches.cpu(), like=first)
        first = here if first is None else first
        columns[name] = colors(here).numpy()
    plot_pca([photo.permute(1, 2, 0).numpy() for photo in photos], columns, path)


def _photos(parts: Parts) -> Tensor:
    """(B, 3, height, width) in [0, 1]: val images evenly spread, so of several classes, as the models get them."""
    val = parts.datasets.val
    count = min(PHOTOS, len(val))
    chosen = [torch.as_tensor(val[(2 * i + 1) * len(val) // (2 * count)][0]) for i in range(count)]
    return torch.stack(chosen).float() / 255


def _models(parts: Parts) -> Iterator[tuple[str, nn.Module]]:
    """Name -> model on the device, one after the other: the checkpoint as it came, and the arms as they were saved."""
    yield tables.label(tables.CHECKPOINT), copy.deepcopy(parts.models.original).to(parts.context.device)
    for arm in parts.arms:
        model = parts.models.build(arm)
        model.load_state_dict(load_file(arm.directory / WEIGHTS[-1]))
        yield tables.label(arm.name), model
