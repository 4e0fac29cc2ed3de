"""Token similarity of models of transformers, against their own hidden states."""

import pytest
import torch
from hf_models import MODELS, TEXT, build, inputs
from transformers import BertConfig, BertModel, SiglipConfig, SiglipModel

from timm_neutreno import UnsupportedModelError, hf, smoothing
from timm_neutreno.smoothing import attention_maps, measure, token_similarity
from timm_neutreno.smoothing.tokens import cosine_similarity


def expected(model, *batches) -> list[float]:
    """From output_hidden_states, whose last entry some models put their norm on: it is left out."""
    states = [model(x, output_hidden_states=True).hidden_states for x in batches]
    return [
        torch.cat([cosine_similarity(s[layer]) for s in states]).mean().item() for layer in range(1, len(states[0]) - 1)
    ]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("patched", [False, True])
def test_similarity_is_that_of_the_hidden_states(name, patched):
    model, batches = build(name), [inputs(name, batch=3), inputs(name, batch=1)]
    model = hf.patch(model, fidelity=0.4) if patched else model
    found = token_similarity(model.train(), batches)
    assert model.training
    assert len(found) == 4
    assert found[:-1] == pytest.approx(expected(model.eval(), *batches), abs=1e-12)
    assert -1 <= found[-1] <= 1


def test_batches_as_the_libraries_make_them():
    model, x = build("gpt2"), inputs("gpt2")
    found = token_similarity(model, [x])
    assert token_similarity(model, [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": x}]) == found
    assert token_similarity(model, [(x, x)]) == found
    images = inputs("vit")
    assert token_similarity(build("vit"), [{"pixel_values": images}]) == token_similarity(build("vit"), [images])
    assert measure(model, [x, x], ["block_angle"]).images == 4


def test_attention_in_a_module_of_its_own():
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    model, x = BertModel(BertConfig(**size, vocab_size=40)).eval(), inputs("gpt2")
    assert token_similarity(model, [x])[:-1] == pytest.approx(expected(model, x), abs=1e-12)


def test_what_is_not_measured_is_refused():
    model, x = build("gpt2"), inputs("gpt2")
    for of, tokens in (("attention", "all"), ("block", "patch")):
        with pytest.raises(UnsupportedModelError, match=rf"{of}_similarity\S* is measured on models of timm only"):
            token_similarity(model, [x], of=of, tokens=tokens)
    with pytest.raises(ValueError, match="padding would be measured as tokens"):
        token_similarity(model, [{"input_ids": x, "attention_mask": (x != x[0, 0]).long()}])
    with pytest.raises(ValueError, match=r"each batch must be images"):
        token_similarity(build("vit"), [torch.zeros(3, 24, 24)])
    for function in (lambda m: attention_maps(m, inputs("vit")), smoothing.spectrum):
        with pytest.raises(
            UnsupportedModelError, match=r"cannot measure .*GPT2LMHeadModel: it has no list of `blocks`"
        ):
            function(model)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    text, vision = {**size, "vocab_size": TEXT["vocab_size"]}, {**size, "image_size": 24, "patch_size": 8}
    with pytest.raises(UnsupportedModelError, match=r"has 2 lists of layers.*model\.vision_model"):
        token_similarity(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)), [x])
