"""The attention function that transformers calls for patched models, and how v0 comes to it.

`attention` is registered under NAME with transformers' attention interface; its softmax is transformers' own function
for SDPA, inside the methods of the module. v0 travels as an argument, never on a model, so that threads, several
forward passes and checkpointing do not see each other's:

    forward of the list's owner:  begin           a new FirstValues goes into the keyword arguments of all layers
    first layer:  give -> given   inside the layer a Slot takes the values; outside of it FirstValues gets them
    later layer:  take            the values themselves are a keyword argument of the layer
    attention:    enter           the argument waits in a thread-local until the function below runs

`give`, `given` and `take` are hooks of the layer's __call__, and transformers checkpoints its forward: what is
recomputed in the backward pass sees v0 as an input. A Slot is emptied when its layer ends, since the first layer's own
checkpoint region holds it, and would keep the graph of a forward pass alive that is never followed by a backward.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, StaticLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..attention import nest
from ..methods import Projected

NAME = "timm_neutreno.hf"  # in transformers' error where nobody registered it, this is all that a user sees
ARGUMENT = "first_values"

REENTRANT = (
    "the first layer's values would lose their gradient: a layer runs without gradients in a pass that has them, as "
    "reentrant checkpointing does. Use model.gradient_checkpointing_enable({'use_reentrant': False})."
)


class FirstValues:
    """The first layer's values during one forward pass.

    Attributes:
        v0: Values, (B, heads of v, N, D), with those in a KV cache; None until the first layer is done.
        grad_mode: Whether the pass began with gradients.
    """

    def __init__(self):
        self.v0: Tensor | None = None
        self.grad_mode = torch.is_grad_enabled()


class Slot:
    """Takes the values out of the first layer. Without `shared` its layer is done, and only recomputed."""

    def __init__(self, shared: FirstValues):
        self.shared: FirstValues | None = shared
        self.v: Tensor | None = None

    def record(self, v: Tensor) -> None:
        if self.shared is None:
            return
        if self.shared.grad_mode and not torch.is_grad_enabled():
            raise RuntimeError(REENTRANT)
        self.v = v


# --- hooks ----------------------------------------------------------------------------------------------------------


def begin(owner: nn.Module, args: tuple, kwargs: dict[str, Any]):
    """Of the module that calls the layers.

    Raises:
        RuntimeError: If the pass has a cache of fixed length, whose empty places look like tokens.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, Cache) and any(isinstance(layer, StaticLayer) for layer in value.layers):
            raise RuntimeError(
                f"{type(value).__name__} keeps empty places for later tokens, among which a layer does not find its "
                "own values. Use transformers' default, DynamicCache: leave cache_implementation out."
            )
    return args, {**kwargs, ARGUMENT: FirstValues()}


def give(layer: nn.Module, args: tuple, kwargs: dict[str, Any]):
    """Of the first layer."""
    return args, {**kwargs, ARGUMENT: Slot(_shared(layer, kwargs))}


def given(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
    """Of the first layer, when it is done."""
    slot = kwargs[ARGUMENT]
    slot.shared.v0, slot.v, slot.shared = slot.v, None, None


def take(layer: nn.Module, args: tuple, kwargs: dict[str, Any]):
    """Of a later layer with a method that needs v0."""
    v0 = _shared(layer, kwargs).v0
    if v0 is None:
        raise RuntimeError(_alone(layer))
    return args, {**kwargs, ARGUMENT: v0}


def leave(layer: nn.Module, args: tuple, kwargs: dict[str, Any]):
    """Of a layer that does not need v0."""
    return args, {name: value for name, value in kwargs.items() if name != ARGUMENT}


_local = threading.local()
_local.first = None  # set here so that torch.compile finds the same attributes on its first call as on its second


def enter(attention: nn.Module, args: tuple, kwargs: dict[str, Any]):
    """Of an attention that gives or takes v0: some of transformers' hand no arguments on to the function."""
    if ARGUMENT not in kwargs:
        raise RuntimeError(_alone(attention))
    _local.first = kwargs[ARGUMENT]
    return leave(attention, args, kwargs)


def finish(attention: nn.Module, args: tuple, output: Any) -> None:
    """Of the same attention, when it is done or has failed (then there is no output).

    Raises:
        RuntimeError: If the function below did not run.
    """
    unused, _local.first = _local.first is not None, None
    if unused and output is not None:
        raise RuntimeError(
            f"{type(attention).__name__} ran without its methods: its attention implementation was changed after "
            f'patch. Set it back, model.set_attn_implementation("{NAME}"), or call timm_neutreno.hf.unpatch(model).'
        )


def _shared(layer: nn.Module, kwargs: dict[str, Any]) -> FirstValues:
    if ARGUMENT not in kwargs:
        raise RuntimeError(_alone(layer))
    return kwargs[ARGUMENT]


def _alone(module: nn.Module) -> str:
    return (
        f"{type(module).__name__} got no first-layer values in this forward pass: it was called on its own, or the "
        "first layer was left out. Call the whole model, or timm_neutreno.hf.unpatch(model) first."
    )


# --- the function ---------------------------------------------------------------------------------------------------


class Heads(NamedTuple):
    """What transformers' function for SDPA asks of a module."""

    num_key_value_groups: int
    is_causal: bool


def attend(dropout: float, further: dict[str, Any], p: Projected) -> Tensor:
    """transformers' attention for SDPA: grouped queries, position biases and masks as it has them. (B, H, N, D)."""
    u, _ = sdpa_attention_forward(
        Heads(p.groups, p.is_causal),  # type: ignore[arg-type]
        p.q,
        p.k,
        p.v,
        p.mask,
        dropout=dropout,
        scaling=p.scale,
        is_causal=p.is_causal,
        position_bias=p.bias,
        **further,
    )
    return u.transpose(1, 2)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **further: Any,
) -> tuple[Tensor, None]:
    """Attention of a patched module, as transformers' attention interface calls it.

    Args:
        module: A patched attention: `methods`, their strengths, `gives_v0` and `takes_v0` are its attributes.
        query: (B, H, N, D).
        key: (B, H / groups, N with what a KV cache adds, D).
        value: As `key`.
        attention_mask: Boolean or additive, as torch's SDPA takes it.
        dropout: Of the attention map.
        scaling: Of q k^T.
        is_causal: None for the module's own.
        position_bias: Added to the scores.
        **further: What transformers' function for SDPA takes beside these.

    Returns:
        (B, N, H, D), and None where others return the attention map.

    Raises:
        RuntimeError: If the module is not patched, is cross-attention, or the first layer's values do not fit.
    """
    if getattr(module, "methods", None) is None:
        raise RuntimeError(
            f'{type(module).__name__} has attn_implementation="{NAME}" and no method: the model was built without '
            "timm_neutreno.hf. Load it with timm_neutreno.hf.load(folder), or call timm_neutreno.hf.patch(model)."
        )
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    cached = key.shape[2] != query.shape[2]
    if cached and not causal:
        raise RuntimeError(
            f"{type(module).__name__} has other tokens in its keys than in its queries and is not causal: in "
            "cross-attention the values belong to other tokens. Unpatch the model with timm_neutreno.hf.unpatch(model)."
        )
    groups = getattr(module, "num_key_value_groups", 1)
    p = Projected(query, key, value, position_bias, attention_mask, causal, scaling, groups=groups, cached=cached)
    first: Any = None
    if module.gives_v0 or module.takes_v0:
        first, _local.first = _local.first, None
        if first is None:
            raise RuntimeError(f"{type(module).__name__} calls attention several times in one pass: no single v0 fits.")
    v0 = _checked(module, first, p) if module.takes_v0 else None
    u = nest(module, partial(attend, dropout, further), ("map", "values", "scores"), v0)(p)
    if module.gives_v0:
        first.record(value)  # after attention: before it the order in which autograd sums gradients would change
    return u.transpose(1, 2).contiguous(), None


def _checked(module: Any, v0: Tensor, p: Projected) -> Tensor:
    """v0, if its shape and gradient fit this layer."""
    if v0.requires_grad and not torch.is_grad_enabled():
        raise RuntimeError(REENTRANT)
    lengths_fit = v0.shape[2] == p.v.shape[2] or (p.cached and "value_residual" not in module.methods)
    if v0.shape[:2] != p.v.shape[:2] or v0.shape[3:] != p.v.shape[3:] or not lengths_fit:
        raise RuntimeError(
            f"{type(module).__name__} needs the values of every layer in one shape: the first layer's are "
            f"{tuple(v0.shape)}, this layer's {tuple(p.v.shape)} (batch, heads, tokens, channels)."
        )
    return v0


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
