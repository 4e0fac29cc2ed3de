"""Contract 1: the patched model computes the paper's formula, and nothing else."""

import copy

import pytest
import timm
import torch
from hosts import COMPOSED, HOSTS, SINGLE, build, images, is_refused, learned, patched, spread
from reference import method_oracle, oracle, set_fused

import timm_neutreno
from timm_neutreno import METHODS
from timm_neutreno.support import find_vits

X = images()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def reference_logits(key, fidelity, **kwargs):
    model = build(key)
    set_fused(model, True)
    with oracle(model, fidelity, HOSTS[key].calls_per_layer, **kwargs):
        logits = model(X)
    return model, logits


@pytest.mark.parametrize("key", HOSTS)
def test_equals_the_oracle_fused_and_unfused(key):
    plain, expected = reference_logits(key, 0.6)
    model = timm_neutreno.patch(build(key), fidelity=0.6)
    for fused in (True, False):
        set_fused(model, fused)
        assert relative(model(X), expected) < 1e-5
    assert relative(plain(X), expected) > 1e-2  # else the comparison could not tell


@pytest.mark.parametrize("key", HOSTS)
def test_gradients_equal_the_oracles_and_reach_v0(key):
    plain, model = build(key).double(), timm_neutreno.patch(build(key).double(), fidelity=0.6)
    set_fused(plain, True)
    with oracle(plain, 0.6, HOSTS[key].calls_per_layer):
        expected = torch.autograd.grad(plain(X.double()).square().sum(), list(plain.parameters()), allow_unused=True)
    grads = torch.autograd.grad(model(X.double()).square().sum(), list(model.parameters()), allow_unused=True)
    largest = max(g.abs().max() for g in expected if g is not None)
    for (name, _), got, want in zip(model.named_parameters(), grads, expected, strict=True):
        assert (got is None) == (want is None), name
        if want is not None:  # a key bias has gradient zero up to rounding, so compare with the largest gradient too
            assert (got - want).abs().max() <= 1e-9 * want.abs().max() + 1e-12 * largest, name


def test_v0_is_not_detached():
    plain, logits = reference_logits("vit", 0.6)
    wanted = torch.autograd.grad(logits.square().sum(), plain.blocks[0].attn.qkv.weight)[0]
    plain, logits = reference_logits("vit", 0.6, detach=True)
    detached = torch.autograd.grad(logits.square().sum(), plain.blocks[0].attn.qkv.weight)[0]
    model = timm_neutreno.patch(build("vit"), fidelity=0.6)
    got = torch.autograd.grad(model(X).square().sum(), model.blocks[0].attn.qkv.weight)[0]
    assert relative(got, wanted) < 1e-4
    assert relative(detached, wanted) > 1e-2


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("key", HOSTS)
def test_fidelity_zero_is_bit_equal_to_timm(key, fused):
    plain = build(key)
    model = timm_neutreno.patch(copy.deepcopy(plain), fidelity=0.0)
    set_fused(plain, fused)
    set_fused(model, fused)
    assert torch.equal(model(X), plain(X))
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}


@pytest.mark.parametrize("key", HOSTS)
def test_unpatch_gives_the_model_back(key):
    plain = build(key)
    model = timm_neutreno.patch(copy.deepcopy(plain), fidelity=0.6, learnable_fidelity="head")
    assert timm_neutreno.unpatch(model) is model
    assert not timm_neutreno.is_patched(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert torch.equal(model(X), plain(X))
    assert model.pretrained_cfg == plain.pretrained_cfg
    assert model._model_args == plain._model_args
    assert [sorted(m.__dict__) for m in model.modules()] == [sorted(m.__dict__) for m in plain.modules()]


@pytest.mark.parametrize("key", HOSTS)
def test_learnable_fidelity_starts_at_the_constant_and_learns(key):
    constant = timm_neutreno.patch(build(key), fidelity=0.3)
    for learnable in ("layer", "head"):
        model = timm_neutreno.patch(build(key), fidelity=0.3, learnable_fidelity=learnable)
        assert relative(model(X), constant(X)) < 1e-5
        model(X).square().sum().backward()
        fidelities = {name: p for name, p in model.named_parameters() if name.endswith("fidelity")}
        attentions = len([entry for entry in timm_neutreno.check_support(model)])
        assert len(fidelities) == attentions - (2 if key == "parallel_things" else 1)
        assert all(p.grad.abs().max() > 0 for p in fidelities.values())
        assert {p.numel() for p in fidelities.values()} == ({1} if learnable == "layer" else {heads(model)})


def heads(model) -> int:
    return next(m.num_heads for m in model.modules() if hasattr(m, "num_heads"))


def test_official_formula_by_hand():
    """`DeiT/neutreno.py` of the authors, written out for one image: attention with v0 of layer 0, alpha = 0.6."""
    model = timm_neutreno.patch(build("vit"), fidelity=0.6)
    x = model._pos_embed(model.patch_embed(X[:1]))
    v0 = None
    for block in model.blocks:
        h, attn = block.norm1(x), block.attn
        q, k, v = attn.qkv(h).reshape(1, -1, 3, 3, 16).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * 16**-0.5).softmax(-1)
        res = 0.6 * (v0 - v) if v0 is not None else 0
        v0 = v if v0 is None else v0
        x = x + attn.proj((weights @ v + res).transpose(1, 2).reshape(1, -1, 48))
        x = x + block.mlp(block.norm2(x))
    assert relative(model(X[:1]), model.head(model.norm(x)[:, 0])) < 1e-5


def test_attention_mask_and_causal_attention():
    plain, model = build("vit"), timm_neutreno.patch(build("vit"), fidelity=0.6)
    mask = torch.randn(17, 17)
    for kwargs in (dict(attn_mask=mask), dict(attn_mask=mask > -1), dict(is_causal=True)):
        with oracle(plain, 0.6, 1):
            expected = plain.forward_features(X, **kwargs)
        for fused in (True, False):
            set_fused(model, fused)
            assert relative(model.forward_features(X, **kwargs), expected) < 1e-5


def test_autocast_bfloat16_stays_near_float32():
    model = timm_neutreno.patch(build("vit"), fidelity=0.6, learnable_fidelity="head")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(X)
    assert logits.dtype == torch.bfloat16
    assert relative(logits.float(), model(X)) < 5e-2


def test_double_precision_and_other_sizes():
    plain, model = build("vit", dynamic_img_size=True), build("vit", dynamic_img_size=True)
    timm_neutreno.patch(model.double(), fidelity=0.6)
    plain.double()
    x = images(3, 48).double()
    with oracle(plain, 0.6, 1):
        expected = plain(x)
    assert relative(model(x), expected) < 1e-12


def test_patch_dropout_drops_the_same_tokens_of_v0():
    plain, model = build("vit", patch_drop_rate=0.5), timm_neutreno.patch(build("vit", patch_drop_rate=0.5))
    torch.manual_seed(0)
    with oracle(plain.train(), 0.6, 1):
        expected = plain(X)
    torch.manual_seed(0)
    assert relative(model.train()(X), expected) < 1e-5


def test_create_model_equals_patch():
    kwargs = HOSTS["vit"].kwargs
    created = timm.create_model("neutreno_vit_tiny_patch16_224", fidelity=0.4, **kwargs).eval()
    patched = timm.create_model("vit_tiny_patch16_224", **kwargs).eval()
    patched.load_state_dict(created.state_dict())
    timm_neutreno.patch(patched, fidelity=0.4)
    assert torch.equal(created(X), patched(X))
    assert created.pretrained_cfg == patched.pretrained_cfg


# --- every method ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", HOSTS)
def test_what_is_refused_and_strength_zero_is_bit_equal_to_timm_and_unpatch_gives_the_model_back(key):
    plain = build(key)
    expected = plain(X)
    for method, row in METHODS.items():
        model = copy.deepcopy(plain)
        refused = [entry for entry in timm_neutreno.check_support(model, method) if not entry.supported]
        assert bool(refused) == is_refused(key, method), method
        if refused:
            with pytest.raises(timm_neutreno.UnsupportedModelError, match=f"never with {method}: "):
                timm_neutreno.patch(model, method)
            assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
            continue
        zero = {strength: 0.0 for strength in row.strengths}
        constant = {f"learnable_{strength}": False for strength in row.strengths if row.learnable}
        timm_neutreno.patch(model, method, **zero, **constant)
        assert timm_neutreno.is_patched(model)
        assert model.state_dict().keys() == plain.state_dict().keys()
        if not row.needs_v0:
            assert type(model) is type(plain)
            pairs = zip(find_vits(model)[0].blocks, find_vits(plain)[0].blocks, strict=True)
            assert all(type(a) is type(b) or "parallel" in key for a, b in pairs)  # inline attention is its block
        for fused in (True, False):
            set_fused(model, fused)
            set_fused(plain, fused)
            assert torch.equal(model(X), plain(X)) == bool(row.strengths), method
        set_fused(plain, True)
        timm_neutreno.unpatch(model)
        set_fused(model, True)
        assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
        assert [sorted(m.__dict__) for m in model.modules()] == [sorted(m.__dict__) for m in plain.modules()]
        assert all(p.requires_grad for p in model.parameters())
        assert model._model_args == plain._model_args
        assert model.state_dict().keys() == plain.state_dict().keys()
        assert torch.equal(model(X), expected)


def strengths_by_layer(model):
    """What the oracle needs: per layer the strengths as they broadcast."""
    w = [{} for _ in find_vits(model)[0].blocks]
    for name, value in timm_neutreno.strengths(model).items():
        layer, strength = int(name.split("blocks.")[1].split(".")[0]), name.rpartition(".")[2]
        if isinstance(value, torch.Tensor):
            value = value.detach() if strength.startswith("featscale") else value.detach().view(-1, 1, 1)
        w[layer][strength] = value
    return w


ORACLE_KEYS = [key for key, host in HOSTS.items() if host.calls_per_layer == 1]


ORACLE_CASES = [(key, spec) for key in ORACLE_KEYS for spec in (*SINGLE, *COMPOSED) if not is_refused(key, spec)]


@pytest.mark.parametrize(("key", "spec"), ORACLE_CASES)
def test_every_method_equals_its_explicit_matrices(key, spec):
    plain, model = build(key).double(), patched(key, spec).double()
    set_fused(plain, True)
    with method_oracle(plain, spec, strengths_by_layer(model)):
        expected = plain(X.double())
    for fused in (True, False):
        set_fused(model, fused)
        assert relative(model(X.double()), expected) < 1e-12
    assert relative(plain(X.double()), expected) > 1e-3  # else the comparison could not tell


@pytest.mark.parametrize("layers", [[-1], [1, 2], [0, -1]])
@pytest.mark.parametrize("spec", ["neutreno", "gfsa", "neutreno+featscale"])
def test_methods_act_in_the_chosen_layers_only(spec, layers):
    plain, model = build("vit").double(), build("vit")
    timm_neutreno.patch(model, spec, layers=layers, **learned(spec))
    spread(model).double()
    chosen = {layer % 4 for layer in layers}
    with method_oracle(plain, spec, strengths_by_layer(model), layers=chosen):
        expected = plain(X.double())
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        assert relative(model.train()(X.double()), expected) < 1e-12
    acting = {int(name.split(".")[1]) for name in timm_neutreno.strengths(model)}
    assert acting == (chosen - {0} if spec == "neutreno" else chosen)
    with pytest.raises(ValueError, match="no block 4 among 4"):
        timm_neutreno.patch(build("vit"), layers=[4])
    with pytest.raises(ValueError, match=r"leaves no layer for neutreno to act in: in the first one v0 - v is 0"):
        timm_neutreno.patch(build("vit"), layers=[0])


def test_methods_keep_masks_and_causality_or_refuse_them():
    """A mask hides tokens from every method; those that average over tokens say that they cannot do without them."""
    mask = torch.ones(17, 17, dtype=torch.bool).tril()
    for spec in SINGLE:
        model, plain = patched("vit", spec).double(), build("vit").double()
        if METHODS[spec].averages:
            for kwargs in (dict(attn_mask=mask), dict(is_causal=True)):
                with pytest.raises(RuntimeError, match="attnscale and featscale average over all tokens"):
                    model.forward_features(X.double(), **kwargs)
            continue
        with method_oracle(plain, spec, strengths_by_layer(model)):
            expected = plain.forward_features(X.double(), attn_mask=mask)
        for fused in (True, False):
            set_fused(model, fused)
            assert relative(model.forward_features(X.double(), attn_mask=mask), expected) < 1e-12
            assert relative(model.forward_features(X.double(), is_causal=True), expected) < 1e-12


@pytest.mark.parametrize("spec", ["value_residual", "neutreno+featscale", "gfsa+neutreno"])
def test_methods_with_v0_under_patch_dropout_and_other_image_sizes(spec):
    options = dict(patch_drop_rate=0.5, dynamic_img_size=True)
    plain, model = build("vit", **options).double().train(), patched("vit", spec, **options).double().train()
    for x in (X.double(), images(3, 48).double()):
        torch.manual_seed(0)
        with method_oracle(plain, spec, strengths_by_layer(model)):
            expected = plain(x)
        torch.manual_seed(0)
        assert relative(model(x), expected) < 1e-12


def test_without_gradients_the_term_is_added_in_place_to_the_same_bits():
    for key in ("vit", "vit_norms", "parallel_things", "eva02", "cait"):
        model = timm_neutreno.patch(build(key), fidelity=0.4)
        expected = model(X)
        assert expected.requires_grad
        with torch.no_grad():
            assert torch.equal(model(X), expected)
            assert torch.equal(model(X), expected)


def test_one_meaning_in_any_order():
    one = patched("vit", "neutreno+featscale")
    other = timm_neutreno.patch(build("vit"), "featscale + neutreno", **learned("neutreno+featscale"))
    assert torch.equal(one(X), spread(other)(X))
    assert one._model_args == other._model_args
    assert one._model_args["method"] == "neutreno+featscale"


@pytest.mark.parametrize("key", ["vit", "vit_norms", "dinov3", "rel_pos"])
def test_symmetric_folds_into_a_plain_timm_model(key):
    """Key rows copied over the query rows, and key norms over query norms: timm's own model of the same function."""
    model, plain = patched(key, "symmetric"), build(key)
    for block in plain.blocks:
        qkv, C = block.attn.qkv, block.attn.qkv.in_features
        with torch.no_grad():
            for p in filter(lambda p: p is not None, (qkv.weight, qkv.bias)):
                p[:C] = p[C : 2 * C]
            if getattr(block.attn, "q_bias", None) is not None:
                block.attn.q_bias.copy_(block.attn.k_bias)
        block.attn.q_norm = block.attn.k_norm
    assert relative(plain(X), model(X)) < 1e-5


def test_symmetric_freezes_what_only_makes_queries_and_unpatch_frees_it():
    for key in ("gemma4", "vit_norms", "sapiens2_gqa"):
        model = build(key)
        unused = {n for n, _ in model.named_parameters() if ".q_proj." in n or ".q_norm." in n}
        timm_neutreno.patch(model, "symmetric")
        assert unused
        assert {name for name, p in model.named_parameters() if not p.requires_grad} == unused
        model(X).sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        timm_neutreno.unpatch(model)
        assert all(p.requires_grad for p in model.parameters())
