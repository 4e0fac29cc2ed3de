"""One attention body for every supported class: project -> attend, wrapped by the module's methods -> output.

The body knows no method by name. What methods take is read from the module: `methods`, their names in the order of
nesting, and one attribute per strength. The first layer's values come and go in a `Carry`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .methods import METHODS, NUMBER, Attend
from .projections import ATTENTIONS, AttentionSpec

SHOWN = 32  # learned numbers of a layer that print(model) lists; of more it shows the range


def is_traced(x: Tensor) -> bool:
    """Whether torch.jit.trace or torch.fx stands behind `x`: then no Python condition may depend on it."""
    return torch.jit.is_tracing() or not isinstance(x, Tensor)


class Carry:
    """The first layer's values in one attention call. Made inside the block's own checkpoint region, for one call.

    Args:
        v0: The first layer's values, (B, H, N, D); None in the first layer, whose values it records as `v`.
        checkpoint: Whether activations are recomputed, so that autograd does not keep q, k and v.
    """

    def __init__(self, v0: Tensor | None = None, checkpoint: bool = False):
        self.v0 = v0
        self.checkpoint = checkpoint
        self.v: Tensor | None = None

    def record(self, v: Tensor) -> None:
        """Keep v; after attention, since before it the order in which autograd sums up v's gradients would change.

        v is a view of q, k and v in one tensor: it is copied where nothing else would keep q and k alive. At once, not
        at the end of the block: there the MLP comes, where most memory is in use.
        """
        copied = not is_traced(v) and (self.checkpoint or not v.requires_grad)
        self.v = v.clone() if copied else v

    def first_values(self, v: Tensor) -> Tensor:
        """v0, to be used beside this layer's values v of the same shape.

        Raises:
            RuntimeError: If the shapes differ.
        """
        assert self.v0 is not None
        if not is_traced(v) and self.v0.shape != v.shape:
            raise RuntimeError(
                f"NeuTRENO needs the values of every layer in one shape: the first layer's are {tuple(self.v0.shape)}, "
                f"this layer's {tuple(v.shape)} (batch, heads, tokens, channels). Tokens or images were dropped, "
                "merged or added between the blocks, or the blocks were called on another input than the first one."
            )
        return self.v0


def run_attention(module: Any, spec: AttentionSpec, carry: Carry | None, x: Tensor, *args, **kwargs) -> Tensor:
    """Run `module` as timm does, with its methods around attention.

    Args:
        module: An attention module, or a block whose attention is inline, with `methods` and their strengths.
        spec: The row of ATTENTIONS for its timm class.
        carry: The first layer's values; None where no method needs them.
        x: Tokens as that class takes them, mostly (B, N, C).
        *args: Further inputs of that class: masks, position embeddings.
        **kwargs: Further inputs of that class, by name.
    """
    p = spec.project(module, x, *args, **kwargs)
    v0 = carry.first_values(p.v) if carry is not None and carry.v0 is not None else None
    u = nest(module, partial(spec.attend, module), ("map", "values", "scores"), v0)(p)
    if carry is not None and v0 is None:
        carry.record(p.v)
    y = spec.output(module, u, x, p)
    for name in module.methods:
        row = METHODS[name]
        if row.acts_on == "output":
            y = row.apply(y, p, **{strength: getattr(module, strength) for strength in row.strengths})
    return y


def nest(module: Any, attend: Attend, acting_on: tuple[str, ...], v0: Tensor | None = None) -> Attend:
    """`attend` inside those methods of `module` that act on the given things, in the order of METHODS.

    Args:
        module: A patched attention, or any other one, which has no methods.
        attend: Attention proper.
        acting_on: Values of `Method.acts_on`, without "output".
        v0: The first layer's values, (B, H, N, D), if one of the methods needs them.
    """
    for name in getattr(module, "methods", ()):
        row = METHODS[name]
        if row.acts_on in acting_on:
            strengths: dict[str, Any] = {}
            for strength in row.strengths:  # no comprehension: this runs in every layer of every pass
                w = getattr(module, strength)
                strengths[strength] = w if isinstance(w, NUMBER) else w.view(-1, 1, 1)  # (1 or H, 1, 1)
            if row.needs_v0:
                strengths["v0"] = v0
            attend = partial(row.apply, attend, **strengths)
    return attend


class PatchedAttention:
    """Mixed in before a timm attention class, or before a timm block whose attention is inline.

    Attributes:
        methods: Names in the order of METHODS. Each strength of theirs is an attribute of its own: a number, a
            parameter, or a tensor (see surgery.set_strengths).
        takes_carry: Whether its block must bring a Carry: it gives or takes the first layer's values.
    """

    timm_class: ClassVar[type[nn.Module]]
    methods: tuple[str, ...]
    takes_carry: bool

    def forward(self, x: Tensor, *args, carry: Carry | None = None, **kwargs) -> Tensor:
        if carry is None and self.takes_carry:
            raise RuntimeError(
                f"{type(self).__name__} was called on its own: it needs the first layer's values, which its block "
                "brings. Call the model, or its blocks in order, or unpatch() the model first."
            )
        return run_attention(self, ATTENTIONS[self.timm_class], carry, x, *args, **kwargs)

    def __prepare_scriptable__(self):
        raise RuntimeError(
            "torch.jit.script cannot compile a NeuTRENO model: its blocks take variable arguments. Use torch.export, "
            "torch.compile or torch.jit.trace, which work, or unpatch() the model first."
        )

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), describe(self))))  # type: ignore[misc]


def describe(attn: Any) -> str:
    """How `print(model)` shows a patched attention: its methods, their strengths, and whether it gives v0."""
    parts = [] if any(METHODS[name].needs_v0 for name in attn.methods) or not attn.takes_carry else ["gives v0"]
    for name in attn.methods:
        row = METHODS[name]
        shown = [f"{strength}={_shown(getattr(attn, strength), row.learnable)}" for strength in row.strengths]
        parts += shown or [name]
    return ", ".join(parts)


def _shown(strength: float | Tensor, learnable: tuple[str, ...]) -> str:
    if not isinstance(strength, Tensor):
        return f"{strength:g}"
    kind = f"learnable per {learnable[-1] if strength.numel() > 1 else 'layer'}"
    what = kind if isinstance(strength, nn.Parameter) else "tensor"
    if strength.is_meta:
        return what
    values = strength.detach().flatten()
    if len(values) > SHOWN:
        return f"{what}, {len(values)} numbers from {values.min():.4g} to {values.max():.4g}"
    return f"{what}, now {[round(value, 4) for value in values.tolist()]}"
