"""Models of transformers against oracles that never see our code, in float64."""

from itertools import product

import pytest
import torch
from hf_models import MODELS, TEXT_MODELS, build, gradients, inputs, output
from hf_oracle import map_oracle, projection_oracle
from transformers import (
    BertConfig,
    BertModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    T5Config,
    T5EncoderModel,
)

import timm_neutreno
from timm_neutreno import hf

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_those_of_the_formula(name):
    plain, patched, x = build(name), hf.patch(build(name), fidelity=0.4), inputs(name)
    with projection_oracle(plain, name, 0.4):
        expected, wanted = output(plain, x), gradients(plain, x)
    assert (expected - output(plain, x)).abs().max() > 1e-3  # the term does something
    torch.testing.assert_close(output(patched, x), expected, **CLOSE)
    found = gradients(patched, x)
    assert found.keys() == wanted.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[key], **CLOSE)


@pytest.mark.parametrize("name", MODELS)
def test_strength_0_and_unpatch_give_the_models_own_bits_and_keys(name):
    model, x = build(name), inputs(name)
    before, keys, modules = output(model, x), set(model.state_dict()), repr(model)
    hf.patch(model, fidelity=0.0)
    assert torch.equal(output(model, x), before)
    assert set(model.state_dict()) == keys
    timm_neutreno.set_fidelity(model, 0.4)
    assert not torch.equal(output(model, x), before)
    hf.unpatch(model)
    assert torch.equal(output(model, x), before)
    assert repr(model) == modules
    assert not timm_neutreno.is_patched(model)
    assert model.config._attn_implementation == "sdpa"
    config = model.config.to_dict()
    assert "timm_neutreno" not in config
    assert "attn_implementation" not in config


SPECS = {
    "gfsa": {"gfsa": 0.3},
    "twicing": {"twicing": 1.0},
    "laplacian": {"laplacian": 0.5},
    "xsa": {"xsa": 0.7},
    "value_residual": {"value_residual": 0.5},
    "kernel": {},
    "symmetric": {},
    "neutreno+gfsa+kernel": {"fidelity": 0.4, "gfsa": 0.3},
    "neutreno+symmetric+xsa": {"fidelity": 0.4, "xsa": 0.5},
}


# attnscale averages over tokens, which causal attention hides: tests/hf/test_misuse.py
@pytest.mark.parametrize(("name", "method"), [*product(["llama", "vit"], SPECS), ("vit", "attnscale")])
def test_every_method_is_its_formula(name, method):
    strengths = SPECS.get(method, {"attnscale": 0.3})
    order = "+".join(n for n in timm_neutreno.METHODS if n in method.split("+"))
    plain, patched, x = build(name), hf.patch(build(name), method, **strengths), inputs(name)
    with map_oracle(order, strengths):
        expected = output(plain, x)
    torch.testing.assert_close(output(patched, x), expected, **CLOSE)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_padding_is_not_seen(name):
    """Left-padded rows equal the same rows alone, with the formula's own numbers."""
    plain, patched, x = build(name), hf.patch(build(name), fidelity=0.4), inputs(name)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), x], dim=1)
    mask = (padded != 0).long()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with projection_oracle(plain, name, 0.4):
        expected = output(plain, padded, attention_mask=mask, position_ids=positions)[:, 3:]
    found = output(patched, padded, attention_mask=mask, position_ids=positions)[:, 3:]
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(found, output(patched, x), rtol=1e-5, atol=1e-5)  # its rotations are float32


def test_later_tokens_change_nothing_before_them():
    x = inputs("gpt2")
    for method in SPECS:
        model = hf.patch(build("gpt2"), method)
        changed = torch.cat([x[:, :-1], (x[:, -1:] + 1) % 40], dim=1)
        assert torch.equal(output(model, x)[:, :-1], output(model, changed)[:, :-1]), method


@pytest.mark.parametrize("learnable", ["layer", "head"])
def test_learnable_strengths(learnable):
    model = hf.patch(build("llama"), "neutreno+gfsa", fidelity=0.4, learnable_fidelity=learnable, gfsa=0.1)
    constant, x = (
        hf.patch(build("llama"), "neutreno+gfsa", fidelity=0.4, gfsa=0.1, learnable_gfsa=False),
        inputs("llama"),
    )
    torch.testing.assert_close(output(model, x), output(constant, x), **CLOSE)
    found = timm_neutreno.strengths(model)
    fidelity = found["model.layers.3.self_attn.fidelity"]
    assert fidelity.shape == (4 if learnable == "head" else 1,)
    assert "model.layers.0.self_attn.fidelity" not in found
    assert found["model.layers.0.self_attn.gfsa"].shape == (4,)
    assert gradients(model, x)["model.layers.1.self_attn.fidelity"].abs().min() > 0


def test_layers_are_counted_among_those_with_attention():
    x = inputs("gpt2")
    last, all_of_them = hf.patch(build("gpt2"), layers=[-1]), hf.patch(build("gpt2"))
    assert list(timm_neutreno.strengths(last)) == ["transformer.h.3.attn.fidelity"]
    for i in (1, 2):
        all_of_them.transformer.h[i].attn.fidelity = 0.0
    torch.testing.assert_close(output(last, x), output(all_of_them, x), **CLOSE)


def test_two_towers_have_a_v0_each():
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    vision = SiglipVisionConfig(**size, image_size=24, patch_size=8)
    text = SiglipTextConfig(**size, vocab_size=40, max_position_embeddings=7, projection_size=32)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    ids, images = inputs("gpt2"), inputs("siglip").float()
    before = model(input_ids=ids, pixel_values=images).logits_per_image
    both = hf.patch(model, fidelity=0.4)(input_ids=ids, pixel_values=images)
    assert len(timm_neutreno.strengths(model)) == 4
    assert not torch.equal(both.logits_per_image, before)
    alone = model.vision_model(images).pooler_output
    torch.testing.assert_close(torch.nn.functional.normalize(alone), both.image_embeds)
    timm_neutreno.set_fidelity(model, 0.0)
    assert torch.equal(model(input_ids=ids, pixel_values=images).logits_per_image, before)


FURTHER = {
    "bert": (BertModel, BertConfig),  # the function sits inside another module of the layer; not causal
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "t5": (T5EncoderModel, T5Config),  # a bias for relative positions
}


@pytest.mark.parametrize("kind", FURTHER)
def test_further_models_with_a_padding_mask(kind):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    model_class, config_class = FURTHER[kind]
    model = model_class(config_class(**size, num_key_value_heads=4, vocab_size=40, d_kv=8)).double().eval()
    x = inputs("gpt2")
    mask = torch.ones_like(x)
    mask[0, -2:] = 0
    with map_oracle("neutreno", {"fidelity": 0.4}, depth=3):
        expected = output(model, x, attention_mask=mask)
    assert not torch.equal(expected, output(model, x, attention_mask=mask))
    torch.testing.assert_close(output(hf.patch(model, fidelity=0.4), x, attention_mask=mask), expected, **CLOSE)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_symmetric_freezes_what_only_makes_queries(name):
    model = BertModel(BertConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=48))
    model = model if name == "bert" else build("llama")
    unused = {n for n, _ in model.named_parameters() if ".query." in n or ".q_proj." in n}
    hf.patch(model, "symmetric")
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == unused != set()
    assert all(p.requires_grad for p in hf.unpatch(model).parameters())
