"""Eigen-reparameterised weights: the spectrum is where it was asked to be, and folding changes nothing."""

import copy

import pytest
import timm
import torch
from hosts import build, images, patched
from torch.nn.utils import parametrize

import timm_neutreno
from timm_neutreno import fold, reparametrize
from timm_neutreno.smoothing import spectrum

X = images()
RANGES = {"sharpen": (-1, 0), "smooth": (0, 1)}
CASES = [
    (key, kind, orthogonal) for key in ("vit", "beit", "rel_pos") for kind in RANGES for orthogonal in (True, False)
]


def trained(model, steps=5):
    """After some steps of a rate that throws weights about."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(("key", "kind", "free"), CASES)
def test_eigenvalues_stay_in_their_range_in_every_layer_and_head(key, kind, free):
    torch.manual_seed(0)
    model = trained(reparametrize(build(key), kind, orthogonal=not free))
    low, high = RANGES[kind]
    for name, scale in model.named_parameters():
        if name.endswith(("ls1.gamma", "gamma_1")):  # LayerScale comes after the H that is set
            scale.data.fill_(1.0)
    bound = 1e-2 if free else 1e-4  # a free W_V is inverted, and its condition number is of order 100
    for layer in spectrum(model):
        for values in (layer.layer, layer.heads):
            assert values.imag.abs().max() < bound
            assert values.real.min() > low - bound
            assert values.real.max() < high + bound
    spread = torch.stack([layer.layer.real for layer in spectrum(model)]).std(dim=1)
    assert spread.min() > 0.1  # not all at one end


@pytest.mark.parametrize("method", [None, "neutreno+featscale"])
@pytest.mark.parametrize("orthogonal", [True, False])
def test_folding_gives_timms_plain_weights_and_the_same_function(method, orthogonal):
    torch.manual_seed(0)
    model = patched("vit", method) if method else build("vit")
    keys = list(model.state_dict())
    trained(reparametrize(model, "sharpen", orthogonal=orthogonal))
    assert model.blocks[1].attn.proj.parametrizations.weight.original.shape == (48,)
    with parametrize.cached():
        expected = model(X)
    assert torch.equal(model(X), expected)
    fold(model)
    assert sorted(model.state_dict()) == sorted(keys)
    assert torch.equal(model(X), expected)
    plain = patched("vit", method) if method else build("vit")
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(X), expected)


def test_a_deep_copy_reads_its_own_qkv():
    model = reparametrize(build("vit"), "smooth")
    twin = copy.deepcopy(model)
    expected = model(X)
    with torch.no_grad():
        twin.blocks[0].attn.qkv.parametrizations.weight.original.add_(torch.randn(144, 48))
    assert torch.equal(model(X), expected)
    H = spectrum(twin)[0].layer
    assert H.imag.abs().max() < 1e-4
    assert H.real.min() > -1e-4


def test_gradients_are_finite_and_compile_whole():
    torch.manual_seed(0)
    model = reparametrize(patched("vit", "neutreno"), "sharpen")
    expected = model(X)
    expected.square().sum().backward()
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads)
    assert model.blocks[2].attn.proj.parametrizations.weight.original.grad.abs().max() > 0
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(X), expected, atol=1e-5)


def test_wrong_use():
    with pytest.raises(ValueError, match="kind must be 'sharpen' or 'smooth', got 'up'"):
        reparametrize(build("vit"), "up")
    model = reparametrize(build("vit"), "smooth")
    with pytest.raises(ValueError, match=r"parametrized already. fold\(\) the model first"):
        reparametrize(model, "smooth")
    with pytest.raises(ValueError, match="nothing to fold"):
        fold(build("vit"))
    refused = {
        "parallel_scaling": "has no qkv and proj",
        "vit_norms": "has a norm or gate between W_V and W_proj",
        "gemma4": "has no qkv and proj",
    }
    for key, reason in refused.items():
        plain = build(key)
        expected = plain(X)
        with pytest.raises(timm_neutreno.UnsupportedModelError, match=f"cannot reparametrize .*blocks.*{reason}"):
            reparametrize(plain, "sharpen")
        assert torch.equal(plain(X), expected)
    with pytest.raises(timm_neutreno.UnsupportedModelError, match="has no list of `blocks`"):
        reparametrize(torch.nn.Linear(2, 2), "sharpen")


def test_saving_asks_for_folding_first(tmp_path):
    model = reparametrize(timm.create_model("neutreno_deit_tiny", depth=2), "sharpen").eval()
    with pytest.raises(ValueError, match=r"reparametrized: fold\(model\)"):
        timm_neutreno.hub.save_pretrained(model, tmp_path)
    x = images(1, 224)
    expected = model(x)
    timm_neutreno.hub.save_pretrained(fold(model), tmp_path)
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), expected)
