"""Eigen-reparameterised attention weights: layers that can only sharpen, or only smooth, whatever is learned.

Source: Dovonon, Bronstein, Kusner, "Setting the Record Straight on Transformer Oversmoothing" (arXiv 2401.04301). A
layer X <- X + A X H, H = W_V W_proj, multiplies tokens by 1 + lambda_H lambda_A; A's largest eigenvalue is 1, that of
constant tokens. With the eigenvalues of H in [-1, 0] constant tokens cannot dominate: the layer sharpens. With them
in [0, 1] they do: it smooths. So H = V diag(clip(psi)) V^-1 is learned through V and psi.

V is W_V (row vectors: the transpose of the value rows of `qkv.weight`), and W_proj = diag(clip(psi)) V^-1, so that the
W_V,h W_proj,h of a head has its own part of the eigenvalues and zeros (how the paper splits them over heads we do not
know). V is orthogonal by default, as in the paper's first version: then H is symmetric.

A LayerScale after the projection stays as it is and is not part of this H, as the paper's models have none: where its
signs differ, a block with one may do the opposite of what was asked for.

The weights become parametrizations of torch on the same modules, and `fold` makes them plain weights again. Trained
weights do not survive: their eigenvalues are complex and anywhere, so reparametrize before training. Biases stay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .blocks import BLOCKS
from .support import UnsupportedModelError, class_path, find_vits

RANGES = {"sharpen": (-1.0, 0.0), "smooth": (0.0, 1.0)}  # of the eigenvalues of H


class OrthogonalValues(nn.Module):
    """qkv.weight, (3 C, C), with its value rows made orthogonal: the Q of their QR decomposition."""

    def forward(self, weight: Tensor) -> Tensor:
        q, k, v = weight.chunk(3)
        Q, R = torch.linalg.qr(v)
        return torch.cat([q, k, Q * R.diagonal().sign()])  # the sign makes Q unique, and an orthogonal v its own Q

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class EigenProjection(nn.Module):
    """proj.weight, (C, C), from the eigenvalues psi, (C,), and the value rows W of `qkv`: W^-1 diag(clip(psi)).

    Args:
        qkv: The attention's fused projection, (C) -> (3 C); not a submodule, so that its weights are counted once.
        low: Smallest eigenvalue.
        high: Largest eigenvalue.
        orthogonal: Whether the value rows are orthogonal, so that their inverse is their transpose.
    """

    def __init__(self, qkv: nn.Module, low: float, high: float, orthogonal: bool):
        super().__init__()
        self._qkv = (qkv,)
        self.low, self.high, self.orthogonal = low, high, orthogonal

    def forward(self, psi: Tensor) -> Tensor:
        (qkv,) = self._qkv
        value: Tensor = qkv.weight.chunk(3)[2]  # type: ignore[operator]
        return (value.t() if self.orthogonal else torch.linalg.inv(value)) * psi.clamp(self.low, self.high)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Eigenvalues to start from: drawn inside the range, since a clipped one has no gradient."""
        return torch.empty_like(weight[0]).uniform_(self.low, self.high)


def reparametrize(model: nn.Module, kind: str, *, orthogonal: bool = True) -> nn.Module:
    """Give every attention layer an H = W_V W_proj whose eigenvalues stay in one range while it is trained, in place.

        model = timm_neutreno.reparametrize(timm.create_model("deit_tiny_patch16_224"), "sharpen")

    Works beside `patch`. The QR decomposition is made anew at every use of the weight: run forward passes inside
    torch.nn.utils.parametrize.cached() to make it once per pass. Save after `fold`.

    Args:
        model: A timm ViT whose attentions have one `qkv` and as many output as input channels; not trained yet.
        kind: "sharpen", eigenvalues in [-1, 0], or "smooth", in [0, 1].
        orthogonal: Whether W_V is kept orthogonal, which makes H symmetric; False inverts whatever W_V is learned.

    Returns:
        The model. `blocks.N.attn.proj` has C parameters in place of C * C.

    Raises:
        ValueError: If `kind` is unknown, or the model is reparametrized already.
        UnsupportedModelError: If a layer has other weights; the model is left as it was.
    """
    if kind not in RANGES:
        raise ValueError(f"kind must be {' or '.join(map(repr, RANGES))}, got {kind!r}.")
    attentions = _attentions(model)
    if any(parametrize.is_parametrized(attn.qkv) or parametrize.is_parametrized(attn.proj) for attn in attentions):
        raise ValueError("The model's attention weights are parametrized already. fold() the model first.")
    for attn in attentions:
        if orthogonal:
            parametrize.register_parametrization(attn.qkv, "weight", OrthogonalValues())
        projection = EigenProjection(attn.qkv, *RANGES[kind], orthogonal)
        parametrize.register_parametrization(attn.proj, "weight", projection)
    return model


def _attentions(model: nn.Module) -> list[Any]:
    """The attention modules of a model's blocks, all of them with weights that can be reparametrized."""
    found: list[Any] = []
    names = {module: name for name, module in model.named_modules()}
    for vit in find_vits(model):
        for block in vit.blocks:
            spec = BLOCKS.get(getattr(type(block), "timm_class", type(block)))
            attentions = spec.attentions(block) if spec else [block]
            for attn in attentions:
                if reason := _refusal(attn):
                    raise UnsupportedModelError(
                        f"cannot reparametrize {names[attn] or 'the model'} ({class_path(attn)}): it {reason}."
                    )
            found += attentions
    if not found:
        raise UnsupportedModelError(f"cannot reparametrize {class_path(model)}: it has no list of `blocks`.")
    return found


def _refusal(attn: Any) -> str:
    qkv, proj = getattr(attn, "qkv", None), getattr(attn, "proj", None)
    if not isinstance(qkv, nn.Linear) or not isinstance(proj, nn.Linear):
        return "has no qkv and proj, one linear layer each"
    if qkv.out_features != 3 * qkv.in_features or proj.out_features != proj.in_features:
        return "has another number of channels inside than outside, so that H has no eigenvalues to choose"
    if not isinstance(getattr(attn, "norm", None) or nn.Identity(), nn.Identity) or getattr(attn, "gate", None):
        return "has a norm or gate between W_V and W_proj, so that their product is not what acts on tokens"
    return ""


def fold(model: nn.Module) -> nn.Module:
    """Undo `reparametrize`, in place: the weights stay what they are, as timm's plain parameters.

    Raises:
        ValueError: If the model is not reparametrized.
    """
    projections, values = (_parametrized_by(model, kind) for kind in (EigenProjection, OrthogonalValues))
    if not projections:
        raise ValueError("The model is not reparametrized: there is nothing to fold.")
    for module in (*projections, *values):  # a projection reads the values, which must be orthogonal until then
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model


def _parametrized_by(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    found = [module for module in model.modules() if parametrize.is_parametrized(module, "weight")]
    return [module for module in found if isinstance(module.parametrizations["weight"][0], kind)]  # type: ignore[index]


def is_reparametrized(model: nn.Module) -> bool:
    """Whether `reparametrize` was called on the model, and `fold` not since."""
    return bool(_parametrized_by(model, EigenProjection))
