"""One attention body for every supported class: project -> attend -> formula -> output.

The body calls a formula `mix(u, v)` and does not know which. `FidelityMix` is NeuTRENO's: in the first layer it records
v, in a later one it adds the fidelity term. A mix is made inside the block's own checkpoint region, for one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from . import fused
from .fidelity import add_fidelity_term
from .projections import RECIPES, Recipe, attend
from .recomputation import is_kept, recomputed

Mix = Callable[[Tensor, Tensor], Tensor]


def is_traced(x: Tensor) -> bool:
    """Whether torch.jit.trace or torch.fx stands behind `x`: then no Python condition may depend on it."""
    return torch.jit.is_tracing() or not isinstance(x, Tensor)


class FidelityMix:
    """The formula of one attention call.

    Args:
        v0: The first layer's values, (B, H, N, D); None in the first layer, where the mix records them as `v`.
        holder: The module that holds the layer's fidelity; None in the first layer. The fidelity is read in the call,
            inside that module's forward: outside it, a learnable one may be a shard (FSDP2).
        checkpoint: Whether activations are recomputed, so that autograd does not keep q, k and v.
    """

    def __init__(self, v0: Tensor | None, holder: nn.Module | None, checkpoint: bool = False):
        self.v0 = v0
        self.holder = holder
        self.checkpoint = checkpoint
        self.v: Tensor | None = None

    def record(self, v: Tensor) -> None:
        """v is a view of q, k and v in one tensor: copy it where nothing else would keep q and k alive.

        At once, not at the end of the block: there the MLP comes, where most memory is in use.
        """
        copied = not is_traced(v) and (self.checkpoint or not v.requires_grad)
        self.v = v.clone() if copied else v

    def __call__(self, u: Tensor, v: Tensor) -> Tensor:
        if self.v0 is None:
            self.record(v)
            return u
        if not is_traced(v) and self.v0.shape != v.shape:
            raise RuntimeError(
                f"NeuTRENO needs the values of every layer in one shape: the first layer's are {tuple(self.v0.shape)}, "
                f"this layer's {tuple(v.shape)} (batch, heads, tokens, channels). Tokens or images were dropped, "
                "merged or added between the blocks, or the blocks were called on another input than the first one."
            )
        return add_fidelity_term(u, v, self.v0, self.holder.fidelity)  # type: ignore[union-attr, arg-type]


def neutreno_attention(module: nn.Module, recipe: Recipe, mix: Mix, x: Tensor, *args, **kwargs) -> Tensor:
    """Run `module` as timm does, with `mix` applied to its attention output and values.

    Args:
        module: An attention module, or a block whose attention is inline, of the class that `recipe` is for.
        recipe: Its row of `RECIPES`.
        mix: The formula, (u, v) -> u, each (B, H, N, D).
        x: Tokens as that class takes them, mostly (B, N, C).
        *args: Further inputs of that class: masks, position embeddings.
        **kwargs: Likewise.
    """
    p = recipe.project(module, x, *args, **kwargs)
    if fused.is_enabled() and recipe.attend is attend and isinstance(mix, FidelityMix) and not is_traced(x):
        u = fused.fused_attention(module, p, mix)
        if u is not None:
            return recipe.output(module, u, x, p)
    attended = recipe.attend(module, p)
    u = mix(attended, p.v)
    if not is_kept(attended) or not isinstance(mix, FidelityMix) or mix.v0 is None:
        return recipe.output(module, u, x, p)
    with recomputed(u, add_fidelity_term, attended, p.v, mix.v0, mix.holder.fidelity):  # type: ignore[union-attr]
        return recipe.output(module, u, x, p)


class NeutrenoAttention:
    """Mixed in before a timm attention class. Holds `fidelity`, which the block hands over inside a mix."""

    timm_class: ClassVar[type[nn.Module]]
    fidelity: float | Tensor | None

    def forward(self, x: Tensor, *args, mix: Mix | None = None, **kwargs) -> Tensor:
        if mix is None:
            raise RuntimeError(
                f"{type(self).__name__} was called on its own: it needs the first layer's values, which its block "
                "brings. Call the model, or its blocks in order, or unpatch() the model first."
            )
        return neutreno_attention(self, RECIPES[self.timm_class], mix, x, *args, **kwargs)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), describe_fidelity(self.fidelity))))  # type: ignore[misc]


def describe_fidelity(fidelity: float | Tensor | None) -> str:
    """How `print(model)` shows a layer's fidelity."""
    if fidelity is None:
        return "gives v0"
    if not isinstance(fidelity, Tensor):
        return f"fidelity={fidelity:g}"
    kind = "layer" if fidelity.numel() == 1 else "head"
    if fidelity.is_meta:
        return f"fidelity=learnable per {kind}"
    return f"fidelity=learnable per {kind}, now {[round(value, 4) for value in fidelity.flatten().tolist()]}"
