"""Peak memory of the whole model, counted in bytes of live tensors: deterministic, so that it can be asserted.

A unit is one (B, N, C) float32 tensor. In inference v0 is alive until the last block, one unit above timm's peak, and
the GELU in place gives back four. In training v0 costs nothing (autograd keeps q, k and v of block 0 anyway), and the
sum that `proj` would save is made anew from what SDPA saves.
"""

import copy

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import timm_neutreno
from timm_neutreno.projections import _fused_qkv
from timm_neutreno.smoothing.cost import _Counter

BATCH, TOKENS, CHANNELS, DEPTH = 4, 50, 96, 4
UNIT = BATCH * TOKENS * CHANNELS * 4
X = torch.randn(BATCH, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def models(**kwargs):
    plain = timm.create_model(
        "vit_tiny_patch16_224", img_size=56, patch_size=8, embed_dim=CHANNELS, num_heads=3, depth=DEPTH, **kwargs
    )
    return plain, timm_neutreno.patch(copy.deepcopy(plain))


def peak(model, train: bool) -> int:
    """Bytes, beyond weights and images."""
    with _Counter() as counter, torch.set_grad_enabled(train):
        y = model(X)
        if train:
            y.square().sum().backward()
    model.zero_grad(set_to_none=True)
    return counter.peak


def test_inference_takes_less_than_timm():
    """timm's peak is in the MLP; without one of its two widest tensors, it is elsewhere."""
    plain, model = models()
    assert peak(model.eval(), False) < peak(plain.eval(), False)


def test_inference_holds_v0_and_nothing_else():
    plain, model = models()
    for block in (*plain.blocks, *model.blocks):
        block.mlp.act.register_forward_hook(lambda *_: None)
    assert peak(model.eval(), False) - peak(plain.eval(), False) == UNIT


def test_training_holds_nothing_more():
    plain, model = models()
    assert peak(model.train(), True) == peak(plain.train(), True)


def test_learnable_fidelity_holds_one_difference_per_layer():
    """v0 - v, which the gradient of the fidelity needs; the one in work at the peak is not kept, but v0's gradient."""
    plain, model = models()
    timm_neutreno.unpatch(model)
    timm_neutreno.patch(model, learnable_fidelity="head")
    assert peak(model.train(), True) - peak(plain.train(), True) <= DEPTH * UNIT


def test_unfused_attention_holds_v0_only():
    """`proj` saves the sum in place of P v, which nothing else keeps; the temporary fits under the MLP's peak."""
    plain, model = models()
    for module in (*plain.modules(), *model.modules()):
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    assert peak(model.train(), True) - peak(plain.train(), True) <= UNIT


def test_checkpointing_holds_v0_and_its_gradient():
    plain, model = models()
    for m in (plain, model):
        m.train().set_grad_checkpointing()
    assert peak(model, True) - peak(plain, True) <= 4 * UNIT


@pytest.mark.parametrize("train", [False, True])
def test_the_counter_sees_a_tensor_that_is_kept(train):
    """Else the tests above could not fail."""
    _, model = models()
    before = peak(model.train(train), train)
    kept = []
    model.blocks[0].register_forward_hook(lambda module, inputs, output: kept.append(output.detach().clone()))
    assert peak(model, train) - before == UNIT


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def timm_qkv(qkv, num_heads):
    B, N, _ = qkv.shape
    return qkv.reshape(B, N, 3, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


@pytest.mark.parametrize(("function", "copies"), [(timm_qkv, ["stack", "clone"]), (_fused_qkv, ["stack"])])
def test_gradients_of_q_k_and_v_are_written_once(function, copies):
    qkv = torch.randn(2, 5, 36, requires_grad=True)
    parts = function(qkv, 3)
    gradients = [torch.randn(2, 5, 3, 4).transpose(1, 2) for _ in parts]
    with Operations() as operations:
        torch.autograd.grad(parts, qkv, gradients)
    assert [name for name in operations.names if name in ("stack", "clone", "copy_", "cat", "contiguous")] == copies
    for ours, timms in zip(parts, timm_qkv(qkv, 3), strict=True):
        assert (ours.data_ptr(), ours.shape, ours.stride()) == (timms.data_ptr(), timms.shape, timms.stride())
