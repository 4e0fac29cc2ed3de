"""timm's Mlp with its GELU in place, where nobody can tell: it gives back the memory that v0 takes.

In inference v0 is alive until the last block, one (B, N, C) tensor above timm's peak. That peak lies in the MLP, where
the input and the output of the GELU are four such tensors each. In place there is one of the two, to the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import GELUTanh, Mlp
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

gelu_: Any = torch._C._nn.gelu_  # type: ignore[attr-defined]  # where F.gelu is from; torch.ops takes longer to call
PARTS = ("fc1", "act", "drop1", "norm", "fc2", "drop2")
APPROXIMATE = {nn.GELU: lambda act: act.approximate, GELUTanh: lambda act: "tanh"}


def forward_in_place(mlp: Any, x: Tensor) -> Tensor:
    """timm/layers/mlp.py, Mlp.forward, for an `mlp` that `is_unwatched`."""
    x = mlp.fc1(x)
    if type(x) is not Tensor or torch._C._functorch.is_functorch_wrapped_tensor(x):  # may not know gelu_
        return mlp.fc2(mlp.act(x))
    return mlp.fc2(gelu_(x, approximate=APPROXIMATE[type(mlp.act)](mlp.act)))


def is_unwatched(mlp: Any) -> bool:
    """Whether `mlp` is timm's own, does linear, GELU, linear without gradients, and no hook could see between them."""
    if torch.is_grad_enabled() or torch.jit.is_tracing() or type(mlp) is not Mlp or tuple(mlp._modules) != PARTS:
        return False
    modules: Any = mlp._modules.values()
    fc1, act, drop1, norm, _, drop2 = modules
    if type(fc1) is not nn.Linear or type(act) not in APPROXIMATE or type(norm) is not nn.Identity:
        return False
    for drop in (drop1, drop2):
        if type(drop) is not nn.Dropout or (drop.training and drop.p):
            return False
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return False
    for part in (mlp, fc1, act, drop1, norm, drop2):
        if part._forward_hooks or part._forward_pre_hooks or part._compiled_call_impl or "forward" in part.__dict__:
            return False
    return True
