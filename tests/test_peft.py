"""PEFT from Python: adapters and methods in either order, and what is said where they do not go together."""

from __future__ import annotations

import hosts
import pytest
import timm
import torch

import timm_neutreno
from timm_neutreno.hub import save_pretrained

peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")


def adapters(model: torch.nn.Module) -> torch.nn.Module:
    config = peft.LoraConfig(r=4, target_modules=["attn.qkv", "attn.proj"])
    return peft.get_peft_model(model, config).eval()


def patch_first() -> torch.nn.Module:
    return adapters(timm_neutreno.patch(hosts.build("vit"), fidelity=0.3, learnable_fidelity="head"))


def adapters_first() -> torch.nn.Module:
    return timm_neutreno.patch(adapters(hosts.build("vit")), fidelity=0.3, learnable_fidelity="head")


def adapters_first_inner() -> torch.nn.Module:
    model = adapters(hosts.build("vit"))
    timm_neutreno.patch(model.get_base_model(), fidelity=0.3, learnable_fidelity="head")
    return model


ORDERS = [patch_first, adapters_first, adapters_first_inner]


@pytest.mark.parametrize("make", ORDERS)
def test_in_either_order_it_starts_bit_equal_trains_merges_and_is_saved(make, tmp_path):
    x, model = hosts.images(), make()
    expected = timm_neutreno.patch(hosts.build("vit"), fidelity=0.3, learnable_fidelity="head")(x)
    assert torch.equal(model(x), expected)
    for strength in timm_neutreno.strengths(model).values():
        strength.requires_grad_(True)  # PEFT freezes all but its own
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.05)
    model.get_base_model().set_grad_checkpointing(True)
    for _ in range(2):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = model(x)
    assert not torch.allclose(moved, expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"adapters of PEFT.*merge_and_unload"):
        save_pretrained(model, tmp_path / "refused")
    merged = model.merge_and_unload()
    assert type(merged).__name__ == "NeutrenoVisionTransformer"
    assert torch.allclose(merged(x), moved, atol=1e-5)
    save_pretrained(merged, tmp_path / "merged")
    again = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    assert torch.equal(again(x), merged(x))


@pytest.mark.parametrize("make", ORDERS)
def test_patching_twice_is_said_through_the_wrapper_and_inside(make):
    model = make()
    for place in (model, model.get_base_model()):
        with pytest.raises(ValueError, match="The model is patched already"):
            timm_neutreno.patch(place)
    x = hosts.images()
    timm_neutreno.unpatch(model)
    assert torch.equal(model(x), hosts.build("vit")(x))
