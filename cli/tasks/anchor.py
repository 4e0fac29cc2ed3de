"""Gram anchoring: fine-tuning that keeps how similar the patch tokens of an image are to one another.

    loss = mean_ij (x_i . x_j - a_i . a_j)^2,   x_i, a_i: patch tokens of the trained and the frozen model, at length 1

DINOv3's Gram loss, L_Gram = |X_S X_S^T - X_G X_G^T|_F^2 (Simeoni et al. 2025, arXiv 2508.10104, Eq. 2), as a mean over
the pairs of an image. There the anchor is an earlier teacher; here it is the checkpoint that the training starts from.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timm_neutreno.support import find_vits

from ..errors import UsageError


def gram_loss(tokens: Tensor, anchor: Tensor) -> Tensor:
    """How far the cosine similarities of tokens are from those of an anchor, in [0, 4].

    Args:
        tokens: Patch tokens, (B, N, C), any floating dtype.
        anchor: Of the same images at the same places, (B, N, D); no gradient goes there.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        x, a = (F.normalize(each.float(), dim=-1) for each in (tokens, anchor.detach()))
        return F.mse_loss(x @ x.mT, a @ a.mT)


class GramAnchor:
    """The loss between a model in training and a frozen one, from the tokens of the model's last forward pass.

    Args:
        model: A ViT of timm, or a model around one, such as a segmenter; its passes in training mode are listened to.
        start: The ViT to hold on to, left as it is.
        weight: Of the loss.
        device: Of the model.

    Raises:
        UsageError: If one of them has no final norm whose tokens could be compared, or drops patches.
    """

    def __init__(self, model: nn.Module, start: nn.Module, weight: float, device: torch.device):
        self.weight = weight
        self.frozen = copy.deepcopy(start).eval().requires_grad_(False).to(device)
        self.tokens: list[Tensor] = []
        self.anchor: list[Tensor] = []
        listen(model, self.tokens, only_training=True)
        listen(self.frozen, self.anchor, only_training=False)

    def __call__(self, images: Tensor) -> Tensor:
        """The weighted loss of these images, which the model has just seen."""
        with torch.no_grad():
            self.frozen(images)
        return self.weight * gram_loss(self.tokens.pop(), self.anchor.pop())


def listen(model: nn.Module, into: list[Tensor], only_training: bool) -> None:
    """Put the patch tokens of every forward pass, (B, N, C) after the ViT's final norm, into a list: the last ones.

    Raises:
        UsageError: As `GramAnchor`.
    """
    vit: Any = next(iter(find_vits(model)), None)
    norm = getattr(vit, "norm", None)
    drops = not isinstance(getattr(vit, "patch_drop", None), nn.Identity | None)
    if norm is None or drops:
        raise UsageError(
            f"--anchor gram compares all patch tokens after the final norm: {type(vit or model).__name__} "
            f"{'drops some of them' if drops else 'has no such norm'}. Leave the option out."
        )
    prefix = getattr(vit, "num_prefix_tokens", 0)

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        if module.training or not only_training:
            into[:] = [output.flatten(1, -2)[:, prefix:]]

    norm.register_forward_hook(hook)
