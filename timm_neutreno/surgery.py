"""patch and unpatch: turn a timm ViT into a NeuTRENO ViT in place, and back.

Attentions, blocks and the model get a subclass of their own timm class; parameters, keys and submodules stay. Each
block runs its own checkpoint region with v0 as an explicit input (of block 0: output), because an object shared across
regions gives silently wrong gradients when activations are recomputed.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, ClassVar

import torch
from timm.models import checkpoint
from torch import Tensor, nn

from .attention import FidelityMix, NeutrenoAttention, describe_fidelity
from .blocks import BLOCK_KINDS
from .fidelity import DEFAULT_FIDELITY, check_fidelity
from .first_values import FirstValues
from .support import check_patchable, find_layers
from .twins import record_fidelity, record_surgery

LEARNABLE = (None, "layer", "head")


class NeutrenoBlock:
    """Mixed in before a timm block class: brings the first block's values to the attention of the later ones."""

    timm_class: ClassVar[type[nn.Module]]
    first_values: FirstValues
    position: int  # among the blocks
    is_first: bool  # gives the values; a flag of its own, since a guard on `position` would compile every block anew
    is_last: bool

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        shared = self.first_values
        v0 = () if self.is_first else shared.read(self)
        if shared.checkpoint:
            # every tensor is an explicit positional input, so that reentrant checkpointing sees them all
            run = partial(self._run_packed, len(v0), tuple(kwargs))
            out = checkpoint(run, x, *v0, *args, *kwargs.values())
        else:
            out = self._run(v0, x, *args, **kwargs)
        if self.is_first:
            out, *values = out
            shared.write(tuple(values))
        if self.is_last:
            shared.end(None)
        return out

    def _run_packed(self, num_values: int, names: tuple[str, ...], x: Tensor, *inputs):
        v0, args = inputs[:num_values], inputs[num_values:]
        args, kwargs = args[: len(args) - len(names)], dict(zip(names, args[len(args) - len(names) :], strict=True))
        return self._run(v0, x, *args, **kwargs)

    def _run(self, v0: tuple[Tensor, ...], x: Tensor, *args, **kwargs):
        kind = BLOCK_KINDS[self.timm_class]
        holders = kind.attentions(self)
        if not self.is_first:
            mixes = [FidelityMix(value, holder) for value, holder in zip(v0, holders, strict=True)]
            return kind.run(self, self.timm_class, mixes, x, *args, **kwargs)
        mixes = [FidelityMix(None, None, self.first_values.checkpoint) for _ in holders]
        y = kind.run(self, self.timm_class, mixes, x, *args, **kwargs)
        return (y, *(mix.v for mix in mixes))

    def __prepare_scriptable__(self):
        raise RuntimeError(
            "torch.jit.script cannot compile a NeuTRENO model: its blocks take variable arguments. Use torch.export, "
            "torch.compile or torch.jit.trace, which work, or unpatch() the model first."
        )


class NeutrenoModel:
    """Mixed in before the timm class that owns the blocks: bounds the life of v0, and owns checkpointing."""

    timm_class: ClassVar[type[nn.Module]]
    first_values: FirstValues

    def forward_features(self, *args, **kwargs):
        outer = self.first_values.begin()
        try:
            return super().forward_features(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.first_values.end(outer)

    def forward_intermediates(self, *args, **kwargs):
        outer = self.first_values.begin()
        try:
            return super().forward_intermediates(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.first_values.end(outer)

    @property
    def grad_checkpointing(self) -> bool:
        """Always False, so that timm does not wrap the blocks: setting it True makes the blocks checkpoint themselves.

        `model.first_values.checkpoint` tells whether they do.
        """
        return False

    @grad_checkpointing.setter
    def grad_checkpointing(self, enable: bool) -> None:
        self.first_values.checkpoint = enable


class NeutrenoInlineBlock(NeutrenoBlock):
    """A block whose attention is inline, so that it holds the fidelity itself."""

    fidelity: float | Tensor | None

    def extra_repr(self) -> str:
        return describe_fidelity(self.fidelity)


@cache
def neutreno_class(mixin: type, timm_class: Any) -> Any:
    """The NeuTRENO subclass of a timm class. Carries no state; pickles by name of its parents."""

    def __reduce_ex__(self, protocol):
        reduced: Any = timm_class.__reduce_ex__(self, protocol)
        return _rebuild, (mixin, timm_class), *reduced[2:]

    name = f"Neutreno{timm_class.__name__}"
    namespace = {"timm_class": timm_class, "__reduce_ex__": __reduce_ex__, "__module__": __name__}
    return type(name, (mixin, timm_class), namespace)


def _rebuild(mixin: type, timm_class: Any) -> nn.Module:
    cls = neutreno_class(mixin, timm_class)
    return cls.__new__(cls)


def patch(model: nn.Module, fidelity: float = DEFAULT_FIDELITY, learnable_fidelity: str | None = None) -> nn.Module:
    """Turn a timm ViT into its NeuTRENO twin, in place. Weights, state_dict keys and hooks stay.

    Args:
        model: A timm ViT, or a module around one (features_only, a classifier with an encoder).
        fidelity: The weight of the fidelity term in every layer but the first, the paper's lambda-tilde.
        learnable_fidelity: "layer" or "head" make it a parameter, (1,) or (H,), that starts at `fidelity`; start at 0
            to leave the model's outputs exactly as they were. None: a constant outside the state_dict.

    Returns:
        The model.

    Raises:
        UnsupportedModelError: If a layer cannot be patched; the model is left as it was.
        ValueError: If `fidelity` is not finite, `learnable_fidelity` unknown, or the model patched already.
    """
    fidelity = check_fidelity(fidelity)
    if learnable_fidelity not in LEARNABLE:
        raise ValueError(f"learnable_fidelity must be None, 'layer' or 'head', got {learnable_fidelity!r}.")
    if is_patched(model):
        raise ValueError("The model is patched already. Use set_fidelity() to change its fidelity, or unpatch() first.")
    check_patchable(model)
    for owner in find_layers(model):
        _patch_owner(owner, fidelity, learnable_fidelity)
        record_surgery(owner, fidelity, learnable_fidelity)
    record_surgery(model, fidelity, learnable_fidelity)
    return model


def _patch_owner(owner: Any, fidelity: float, learnable: str | None) -> None:
    shared = FirstValues(checkpoint=bool(owner.__dict__.pop("grad_checkpointing", False)))
    blocks = list(owner.blocks)
    for position, block in enumerate(blocks):
        holders = BLOCK_KINDS[type(block)].attentions(block)
        block.first_values, block.position = shared, position
        block.is_first, block.is_last = position == 0, position == len(blocks) - 1
        for holder in holders:
            _set_start(holder, fidelity if position else None, learnable)
            if holder is not block:
                _become(NeutrenoAttention, holder)
        _become(NeutrenoInlineBlock if block in holders else NeutrenoBlock, block)
    owner.first_values = shared
    _become(NeutrenoModel, owner)


def _become(mixin: Any, module: Any) -> None:
    module.__class__ = neutreno_class(mixin, module.__class__)


def _set_start(holder: Any, fidelity: float | None, learnable: str | None) -> None:
    if fidelity is None or learnable is None:
        holder.fidelity = fidelity
        return
    weight = next(p for p in holder.parameters() if p.is_floating_point())
    size = holder.num_heads if learnable == "head" else 1
    holder.fidelity = nn.Parameter(torch.full((size,), fidelity, device=weight.device, dtype=weight.dtype))


def unpatch(model: nn.Module) -> nn.Module:
    """Undo `patch`: the model has its timm classes again, and computes as before. Learned fidelities are dropped.

    Raises:
        ValueError: If the model is not patched.
    """
    for owner in _patched_owners(model):
        for block in owner.blocks:
            for holder in BLOCK_KINDS[block.timm_class].attentions(block):
                del holder.fidelity
                if holder is not block:
                    holder.__class__ = holder.timm_class
            del block.first_values, block.position, block.is_first, block.is_last
            block.__class__ = block.timm_class
        shared = owner.first_values
        del owner.first_values
        owner.__class__ = owner.timm_class
        owner.grad_checkpointing = shared.checkpoint
        record_surgery(owner, None, None)
    record_surgery(model, None, None)
    return model


def is_patched(model: nn.Module) -> bool:
    """Whether the model, or a module inside it, is a NeuTRENO model."""
    return any(isinstance(module, NeutrenoModel) for module in model.modules())


def set_fidelity(model: nn.Module, fidelity: float) -> None:
    """Set the fidelity of every layer but the first; learnable ones are filled in place.

    Cheap enough to call before every step. A model under torch.compile is compiled again for every new constant; only
    learnable fidelities change without.

    Raises:
        ValueError: If the model is not patched, or `fidelity` is not finite.
    """
    fidelity = check_fidelity(fidelity)
    for owner in _patched_owners(model):
        for holder in fidelity_holders(owner):
            if isinstance(holder.fidelity, Tensor):
                with torch.no_grad():
                    holder.fidelity.fill_(fidelity)
            else:
                holder.fidelity = fidelity
    for module in model.modules():
        record_fidelity(module, fidelity)


def fidelity_holders(owner: Any) -> list[Any]:
    """The attention modules (or blocks with inline attention) of a patched model that have a fidelity, in order."""
    holders = [h for block in owner.blocks for h in BLOCK_KINDS[block.timm_class].attentions(block)]
    return [holder for holder in holders if holder.fidelity is not None]


def _patched_owners(model: nn.Module) -> list[Any]:
    owners: list[Any] = [module for module in model.modules() if isinstance(module, NeutrenoModel)]
    if not owners:
        raise ValueError("The model is not patched: call timm_neutreno.patch(model), or create a neutreno_* model.")
    return owners
