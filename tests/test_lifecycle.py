"""Contract 5 and 6: what people do with a model around its forward pass, and that nothing is kept after it."""

import copy
import gc
import os
import pickle
import subprocess
import sys

import pytest
import timm
import torch
from hosts import COMPOSED, HOSTS, NEED_V0, SINGLE, build, images, patched
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3
from torch.func import functional_call

import timm_neutreno

X = images()


def make(key, **kwargs):
    return timm_neutreno.patch(build(key), fidelity=0.6, **kwargs)


@pytest.mark.parametrize("key", HOSTS)
def test_deepcopy_after_a_forward_is_independent(key):
    model = make(key)
    expected = model(X)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), expected)
    timm_neutreno.set_fidelity(twin, 0.1)
    assert torch.equal(model(X), expected)
    assert not torch.equal(twin(X), expected)
    shared = {id(module.first_values) for module in twin.modules() if hasattr(module, "first_values")}
    own = {id(module.first_values) for module in model.modules() if hasattr(module, "first_values")}
    assert len(shared) == len(own) == 1
    assert shared != own


def test_ema_follows():
    model = make("vit", learnable_fidelity="layer")
    model(X).sum().backward()
    ema = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    ema.update(model)
    assert torch.allclose(ema.module.blocks[1].attn.fidelity, torch.tensor(1.1))
    assert torch.isfinite(ema(X)).all()


LOAD = """
import sys, torch
model, x, expected = torch.load(sys.argv[1], weights_only=False)
assert any(type(m).__name__.startswith("Neutreno") for m in model.modules())
assert torch.equal(model(x), expected), (model(x) - expected).abs().max()
"""


@pytest.mark.parametrize("key", ["vit", "parallel_scaling", "parallel_things", "eva02", "qwen3"])
def test_whole_model_loads_in_a_new_process(key, tmp_path):
    model = make(key, learnable_fidelity="head")
    with torch.no_grad():
        expected = model(X)
    torch.save((model, X, expected), tmp_path / "model.pt")
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path / "model.pt")], check=True, env={**os.environ})


@pytest.mark.parametrize("key", HOSTS)
def test_pickle(key):
    model = make(key)
    clone = pickle.loads(pickle.dumps(model))
    assert [type(m) for m in clone.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(clone(X), model(X))


@pytest.mark.parametrize("key", [k for k in HOSTS if k not in ("deepseek", "qwen3", "gemma4")])
def test_forward_intermediates_and_pruning(key):
    model = make(key)
    features = model.forward_features(X)
    depth = len(model.blocks)
    final, taken = model.forward_intermediates(X, output_fmt="NCHW")
    assert len(taken) == depth
    if key != "cait":  # whose forward_features ends with class attention
        assert torch.equal(final, features)
    early = model.forward_intermediates(X, indices=[1], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], taken[1])
    model.prune_intermediate_layers([0, 1])
    again = model.forward_intermediates(X, indices=[1], intermediates_only=True)
    assert torch.equal(again[0], taken[1])


def test_get_intermediate_layers_reset_classifier_and_input_size():
    model = make("vit")
    layers = model.get_intermediate_layers(X, n=[0, 2])
    assert torch.equal(layers[1], model.forward_intermediates(X, [0, 2], output_fmt="NLC", intermediates_only=True)[1])
    model.reset_classifier(7)
    assert model(X).shape == (2, 7)
    model.set_input_size(img_size=64)
    assert model(images(2, 64)).shape == (2, 7)
    assert timm_neutreno.is_patched(model)


@pytest.mark.parametrize("key", ["vit", "deit_distilled", "eva02", "beit", "rel_pos", "cait", "naflex"])
@pytest.mark.parametrize("order", ["twin", "wrapper"])
def test_features_only(key, order):
    name, kwargs = HOSTS[key].name, {k: v for k, v in HOSTS[key].kwargs.items() if k != "num_classes"}
    if order == "twin":
        wrapper = timm.create_model(f"neutreno_{name}", features_only=True, out_indices=(1, 2), **kwargs)
    else:
        wrapper = timm.create_model(name, features_only=True, out_indices=(1, 2), **kwargs)
        assert timm_neutreno.patch(wrapper) is wrapper
    full = timm_neutreno.patch(timm.create_model(name, num_classes=0, **kwargs))
    full.load_state_dict({k.removeprefix("model."): v for k, v in wrapper.state_dict().items()}, strict=False)
    got = wrapper.eval()(X)
    expected = full.eval().forward_intermediates(X, indices=[1, 2], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("key", HOSTS)
def test_timm_sees_the_same_groups(key):
    plain, model = build(key), make(key)
    assert model.no_weight_decay() == plain.no_weight_decay() if hasattr(plain, "no_weight_decay") else True
    if not hasattr(plain, "group_matcher"):
        return
    groups = [
        [(g["lr_scale"], g["weight_decay"], len(g["params"])) for g in param_groups_layer_decay(m, layer_decay=0.7)]
        for m in (plain, model)
    ]
    assert groups[0] == groups[1]


def test_learnable_fidelity_gets_no_weight_decay_and_its_layers_rate():
    model = make("vit", learnable_fidelity="head")
    for group in param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5):
        ids = {id(p) for p in group["params"]}
        for layer, block in enumerate(model.blocks):
            if layer and id(block.attn.fidelity) in ids:
                assert group["weight_decay"] == 0.0
                assert id(block.norm1.weight) in ids


def test_functional_call_and_vmap():
    model = make("vit")
    params = dict(model.named_parameters())
    assert torch.equal(functional_call(model, params, X), model(X))
    per_sample = torch.func.vmap(lambda x: functional_call(model, params, x[None])[0])(X)
    assert torch.allclose(per_sample, model(X), atol=1e-5)


def test_meta_device_then_materialised():
    with torch.device("meta"):
        model = timm.create_model("neutreno_vit_tiny_patch16_224", learnable_fidelity="layer", **HOSTS["vit"].kwargs)
    assert "learnable per layer" in repr(model)
    real = timm.create_model("neutreno_vit_tiny_patch16_224", learnable_fidelity="layer", **HOSTS["vit"].kwargs).eval()
    model.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(model.eval()(X), real(X))


def test_print_shows_the_truth():
    model = make("vit")
    assert "NeutrenoVisionTransformer" in repr(model)
    assert "NeutrenoAttention" in repr(model)
    assert repr(model).count("fidelity=0.6") == 3
    assert repr(model).count("gives v0") == 1
    assert "fidelity=0.6" in repr(make("parallel_scaling"))
    assert isinstance(model, timm.models.VisionTransformer)


def test_hooks_replace_outputs_and_see_tensors():
    model = make("vit")
    seen = []
    handle = model.blocks[0].register_forward_hook(lambda m, i, o: seen.append(type(o)))
    zeroed = model.blocks[1].register_forward_hook(lambda m, i, o: o * 0)
    a, b = model(X), model(images(2, seed=9))
    handle.remove()
    zeroed.remove()
    assert seen == [torch.Tensor, torch.Tensor]
    assert not torch.equal(a, b)  # v0 still differs though block 1 gave zeros to both


@pytest.mark.parametrize("loop", ["iterator", "index"])
def test_users_own_loop_over_blocks(loop):
    model = make("vit")
    x = model._pos_embed(model.patch_embed(X))
    for i, block in enumerate(model.blocks):
        x = (block if loop == "iterator" else model.blocks[i])(x)
    assert torch.equal(model.norm(x), model.forward_features(X))


def test_two_models_interleaved_block_by_block():
    first, second = make("vit"), make("vit")
    timm_neutreno.set_fidelity(second, 0.2)
    x = first._pos_embed(first.patch_embed(X))
    a, b = x, x
    for p, q in zip(first.blocks, second.blocks, strict=True):
        a, b = p(a), q(b)
    assert torch.equal(first.norm(a), first.forward_features(X))
    assert torch.equal(second.norm(b), second.forward_features(X))


def live_tensors():
    for _ in range(3):  # what other tests have left may be freed by one collection and found by the next
        gc.collect()
    return sum(1 for obj in gc.get_objects() if isinstance(obj, torch.Tensor))


class Boom(Exception):
    pass


def fail(*_):
    raise Boom


def leave_normally(model):
    model(X)


def leave_early(model):
    model.forward_intermediates(X, indices=[1], stop_early=True, intermediates_only=True)


def leave_by_exception(model):
    handle = model.blocks[2].register_forward_pre_hook(fail)
    with pytest.raises(Boom):
        model(X)
    handle.remove()


def leave_own_loop(model):
    x = model._pos_embed(model.patch_embed(X))
    for block in model.blocks:
        x = block(x)


def leave_checkpointed(model):
    model.set_grad_checkpointing()
    model(X).sum().backward()
    model.set_grad_checkpointing(False)
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("key", ["vit", "parallel_things", "parallel_scaling", "eva02"])
@pytest.mark.parametrize(
    "leave", [leave_normally, leave_early, leave_by_exception, leave_own_loop, leave_checkpointed],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_nothing_is_kept(key, leave):
    if key == "eva02" and leave is leave_own_loop:
        return  # its blocks want position embeddings from the model
    model = make(key)
    if leave is leave_own_loop:
        leave(model)
    leave(model)
    before = live_tensors()
    leave(model)
    leave(model)
    assert live_tensors() == before
    assert model.first_values.begin()[0] is None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_v0_does_not_pin_q_and_k(checkpointing):
    """v is a third of qkv's memory; where nothing else needs q and k, the kept v0 must own only its own bytes."""
    model = make("vit")
    kept = []
    model.set_grad_checkpointing(checkpointing)
    model.blocks[1].register_forward_pre_hook(
        lambda *_: kept.extend(v.untyped_storage().nbytes() for v in model.first_values._local.values)
    )
    with torch.set_grad_enabled(checkpointing):
        model(X)
    assert kept == [2 * 17 * 48 * 4]


# --- every method ---------------------------------------------------------------------------------------------------

SPECS = [spec for spec in (*SINGLE, *COMPOSED) if spec != "neutreno"]


@pytest.mark.parametrize("spec", SPECS)
def test_every_method_lives_with_what_people_do_around_a_forward_pass(spec):
    model = patched("vit", spec)
    expected = model(X)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), ModelEmaV3(model, decay=0.5).module]
    for twin in copies:
        assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
        assert torch.equal(twin(X), expected)
        for value in timm_neutreno.strengths(twin).values():
            if isinstance(value, torch.nn.Parameter):
                value.data.zero_()
    assert torch.equal(model(X), expected)
    taken = model.forward_intermediates(X, indices=[1, 2], output_fmt="NLC", intermediates_only=True)
    assert torch.equal(model.get_intermediate_layers(X, n=[1])[0], taken[0])
    with torch.no_grad():  # under vmap, SDPA cannot give a mask its gradient, and kernel attention is a mask
        per_sample = torch.func.vmap(lambda x: functional_call(model, dict(model.named_parameters()), x[None])[0])(X)
    assert torch.allclose(per_sample, expected, atol=1e-5)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert not decayed & {id(value) for value in timm_neutreno.strengths(model).values()}
    model.set_input_size(img_size=64)
    model.reset_classifier(7)
    assert model(images(2, 64)).shape == (2, 7)
    assert timm_neutreno.is_patched(model)
    early = patched("vit", spec)
    before = early.forward_intermediates(X, indices=[1], intermediates_only=True)[0]
    early.prune_intermediate_layers([0, 1])
    assert torch.equal(early.forward_intermediates(X, indices=[1], intermediates_only=True)[0], before)


def test_every_method_loads_whole_in_a_new_process(tmp_path):
    models = {spec: patched("vit", spec) for spec in SPECS}
    with torch.no_grad():
        torch.save({spec: (model, X, model(X)) for spec, model in models.items()}, tmp_path / "models.pt")
    load = """
import sys, torch
for spec, (model, x, expected) in torch.load(sys.argv[1], weights_only=False).items():
    assert any(type(m).__name__.startswith("Neutreno") for m in model.modules()), spec
    with torch.no_grad():
        assert torch.equal(model(x), expected), spec
"""
    subprocess.run([sys.executable, "-c", load, str(tmp_path / "models.pt")], check=True, env={**os.environ})


@pytest.mark.parametrize("leave", [leave_normally, leave_early, leave_by_exception, leave_checkpointed])
@pytest.mark.parametrize("spec", [spec for spec in NEED_V0 if spec != "neutreno"])
def test_no_method_keeps_anything(spec, leave):
    model = patched("vit", spec)
    leave(model)
    before = live_tensors()
    leave(model)
    assert live_tensors() == before
    assert model.first_values.begin()[0] is None


def test_bfloat16_autocast_of_every_method():
    for spec in SPECS:
        model = patched("vit", spec)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(X)
        assert logits.dtype == torch.bfloat16
        assert (logits.float() - model(X)).abs().max() < 6e-2 * model(X).abs().max(), spec


def test_a_module_of_somebody_elses_with_methods_is_not_patched():
    """`methods` is no rare name for an attribute."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model[0].methods = ("pca", "umap")
    assert not timm_neutreno.is_patched(model)
    assert timm_neutreno.strengths(model) == {}
