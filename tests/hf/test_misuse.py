"""Every refusal, by its sentence; a refused model is left as it was."""

import subprocess
import sys

import pytest
import torch
from hf_models import TEXT, build, inputs, output
from torch import nn
from transformers import (
    BartConfig,
    BartModel,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    GptOssConfig,
    GptOssForCausalLM,
    MambaConfig,
    MambaModel,
    StaticCache,
)

import timm_neutreno
from timm_neutreno import UnsupportedModelError, hf


def refused(model, match, error=UnsupportedModelError, *args, **kwargs):
    before = {name: value for name, value in vars(getattr(model, "config", model)).items()}
    hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
    with pytest.raises(error, match=match):
        hf.patch(model, *args, **kwargs)
    assert vars(getattr(model, "config", model)) == before
    assert sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()) == hooks
    assert not timm_neutreno.is_patched(model)


def test_cross_attention():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, add_cross_attention=True, **TEXT))
    refused(
        gpt2, r"transformer\.h\.0 .*GPT2Block  never: 2 attentions in one layer \(crossattention, attn\)|\(attn, cro"
    )
    size = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "vocab_size": 40}
    bart = BartModel(BartConfig(**size, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16))
    refused(
        bart, r"decoder\.layers\.0 .* never: 2 attentions in one layer \(self_attn, encoder_attn\): in cross-attention"
    )
    before = output(bart.encoder.eval(), inputs("gpt2"))
    assert not torch.equal(output(hf.patch(bart.encoder), inputs("gpt2")), before)  # the encoder alone can be patched


def test_cross_attention_that_shows_only_when_it_is_called():
    model = hf.patch(build("vit"))
    attention = model.vit.layers[1].attention
    q, kv = torch.randn(1, 4, 3, 8).double(), torch.randn(1, 4, 5, 8).double()
    from timm_neutreno.hf.attention import attention as function

    with pytest.raises(RuntimeError, match=r"ViTAttention has other tokens in its keys than in its queries"):
        function(attention, q, kv, kv, None)


def test_models_that_do_not_use_the_interface():
    mamba = MambaModel(MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=40, state_size=4))
    refused(mamba, r"MambaModel:\n  \(the model\)  never: no attention of its layers goes through the attention interf")


def test_models_that_cannot_run_with_sdpa():
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = GptOssConfig(**size, vocab_size=40, intermediate_size=16, num_local_experts=2, head_dim=8)
    refused(GptOssForCausalLM(config), r"GptOssModel  never: says that it cannot run with SDPA")


class Deaf(nn.Module):
    """A layer that takes no keyword arguments."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states, attention_mask=None):
        return self.layer(hidden_states, attention_mask)


def test_layers_that_hand_no_arguments_on():
    model = build("vit")
    model.vit.layers[2] = Deaf(model.vit.layers[2])
    refused(model, r"vit\.layers\.2  \S*Deaf  not yet: hands no keyword arguments on to its attention")
    hf.patch(model, "laplacian")  # needs none


def test_attention_outside_a_list_of_layers():
    model = build("vit")
    model.extra = model.vit.layers[0].attention.__class__(model.config)
    refused(model, r"extra  \S*ViTAttention  not yet: in no list of layers")


def test_wrong_kinds_of_models():
    refused(nn.Linear(2, 2), r"takes a model of transformers, got torch\.nn\.modules\.linear\.Linear")
    refused(torch.compile(build("vit")), r"before torch\.compile or another wrapper")


def test_wrong_options():
    refused(build("vit"), r"never with featscale: acts after the output projection", UnsupportedModelError, "featscale")
    refused(build("vit"), r"fidelity must be a finite number", ValueError, fidelity=float("nan"))
    refused(build("vit"), r"unknown method 'neutron'", ValueError, "neutron")
    refused(build("vit"), r"there is no block 4 among 4", ValueError, layers=[4])
    refused(build("vit"), r"leaves no layer for neutreno to act in", ValueError, layers=[0])
    refused(
        build("llama"), r"several heads of queries share a head of values", ValueError, "value_residual",
        learnable_value_residual="head",
    )  # fmt: skip
    refused(build("vit", num_hidden_layers=1), r"leaves no layer", ValueError)


def test_patched_twice_and_not_patched():
    model = build("vit")
    with pytest.raises(ValueError, match=r"not patched: call timm_neutreno\.hf\.patch"):
        hf.unpatch(model)
    hf.patch(model)
    with pytest.raises(ValueError, match="patched already"):
        hf.patch(model)
    with pytest.raises(ValueError, match=r"timm_neutreno\.hf\.unpatch"):
        timm_neutreno.unpatch(model)
    with pytest.raises(UnsupportedModelError, match=r"timm_neutreno\.hf\.patch"):
        timm_neutreno.patch(build("gpt2"))


def test_another_implementation_after_patch():
    model, x = hf.patch(build("siglip")), inputs("siglip")
    expected = output(model, x)
    for other in ("sdpa", "eager"):
        model.set_attn_implementation(other)
        with pytest.raises(RuntimeError, match=r"SiglipAttention ran without its methods.*implementation was changed"):
            output(model, x)
    model.set_attn_implementation("timm_neutreno.hf")
    assert torch.equal(output(model, x), expected)


def test_models_whose_implementation_cannot_be_set():
    """transformers reads the source of the class's module, which a notebook does not have, and only warns."""
    model = build("gpt2")
    names = {"__module__": "a_notebook", "_can_set_attn_implementation_cached_value": None}  # not the parent's answer
    model.__class__ = type("Custom", (GPT2LMHeadModel,), names)
    model.transformer.__class__ = type("CustomModel", (GPT2Model,), names)
    refused(model, r"Custom:\n  \(the model\)  not yet: transformers' set_attn_implementation does not reach")


def test_static_cache():
    model, x = hf.patch(build("llama")), inputs("llama")
    sentence = r"StaticCache keeps empty places for later tokens.*leave cache_implementation out"
    with pytest.raises(RuntimeError, match=sentence):
        output(model, x, cache=StaticCache(config=model.config, max_cache_len=16))
    with pytest.raises(RuntimeError, match=sentence):
        model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=3, cache_implementation="static")


def test_averages_over_tokens_in_a_causal_model():
    for x in (inputs("gpt2"), inputs("gpt2")[:, :1]):
        with pytest.raises(
            RuntimeError, match="average over all tokens, which an attention mask or causal attention hides"
        ):
            output(hf.patch(build("gpt2"), "attnscale", attnscale=0.1), x)


def test_layers_called_alone_or_without_the_first_one():
    model = hf.patch(build("gpt2"))
    x = torch.randn(1, 3, 32).double()
    for module in (*model.transformer.h[:2], model.transformer.h[1].attn):
        with pytest.raises(RuntimeError, match=r"GPT2\w+ got no first-layer values in this forward pass.*hf\.unpatch"):
            module(x)
    del model.transformer.h[0]
    with pytest.raises(RuntimeError, match="the first layer was left out"):
        output(model, inputs("gpt2"))


def test_values_that_change_shape():
    model = hf.patch(build("vit"))
    wide = model.vit.layers[2].attention
    wide.v_proj = nn.Linear(32, 64).double()
    wide.o_proj = nn.Linear(64, 32).double()
    wide.forward = _wide.__get__(wide)
    with pytest.raises(
        RuntimeError, match=r"values of every layer in one shape: the first layer's are \(2, 4, 10, 8\)"
    ):
        output(model, inputs("vit"))


def _wide(self, hidden_states, attention_mask=None, **kwargs):
    """ViTAttention.forward with values of twice the width."""
    from timm_neutreno.hf.attention import attention as function

    q, k, v = (p(hidden_states).unflatten(-1, (4, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
    u, weights = function(self, q, k, v, attention_mask, scaling=self.scaling)
    return self.o_proj(u.flatten(2)), weights


def test_several_calls_of_attention_in_the_first_layer():
    model = hf.patch(build("vit"))
    attention = model.vit.layers[0].attention
    q = torch.randn(1, 4, 3, 8).double()
    from timm_neutreno.hf import attention as module

    def twice(self, hidden_states, attention_mask=None, **kwargs):
        for _ in range(2):
            u, _ = module.attention(self, q, q, q, None)
        return u, None

    attention.forward = twice.__get__(attention)
    with pytest.raises(RuntimeError, match="calls attention several times in one pass"):
        output(model, inputs("vit"))


def test_without_transformers_the_import_says_what_to_install():
    code = "import sys; sys.modules['transformers'] = None; import timm_neutreno; timm_neutreno.hf"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'timm-neutreno[transformers]'" in done.stderr.splitlines()[-1]


def test_a_dynamic_cache_is_not_refused():
    model, x = hf.patch(build("llama")), inputs("llama")
    assert torch.equal(output(model, x, cache=DynamicCache(config=model.config)), output(model, x))
