"""Adapters: nothing changes until they are trained, what is merged computes the same, and none of them does nothing."""

from __future__ import annotations

import copy

import hosts
import pytest
import torch
from timm_neutreno_cli.config import Config
from timm_neutreno_cli.engine import lora
from timm_neutreno_cli.errors import UsageError

LORA = Config(trainable="lora", lora_rank=4)
ADAPTED = [  # fused qkv, separate q, k and v, two attentions in a block, values of another width, rotary embeddings
    ("vit", "neutreno"),
    ("deit_distilled", None),
    ("pe", "neutreno+featscale"),
    ("parallel_things", "value_residual"),
    ("sapiens2_gqa", "symmetric"),
    ("dinov3", "gfsa"),
    ("sam", "neutreno"),
]


def make(key: str, spec: str | None) -> torch.nn.Module:
    return hosts.patched(key, spec) if spec else hosts.build(key)


@torch.no_grad()
@pytest.mark.parametrize(("key", "spec"), ADAPTED)
def test_bit_equal_at_start_and_merged_equal_to_unmerged(key, spec):
    model = make(key, spec)
    x, names = hosts.images(), list(model.state_dict())
    classes = [type(module) for module in model.modules()]
    expected, before = model(x), copy.deepcopy(model.state_dict())
    lora.add(model, LORA)
    layers = lora.adapted(model)
    assert len(layers) >= 2 * len(model.blocks)
    assert torch.equal(model(x), expected)
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.02)
    moved = model(x)
    assert not torch.allclose(moved, expected, atol=1e-3)
    lora.merge(model)
    assert torch.allclose(model(x), moved, atol=2e-5)
    assert list(model.state_dict()) == names
    assert [type(module) for module in model.modules()] == classes
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.weight" for name in layers}


def test_every_adapter_gets_a_gradient_unless_it_is_frozen():
    """Both matrices of every layer: B at once, A as soon as B is not 0."""
    for key, spec in ADAPTED:
        model = make(key, spec)
        lora.add(model, LORA)
        for layer in lora.adapted(model).values():
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.02)
        model(hosts.images()).square().sum().backward()
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                unused = spec == "symmetric" and ".q_proj." in name
                assert parameter.requires_grad != unused, (key, name)
                assert unused or parameter.grad.abs().sum() > 0, (key, name)


def test_learned_strengths_and_what_was_frozen_stay_as_they_were():
    model = make("vit", "neutreno+gfsa")
    model.pos_embed.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    lora.add(model, LORA)
    after = {name.replace(".base_layer", ""): p.requires_grad for name, p in model.named_parameters()}
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("key", ["beit", "eva02"])
@pytest.mark.parametrize("spec", [None, "neutreno"])
def test_a_layer_that_is_read_and_not_called_is_refused(key, spec):
    with pytest.raises(UsageError, match=r"blocks.0.attn.qkv without calling .*--lora-targets attn.proj"):
        lora.add(make(key, spec), LORA)
    lora.add(make(key, spec), Config(trainable="lora", lora_rank=4, lora_targets=["attn.proj", "mlp.fc1"]))
