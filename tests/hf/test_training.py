"""Gradients, checkpointing, compilation, threads and what stays behind, for models of transformers."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from hf_models import MODELS, build, gradients, inputs, output
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from transformers import Trainer, TrainingArguments

import timm_neutreno
from timm_neutreno import hf

DROPOUT = {
    "gpt2": {"attn_pdrop": 0.2, "resid_pdrop": 0.2},
    "llama": {"attention_dropout": 0.2},
    "vit": {"attention_probs_dropout_prob": 0.2, "hidden_dropout_prob": 0.2},
    "dinov2": {"drop_path_rate": 0.2},
    "siglip": {"attention_dropout": 0.2},
}


def patched(name, method="neutreno", **options):
    return hf.patch(build(name, **options), method).train()


def depth(name):
    """Two layers: transformers' forwards take long to trace."""
    return {"n_layer": 2} if name == "gpt2" else {"num_hidden_layers": 2}


def seeded(model, *xs):
    torch.manual_seed(3)
    return gradients(model, *xs)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_gives_the_same_bits(name):
    """Two forward passes before one backward, one without gradients between them, dropout on."""
    model, x = patched(name, "neutreno", **DROPOUT[name]), inputs(name)
    other = x.flip(0)
    timm_neutreno.set_strengths(model, fidelity=0.4, as_tensors=False)
    expected = seeded(model, x, other)
    assert not same(expected, seeded(model, x, x))
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert same(seeded(model, x, other), expected)
    with torch.no_grad():
        output(model, other)
    assert same(seeded(model, x, other), expected)


def test_checkpointing_with_other_methods_and_a_learned_strength():
    for method in ("value_residual", "neutreno+gfsa", "neutreno+kernel"):
        model, x = patched("llama", method), inputs("llama")
        expected = gradients(model, x)
        model.activation_checkpointing_enable()  # transformers' default is not reentrant
        assert same(gradients(model, x), expected), method


def test_checkpointing_by_a_wrapper_of_torch():
    """FSDP's activation checkpointing: the hooks are inside its region, and run again."""
    model, x = patched("gpt2"), inputs("gpt2")
    expected = seeded(model, x)
    apply_activation_checkpointing(model, check_fn=lambda m: type(m).__name__ == "GPT2Block")
    found = seeded(model, x)
    assert same({k.replace("_checkpoint_wrapped_module.", ""): v for k, v in found.items()}, expected)


@pytest.mark.parametrize("name", ["gpt2", "siglip"])
def test_reentrant_checkpointing_is_refused(name):
    model, x = patched(name), inputs(name)
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(RuntimeError, match=r"lose their gradient.*use_reentrant': False"):
        gradients(model, x)


def test_reentrant_checkpointing_of_later_layers_alone_is_refused():
    model, x = patched("gpt2"), inputs("gpt2")
    model.activation_checkpointing_enable({"use_reentrant": True})
    model.transformer.h[0].gradient_checkpointing = False
    with pytest.raises(RuntimeError, match="lose their gradient"):
        gradients(model, x)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_nothing_is_kept(checkpoint):
    """No first values after a forward pass without a backward, nor after one that fails in a later layer."""
    model, x = patched("gpt2"), inputs("gpt2")
    if checkpoint:
        model.activation_checkpointing_enable()
    seen: list[weakref.ref] = []

    def watch(module, args, kwargs):
        seen.append(weakref.ref(kwargs["first_values"]))

    handle = model.transformer.h[1].attn.register_forward_pre_hook(watch, with_kwargs=True, prepend=True)
    out = output(model, x)
    assert seen[0]() is not None  # held by the graph
    del out
    gc.collect()
    assert seen[0]() is None

    def fail(module, args, output):
        raise ValueError("on purpose")

    for place in (model.transformer.h[2].mlp, model.transformer.h[2].attn.c_attn):
        broken = place.register_forward_hook(fail)
        with pytest.raises(ValueError, match="on purpose"):
            output(model, x)
        broken.remove()
        gc.collect()
        assert seen[-1]() is None
    handle.remove()


@pytest.mark.parametrize("name", MODELS)
def test_compiles_to_one_graph(name):
    model, x = patched(name, **depth(name)).eval(), inputs(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(output(compiled, x), output(model, x), rtol=1e-12, atol=1e-12)


def test_compiles_for_training_with_a_learned_strength():
    model = hf.patch(build("vit", **depth("vit")), learnable_fidelity="head").train()
    x = inputs("vit")
    expected = gradients(model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = gradients(compiled, x)
    assert found.keys() == {f"_orig_mod.{key}" for key in expected}
    for key, gradient in expected.items():
        torch.testing.assert_close(found[f"_orig_mod.{key}"], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiles_with_checkpointing(fullgraph):
    """As docs/transformers.md says, one graph needs torch's own switch: what hooks do inside a region counts once."""
    model, x = hf.patch(build("vit", **depth("vit"))).train(), inputs("vit")
    expected = gradients(model, x)
    model.activation_checkpointing_enable()
    with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=fullgraph):
        found = gradients(torch.compile(model, fullgraph=fullgraph, backend="aot_eager"), x)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[f"_orig_mod.{key}"], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("place", ["h.1", "h.1.attn.c_attn"])
def test_two_threads_on_one_model(place):
    """While one thread stands in the second layer, or inside its attention, another one makes a whole pass."""
    model, (x, other) = patched("gpt2").eval(), (inputs("gpt2"), inputs("gpt2").flip(0))
    expected, found = [output(model, x), output(model, other)], []
    inside, done = threading.Event(), threading.Event()
    first = threading.Thread(target=lambda: found.append(output(model, x)))

    def wait(module, args):
        if threading.current_thread() is first:
            inside.set()
            done.wait(60)

    model.transformer.get_submodule(place).register_forward_pre_hook(wait)
    first.start()
    assert inside.wait(60)
    found.append(output(model, other))
    done.set()
    first.join()
    assert torch.equal(found[1], expected[0])
    assert torch.equal(found[0], expected[1])


def test_a_copy_is_a_model_of_its_own():
    model, x = patched("llama").eval(), inputs("llama")
    other = copy.deepcopy(model)
    expected = output(model, x)
    hf.unpatch(model)
    assert torch.equal(output(other, x), expected)
    timm_neutreno.set_fidelity(other, 0.0)
    assert torch.equal(output(hf.unpatch(other), x), output(model, x))
    assert not other.model._forward_pre_hooks
    assert not other.model.layers[0].self_attn._forward_pre_hooks


def test_trainer_learns_a_strength_and_its_checkpoint_loads(tmp_path):
    model = hf.patch(build("gpt2").float(), learnable_fidelity="layer")
    before = {name: w.item() for name, w in timm_neutreno.strengths(model).items()}
    rows = [{"input_ids": row, "labels": row} for row in inputs("gpt2", batch=8)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[], use_cpu=True,
        gradient_checkpointing=True, save_steps=2, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows).train()
    after = {name: w.item() for name, w in timm_neutreno.strengths(model).items()}
    assert all(after[name] != before[name] for name in before)
    loaded = hf.load(tmp_path / "checkpoint-2")
    assert {name: w.item() for name, w in timm_neutreno.strengths(loaded).items()} == after
    x = inputs("gpt2")
    assert torch.equal(output(loaded, x), output(model.eval(), x))
