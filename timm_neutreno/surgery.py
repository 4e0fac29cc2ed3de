"""patch and unpatch: give a timm ViT the attention of one or more methods in place, and take it back.

Attentions get a subclass of their own timm class; parameters, keys and submodules stay. Where a method needs the first
layer's values, blocks and model get one too: each block runs its own checkpoint region with v0 as an explicit input
(of block 0: output), because an object shared across regions gives silently wrong gradients when activations are
recomputed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any, ClassVar

import torch
from timm.models import checkpoint
from torch import Tensor, nn

from .attention import Carry, PatchedAttention
from .blocks import BLOCKS
from .first_values import FirstValuesStore
from .methods import METHODS, STRENGTHS, canonical, check_strength, resolve, split
from .names import record_model_args, record_strengths
from .projections import output_width, query_parameters
from .support import check_module, check_patchable, find_vits


class NeutrenoBlock:
    """Mixed in before a timm block class: brings the first block's values to the attentions of the later ones."""

    timm_class: ClassVar[type[nn.Module]]
    first_values: FirstValuesStore
    index: int  # among the blocks
    is_first: bool  # gives the values; a flag of its own, since a guard on `index` would compile every block anew
    is_last: bool
    takes_v0: bool  # False in the first block, and where `layers` leaves the block out

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        shared = self.first_values
        v0 = shared.read(self) if self.takes_v0 else ()
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
            shared.forget()
        return out

    def _run_packed(self, num_values: int, names: tuple[str, ...], x: Tensor, *inputs):
        v0, args = inputs[:num_values], inputs[num_values:]
        args, kwargs = args[: len(args) - len(names)], dict(zip(names, args[len(args) - len(names) :], strict=True))
        return self._run(v0, x, *args, **kwargs)

    def _run(self, v0: tuple[Tensor, ...], x: Tensor, *args, **kwargs):
        spec = BLOCKS[self.timm_class]
        if self.takes_v0:
            return spec.run(self, self.timm_class, list(map(Carry, v0)), x, *args, **kwargs)
        if not self.is_first:
            return self.timm_class.forward(self, x, *args, **kwargs)
        carries = [Carry(checkpoint=self.first_values.checkpoint) for _ in spec.attentions(self)]
        y = spec.run(self, self.timm_class, carries, x, *args, **kwargs)
        return (y, *(carry.v for carry in carries))


class NeutrenoInlineBlock(NeutrenoBlock, PatchedAttention):
    """A block whose attention is inline, so that it holds the methods itself."""

    def _run(self, v0: tuple[Tensor, ...], x: Tensor, *args, **kwargs):
        if self.takes_v0 or self.is_first:
            return super()._run(v0, x, *args, **kwargs)
        return PatchedAttention.forward(self, x, *args, **kwargs)


class NeutrenoModel:
    """Mixed in before the timm class that owns the blocks: bounds the life of v0, and owns checkpointing."""

    timm_class: ClassVar[type[nn.Module]]
    first_values: FirstValuesStore

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


@cache
def neutreno_class(mixin: type, timm_class: Any) -> Any:
    """The NeuTRENO subclass of a timm class. Carries no state; pickles by name of its parents."""

    def __reduce_ex__(self, protocol):
        reduced: Any = timm_class.__reduce_ex__(self, protocol)
        return _new, (mixin, timm_class), *reduced[2:]

    name = f"Neutreno{timm_class.__name__}"
    namespace = {"timm_class": timm_class, "__reduce_ex__": __reduce_ex__, "__module__": __name__}
    return type(name, (mixin, timm_class), namespace)


def _new(mixin: type, timm_class: Any) -> nn.Module:
    cls = neutreno_class(mixin, timm_class)
    return cls.__new__(cls)


def swap_class(mixin: Any, module: Any) -> None:
    module.__class__ = neutreno_class(mixin, module.__class__)


# --- patch ----------------------------------------------------------------------------------------------------------


def patch(
    model: nn.Module, method: str = "neutreno", *, layers: Sequence[int] | None = None, **options: Any
) -> nn.Module:
    """Give a timm ViT the attention of a method, in place. Weights, state_dict keys and hooks stay.

        patch(model)                                           # NeuTRENO, fidelity 0.6: made to be trained with
        patch(model, fidelity=0.05, layers=[-4, -3, -2, -1])   # weak, in the last blocks only
        patch(model, "neutreno+featscale", fidelity=0.4, learnable_fidelity="head")

    A trained model at NeuTRENO's 0.6 computes something else than before until it is trained again; a strength of 0
    leaves it as it was.

    Args:
        model: A timm ViT, or a module around one or several (features_only, a classifier with an encoder).
        method: Names from METHODS joined by "+", in any order.
        layers: Indices of the blocks where the methods act, negative ones from the end; None for all. The first layer's
            values come from block 0 all the same.
        **options: `<strength>`: the number of every layer. `learnable_<strength>`: "layer", "head" or "channel" make it
            a parameter that starts there, (1,), (H,) or (C,); False keeps a constant outside the state_dict; None
            does what the paper does. METHODS has the names and defaults.

    Returns:
        The model.

    Raises:
        UnsupportedModelError: If a layer cannot be patched; the model is left as it was.
        ValueError: If an option is unknown or has no allowed value, no layer is left, or the model is patched already.
        TypeError: If `model` is no module.
    """
    method, resolved = canonical(method), resolve(method, options)
    if is_patched(model):
        raise ValueError(
            "The model is patched already. Use set_strengths() to change its strengths, or unpatch() first."
        )
    check_patchable(model, method)
    vits = find_vits(model)
    chosen = [check_layers(layers, len(vit.blocks), method) for vit in vits]
    arguments = {"method": method, **({} if layers is None else {"layers": list(layers)}), **resolved}
    for vit, indices in zip(vits, chosen, strict=True):
        _patch_vit(vit, split(method), indices, resolved)
    for module in _around(model, vits):
        record_model_args(module, arguments)
    return model


def _around(model: nn.Module, vits: list[Any]) -> list[nn.Module]:
    """The modules that hold one of the ViTs, outermost first, and the ViTs themselves."""
    return [module for module in model.modules() if any(inner in vits for inner in module.modules())]


def check_layers(layers: Sequence[int] | None, depth: int, method: str) -> set[int]:
    """The blocks where a method acts, counted from 0."""
    wanted = range(depth) if layers is None else layers
    if outside := [index for index in wanted if not isinstance(index, int) or not -depth <= index < depth]:
        raise ValueError(f"layers={list(wanted)}: there is no block {outside[0]!r} among {depth}; -1 is the last one.")
    indices = {index % depth for index in wanted}
    acting = indices if any(not METHODS[name].needs_v0 for name in split(method)) else indices - {0}
    if not acting:
        raise ValueError(
            f"layers={list(wanted)} leaves no layer for {method} to act in"
            f"{': in the first one v0 - v is 0' if indices else ''}. Name more layers, or leave `layers` out."
        )
    return indices


def _patch_vit(vit: Any, names: tuple[str, ...], indices: set[int], options: dict[str, Any]) -> None:
    needs_v0 = any(METHODS[name].needs_v0 for name in names)
    shared = FirstValuesStore(checkpoint=bool(vit.__dict__.pop("grad_checkpointing", False))) if needs_v0 else None
    blocks = list(vit.blocks)
    for index, block in enumerate(blocks):
        here = tuple(n for n in names if index in indices and (index or not METHODS[n].needs_v0))
        takes_v0 = any(METHODS[name].needs_v0 for name in here)
        for attn in BLOCKS[type(block)].attentions(block):
            if here or (needs_v0 and index == 0) or (needs_v0 and attn is block):
                _patch_attention(attn, here, takes_v0 or (needs_v0 and index == 0), options)
                if attn is not block or not needs_v0:
                    swap_class(PatchedAttention, attn)
        if needs_v0:
            block.first_values, block.index, block.takes_v0 = shared, index, takes_v0
            block.is_first, block.is_last = index == 0, index == len(blocks) - 1
            inline = BLOCKS[type(block)].attentions(block)[0] is block
            swap_class(NeutrenoInlineBlock if inline else NeutrenoBlock, block)
    if needs_v0:
        vit.first_values = shared
        swap_class(NeutrenoModel, vit)


def _patch_attention(attn: Any, names: tuple[str, ...], takes_carry: bool, options: dict[str, Any]) -> None:
    attn.methods, attn.takes_carry = names, takes_carry
    for name in names:
        for strength in METHODS[name].strengths:
            setattr(attn, strength, _start(attn, options[strength], options[f"learnable_{strength}"]))
    if "symmetric" in names:  # unused from here on: DistributedDataParallel asks for a gradient of what can have one
        attn.frozen = tuple(name for name, parameter in query_parameters(attn).items() if parameter.requires_grad)
        for name in attn.frozen:
            attn.get_parameter(name).requires_grad_(False)


def _start(attn: Any, value: float, learnable: str | None) -> float | nn.Parameter:
    if not learnable:
        return value
    weight = next(p for p in attn.parameters() if p.is_floating_point())
    size = {"layer": lambda: 1, "head": lambda: attn.num_heads, "channel": lambda: output_width(attn)}[learnable]()
    return nn.Parameter(torch.full((size,), value, device=weight.device, dtype=weight.dtype))


def unpatch(model: nn.Module) -> nn.Module:
    """Undo `patch`: the model has its timm classes again, and computes as before. Learned strengths are dropped.

    Raises:
        ValueError: If the model is not patched.
    """
    vits = _patched_vits(model)
    for vit in vits:
        for block in vit.blocks:
            is_neutreno = isinstance(block, NeutrenoBlock)
            for attn in BLOCKS[getattr(block, "timm_class", type(block))].attentions(block):
                if isinstance(attn, PatchedAttention):
                    _unpatch_attention(attn)
            if is_neutreno:
                del block.first_values, block.index, block.takes_v0, block.is_first, block.is_last
                block.__class__ = block.timm_class
        if isinstance(vit, NeutrenoModel):
            shared = vit.first_values
            del vit.first_values
            vit.__class__ = vit.timm_class  # type: ignore[assignment]
            vit.grad_checkpointing = shared.checkpoint
    for module in _around(model, vits):
        record_model_args(module, None)
    return model


def _unpatch_attention(attn: Any) -> None:
    for name in attn.methods:
        for strength in METHODS[name].strengths:
            delattr(attn, strength)
    for name in attn.__dict__.pop("frozen", ()):
        attn.get_parameter(name).requires_grad_(True)
    del attn.methods, attn.takes_carry
    if not isinstance(attn, NeutrenoBlock):
        attn.__class__ = attn.timm_class


def is_patched(model: nn.Module) -> bool:
    """Whether `patch`, of this package or of its hf, was called on the model, or on a module inside it."""
    check_module(model)
    return any(map(has_methods, model.modules()))


def has_methods(module: nn.Module) -> bool:
    """Whether it is an attention that `patch`, of this package or of its hf, has changed."""
    return isinstance(module, PatchedAttention) or {"methods", "takes_v0"} <= module.__dict__.keys()


def _patched_vits(model: nn.Module) -> list[Any]:
    vits = [vit for vit in find_vits(model) if is_patched(vit)]
    if not vits and is_patched(model):
        raise ValueError("The model is one of transformers: use timm_neutreno.hf.unpatch(model).")
    if not vits:
        raise ValueError("The model is not patched: call timm_neutreno.patch(model), or create a neutreno_* model.")
    return vits


# --- strengths ------------------------------------------------------------------------------------------------------


def strengths(model: nn.Module) -> dict[str, float | Tensor]:
    """Every strength of a model by dotted name, such as "blocks.3.attn.fidelity": a number, parameter or tensor."""
    return {f"{name}.{strength}": getattr(attn, strength) for name, attn, strength in _each_strength(model)}


def _each_strength(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    check_module(model)
    for name, module in model.named_modules():
        if has_methods(module):
            for method in module.methods:
                for strength in METHODS[method].strengths:
                    yield name, module, strength


def set_strengths(model: nn.Module, *, as_tensors: bool | None = None, **values: float) -> None:
    """Set strengths by name, each in every layer that has it; learnable ones are filled in place.

    Cheap enough to call before every step. A model under torch.compile is compiled anew for every new number, and not
    for a new value in a parameter or tensor.

    Args:
        model: A patched model.
        as_tensors: True makes constants tensors, (1,), on their layer's device; False makes them numbers again; None
            leaves each as it is.
        **values: Strength and number, such as fidelity=0.3.

    Raises:
        ValueError: If the model is not patched or has no such strength, or a value is not allowed.
    """
    checked = {name: check_strength(name, value) for name, value in values.items() if name in STRENGTHS}
    places = [(attn, strength) for _, attn, strength in _each_strength(model)]
    present = dict.fromkeys(strength for _, strength in places)
    if missing := [name for name in values if name not in present]:
        _patched_vits(model)
        raise ValueError(f"the model has no strength {missing[0]!r}. It has: {', '.join(present) or 'none'}.")
    for attn, strength in places:
        _set(attn, strength, checked.get(strength), as_tensors)
    for module in model.modules():
        record_strengths(module, checked)


def _set(attn: Any, strength: str, number: float | None, as_tensors: bool | None) -> None:
    old = getattr(attn, strength)
    if isinstance(old, nn.Parameter) or (isinstance(old, Tensor) and as_tensors is not False):
        if number is not None:
            with torch.no_grad():
                old.fill_(number)
        return
    new = float(old) if number is None else number
    as_tensors = as_tensors and bool(METHODS[STRENGTHS[strength]].learnable)  # a share of heads is a number
    weight = next(p for p in attn.parameters() if p.is_floating_point())
    setattr(attn, strength, torch.full((1,), new, device=weight.device, dtype=weight.dtype) if as_tensors else new)


def set_fidelity(model: nn.Module, fidelity: float) -> None:
    """set_strengths(model, fidelity=fidelity): the short form for NeuTRENO. Errors as of `set_strengths`."""
    set_strengths(model, fidelity=fidelity)
