"""Generation: a KV cache changes nothing, and neither do beams, padding or pieces of a prompt."""

import pytest
import torch
from hf_models import TEXT_MODELS, build, inputs, output
from hf_oracle import projection_oracle
from transformers import AutoModelForCausalLM, DynamicCache, MistralConfig, Qwen2Config

from timm_neutreno import hf

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
CACHED = {"neutreno": {"fidelity": 0.4}, "value_residual": {}, "kernel+symmetric": {}, "laplacian+xsa": {}}


def sampled(model, x, mask=None, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """New tokens, and the scores that they were chosen by."""
    mask = torch.ones_like(x) if mask is None else mask
    found = model.generate(
        x, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, output_logits=True, return_dict_in_generate=True,
        **{"do_sample": False, **options},
    )  # fmt: skip
    return found.sequences, torch.stack(found.logits)


@pytest.mark.parametrize("name", TEXT_MODELS)
@pytest.mark.parametrize("method", CACHED)
def test_the_cache_changes_nothing(name, method):
    model, x = hf.patch(build(name), method, **CACHED[method]), inputs(name)
    tokens, scores = sampled(model, x)
    expected, wanted = sampled(model, x, use_cache=False)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(scores, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TEXT_MODELS)
@pytest.mark.parametrize("beams", [1, 3])
def test_left_padding_and_beams_against_the_oracle(name, beams):
    x = inputs(name, batch=3)
    x[0, :3] = x[1, :1] = 0
    mask = (x != 0).long()
    plain, patched = build(name), hf.patch(build(name), fidelity=0.4)
    unlike, _ = sampled(plain, x, mask, num_beams=beams)
    with projection_oracle(plain, name, 0.4):
        expected, wanted = sampled(plain, x, mask, num_beams=beams, use_cache=False)
    tokens, scores = sampled(patched, x, mask, num_beams=beams)
    assert not torch.equal(unlike, expected)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(scores, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_prompt_in_pieces(name):
    model, x = hf.patch(build(name), fidelity=0.4), inputs(name, tokens=9)
    whole, cache = output(model, x), DynamicCache(config=model.config)
    pieces = [output(model, x[:, a:b], cache=cache, use_cache=True) for a, b in ((0, 4), (4, 8), (8, 9))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-9, atol=1e-9)


def sliding(config_class, **options):
    torch.manual_seed(0)
    config = config_class(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=40, sliding_window=4, bos_token_id=1, eos_token_id=2, pad_token_id=0, **options,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


MIXED = {"use_sliding_window": True, "max_window_layers": 2}  # the first two layers see everything


@pytest.mark.parametrize(
    ("config", "options", "method"),
    [(MistralConfig, {}, "neutreno"), (MistralConfig, {}, "value_residual"), (Qwen2Config, MIXED, "neutreno")],
)
def test_a_sliding_window(config, options, method):
    """The cache of a window drops old tokens; the values of a layer's own tokens stay its last ones."""
    x, model = inputs("llama", tokens=9), hf.patch(sliding(config, **options), method)
    tokens, scores = sampled(model, x)
    expected, wanted = sampled(model, x, use_cache=False)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(scores, wanted, rtol=1e-9, atol=1e-9)


def test_caches_of_different_lengths_do_not_mix_values():
    x, model = inputs("llama", tokens=9), hf.patch(sliding(Qwen2Config, **MIXED), "value_residual")
    with pytest.raises(RuntimeError, match=r"first layer's are \(2, 2, 10, 8\), this layer's \(2, 2, 4, 8\)"):
        sampled(model, x)
    sampled(model, x, use_cache=False)


@pytest.mark.parametrize("method", ["gfsa", "twicing"])
def test_a_second_pass_over_the_map_needs_every_token(method):
    model, x = hf.patch(build("gpt2"), method), inputs("gpt2")
    with pytest.raises(RuntimeError, match=r"gfsa and twicing .* KV cache does not hold.*use_cache=False"):
        sampled(model, x)
    sampled(model, x, use_cache=False)
