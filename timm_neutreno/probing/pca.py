"""Patch tokens as colours: their first three principal components over a few photos are red, green and blue.

Components have no order or sign of their own that two models would share, so those of a model are rotated to lie as
near as possible to those of the first (orthogonal Procrustes: Schoenemann, 1966).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .features import extract, find_vit
from .settings import Setting, applied


def components(tokens: Tensor, like: Tensor | None = None) -> Tensor:
    """The first three principal components of patch tokens, each with variance 1.

    Args:
        tokens: (images, height, width, C).
        like: Components of another model on the same images, to rotate to.

    Returns:
        (images, height, width, 3), float64.
    """
    rows = tokens.flatten(0, 2).double()
    rows = rows - rows.mean(0)
    u = torch.linalg.svd(rows, full_matrices=False).U[:, :3]
    found = u * len(rows) ** 0.5
    if like is not None:
        left, _, right = torch.linalg.svd(found.T @ like.flatten(0, 2).double())
        found = found @ left @ right
    return found.unflatten(0, tokens.shape[:3])


def colors(found: Tensor) -> Tensor:
    """Components as colours in [0, 1]: from the 1st to the 99th percentile of each."""
    rows = found.flatten(0, 2)
    low, high = torch.quantile(rows, torch.tensor([0.01, 0.99], dtype=rows.dtype), dim=0)
    return ((found - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)


@torch.no_grad()
def pictures(model: nn.Module, settings: Sequence[Setting], images: Tensor) -> dict[str, Tensor]:
    """The patch tokens of the last block as colours, under every setting.

    Args:
        model: A timm ViT; it is left as it was.
        settings: The first one's components are those that the others are rotated to.
        images: (B, 3, height, width), as the model wants them.

    Returns:
        Label of the setting -> (B, rows, columns, 3) in [0, 1].
    """
    from ..smoothing.measure import evaluating, prepare

    first, found = None, {}
    block = len(find_vit(model).blocks) - 1
    for setting in settings:
        with evaluating(model), applied(model, setting) as patched:
            patched.eval()
            tokens = extract(patched, prepare(patched, images), [block])[block].patches
        here = components(tokens, like=first)
        first = here if first is None else first
        found[setting.label] = colors(here)
    return found
