"""Peak memory of the whole model, counted in bytes of live tensors: deterministic, so that it can be asserted.

A unit is one (B, N, C) float32 tensor. In inference v0 is alive until the last block, one unit above timm's peak. In
training v0 costs nothing (autograd keeps q, k and v of block 0 anyway), and the sum that `proj` saves one unit per
layer.
"""

import copy

import pytest
import timm
import torch

import timm_neutreno
from timm_neutreno.cost import Counter

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
    with Counter() as counter, torch.set_grad_enabled(train):
        y = model(X)
        if train:
            y.square().sum().backward()
    model.zero_grad(set_to_none=True)
    return counter.peak


def test_inference_holds_v0_and_nothing_else():
    plain, model = models()
    assert peak(model.eval(), False) - peak(plain.eval(), False) == UNIT


def test_training_holds_one_tensor_per_layer():
    """SDPA saves its output and `proj` its input: without the term they are one tensor."""
    plain, model = models()
    assert peak(model.train(), True) - peak(plain.train(), True) <= DEPTH * UNIT


def test_learnable_fidelity_holds_one_difference_per_layer_more():
    """v0 - v, which the gradient of the fidelity needs."""
    plain, model = models()
    timm_neutreno.unpatch(model)
    timm_neutreno.patch(model, learnable_fidelity="head")
    assert peak(model.train(), True) - peak(plain.train(), True) <= 2 * DEPTH * UNIT


def test_methods_without_v0_hold_nothing_in_inference():
    for method in ("attnscale", "gfsa", "twicing", "xsa", "symmetric", "kernel"):
        plain, model = models()
        timm_neutreno.unpatch(model)
        timm_neutreno.patch(model, method)
        assert peak(model.eval(), False) == peak(plain.eval(), False), method


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
