"""What happens inside the attention of one layer: maps, the functional J(u), its gradients. Pure functions of a `Call`.

A `Call` holds q, k, v of one attention call in float64 and works out its map on a path of its own, so that the numbers
are the same whether the model ran fused, unfused or under autocast. It is made only where a metric asks for it.

Source: NeuTRENO (arXiv 2312.00751): J(u), Fig. 3; attention maps, Figs. 4 and 5; gradients of J, Table 4. Which u and
which weights it takes, and how it averages over heads, is not stated: the choices below are ours.

Shapes: B images, H heads, N tokens, D channels per head. Each measure gives one float64 value per image, (B,), the mean
over heads.
"""

from __future__ import annotations

import copy
from functools import cached_property, partial
from typing import Any, cast

import torch
from timm.layers.attention import maybe_add_mask, resolve_self_attn_mask
from torch import Tensor, nn

from ..attention import nest
from ..methods import Attend, Projected
from ..projections import ATTENTIONS, attend, attend_sam, merged_mask
from ..support import UnsupportedModelError, class_path
from .layers import timm_class
from .tokens import cosine_similarity

SINGLE_MAP = (attend, attend_sam)  # others mix maps of several heads, so that q k^T alone says nothing


class _Exact:
    """An attention module as `attend` sees it: unfused, without dropout, its own layers in float64."""

    fused_attn = False

    def __init__(self, module: nn.Module):
        self._module = module

    def __getattr__(self, name: str):
        value = getattr(self._module, name)
        return copy.deepcopy(value).double().eval() if isinstance(value, nn.Module) else value


class Call:
    """One call of an attention module, in float64.

    Args:
        module: An attention module of a class in `ATTENTIONS`, patched or not.
        args: Its positional inputs, tokens first.
        kwargs: Its keyword inputs.

    Attributes:
        q, k, v: (B, H, N, D), q as the methods of a patched module make it; of differential attention, q and k have 2H
            heads.
        weights: The attention map that v is multiplied with, (B, H, N, N), as those methods of a patched module make it
            that act on scores or map.
        scores: scale * q k^T + bias, what the softmax is taken of, (B, H, N, N).
        symmetric_scores: scale * k k^T + bias, (B, H, N, N).

    Raises:
        UnsupportedModelError: If the class is not in `ATTENTIONS`.
    """

    def __init__(self, module: nn.Module, args: tuple, kwargs: dict):
        spec = ATTENTIONS.get(timm_class(module))
        if spec is None:
            raise UnsupportedModelError(
                f"cannot look into {class_path(module)}: how its q, k and v are made is not known. Measure block or "
                "attention outputs."
            )
        kwargs = {name: value for name, value in kwargs.items() if name != "carry"}  # brought by a patched block
        p: Projected = spec.project(module, *args, **kwargs)
        tensors = {key: x for key, x in p._asdict().items() if isinstance(x, Tensor)}
        floats: Any = {key: x.double() for key, x in tensors.items() if x.is_floating_point()}
        self.module = module
        self._attend = spec.attend
        # a method is a function of any `attend`: with one that gives p back, what acts on the scores gives its own p
        changed: Any = nest(module, cast(Attend, lambda p: p), ("scores",))(p.replace(**floats))
        self._p: Projected = changed
        self.q, self.k, self.v = self._p[:3]

    @cached_property
    def weights(self) -> Tensor:
        """Attention is linear in v: with the identity as v its output is the map, for every class."""
        B, H, N, _ = self.v.shape
        identity = torch.eye(N, dtype=self.v.dtype, device=self.v.device).expand(B, H, N, N)
        attend = nest(self.module, partial(self._attend, _Exact(self.module)), ("map",))  # type: ignore[arg-type]
        return attend(self._p.replace(v=identity))

    @cached_property
    def scores(self) -> Tensor:
        return self._scores(self.q)

    @cached_property
    def symmetric_scores(self) -> Tensor:
        return self._scores(self.k)

    def _scores(self, q: Tensor) -> Tensor:
        if self._attend not in SINGLE_MAP:
            raise UnsupportedModelError(
                f"cannot measure this on {class_path(self.module)}: it mixes several softmax maps, so there is no "
                "single kernel exp(q k^T). Leave out functional_exp and gradient_cosine."
            )
        scale: Any = self.module.scale if self._p.scale is None else self._p.scale
        scores = scale * (q @ self.k.transpose(-2, -1))
        mask, is_causal = merged_mask(self._p)
        return maybe_add_mask(scores, resolve_self_attn_mask(scores.shape[-1], scores, mask, is_causal))


def nonlocal_functional(u: Tensor, weights: Tensor) -> Tensor:
    """J(u) = 1/2 sum_ij w_ij |u_i - u_j|^2, (B, H, N, D), (B, H, N, N) -> (B,); 0 when all u are equal.

    NeuTRENO, Eq. for J in Sec. 2: smoothness of u under the kernel w. Worked out as
    1/2 sum_i (row_i + column_i) |u_i|^2 - sum_i u_i . (w u)_i, on centred u, which leaves J as it is.
    """
    u = u - u.mean(dim=-2, keepdim=True)
    degree = (weights.sum(dim=-1) + weights.sum(dim=-2)) / 2
    J = (degree * u.square().sum(dim=-1)).sum(dim=-1) - (u * (weights @ u)).sum(dim=(-2, -1))
    return J.mean(dim=1)


def functional_softmax(call: Call) -> Tensor:
    """J of the layer's values with its attention map as the kernel: grows with N, not with the scores."""
    return nonlocal_functional(call.v, call.weights)


def functional_exp(call: Call) -> Tensor:
    """J of the layer's values with k_ij = exp(q_i . k_j / sqrt(D)), the paper's kernel before normalisation."""
    return nonlocal_functional(call.v, call.scores.exp())


def gradient_cosine(call: Call) -> Tensor:
    """Cosine between the gradients of J with the symmetric and the asymmetric kernel, mean over positions. Table 4.

    g_i = sum_j w_ij (v_i - v_j), w = exp(k k^T / sqrt(D)) or exp(q k^T / sqrt(D)). Its direction does not change with
    a factor per row, so a softmax stands for the exponentials, which could overflow; and j = i adds nothing, so it is
    left out, which keeps the direction of rows where a token attends to itself alone.
    """
    itself = torch.eye(call.v.shape[-2], dtype=torch.bool, device=call.v.device)
    symmetric, asymmetric = (
        call.v - scores.masked_fill(itself, -torch.inf).softmax(dim=-1) @ call.v
        for scores in (call.symmetric_scores, call.scores)
    )
    return torch.nn.functional.cosine_similarity(symmetric, asymmetric, dim=-1, eps=0.0).mean(dim=(1, 2))


def head_similarity(call: Call) -> Tensor:
    """Mean cosine similarity between the maps of different heads of one layer, each flattened to N^2 numbers.

    The authors' code has this where the paper's Fig. 5 has `map_cosine`.

    Raises:
        ValueError: If the layer has one head.
    """
    if call.weights.shape[1] < 2:
        raise ValueError("head_similarity needs at least two heads, and this model's layers have one. Leave it out.")
    return cosine_similarity(call.weights.flatten(2))


def map_cosine(call: Call, previous: Call) -> Tensor:
    """Cosine between the maps of two successive layers, head by head, each flattened to N^2 numbers. Fig. 5.

    Raises:
        ValueError: If the maps differ in shape.
    """
    a, b = previous.weights.flatten(2), call.weights.flatten(2)
    if a.shape != b.shape:
        raise ValueError(
            f"map_cosine needs maps of one shape, and two successive layers have {tuple(previous.weights.shape)} and "
            f"{tuple(call.weights.shape)} (images or windows, heads, tokens, tokens). Leave it out for this model."
        )
    return torch.nn.functional.cosine_similarity(a, b, dim=-1, eps=0.0).mean(dim=1)
