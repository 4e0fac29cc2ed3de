"""Eigenvalues of H and what they say, against weights whose spectrum is set by hand and literal matrices."""

from __future__ import annotations

import itertools
import math

import pytest
import timm
import torch
from hosts import HOSTS, SMALL, build, images
from torch import Tensor

import timm_neutreno
from timm_neutreno.smoothing import dominating, dominating_eigenvalues, measure, plot_spectra, spectrum
from timm_neutreno.smoothing.layers import find_attention_output, find_blocks
from timm_neutreno.smoothing.spectra import update_matrices

C, HEADS, D = 48, 3, 16


def set_update(model, eigenvalues: Tensor) -> None:
    """Give every layer H = V diag(eigenvalues) V^-1 with W_V = V, W_proj = diag(eigenvalues) V^-1."""
    V = torch.linalg.qr(torch.randn(C, C, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[2 * C :] = V.t()  # a torch weight is the transpose
            block.attn.proj.weight.copy_((torch.diag(eigenvalues) @ V.t()).t())


@pytest.mark.parametrize("patched", [False, True])
def test_a_spectrum_set_by_hand_is_found_whole_and_by_head(patched):
    model, wanted = build("vit"), torch.linspace(1, -0.5, C, dtype=torch.float64)
    set_update(model, wanted)
    layer = spectrum(timm_neutreno.patch(model) if patched else model)[2]
    assert layer.layer.real.tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
    assert layer.layer.imag.abs().max() < 1e-5
    for head in range(HEADS):  # its own D columns of V
        found = layer.heads[head].real.sort(descending=True).values
        assert found.tolist() == pytest.approx(wanted[head * D : (head + 1) * D].tolist(), abs=1e-5)


CANNOT = ("parallel_scaling", "diff_parallel", "parallel_things")  # no single attention output of their own


@pytest.mark.parametrize("host", [name for name in HOSTS if name not in CANNOT])
def test_h_is_what_the_module_does_to_its_input(host):
    """H of every class, seen from outside: with one token A = 1, so the output is x H, plus biases, without norms."""
    x = torch.randn(5, C, generator=torch.Generator().manual_seed(1))
    for block in find_blocks(build(host)).blocks:
        value, output = attention_as_function(find_attention_output(block, 0))
        with torch.no_grad():
            expected = output(value(x)) - output(value(torch.zeros_like(x)))
            expected = layer_scale(block)(expected)
        H = update_matrices(block).sum(dim=0).float()
        assert torch.allclose(x @ H, expected, atol=1e-4 * float(expected.abs().max()))


def layer_scale(block):
    """What the block does to the attention's output before it is added; hosts of BEiT, EVA and CaiT keep a vector."""
    gamma = getattr(block, "gamma_1", None)
    return getattr(block, "ls1", torch.nn.Identity()) if gamma is None else lambda x: x * gamma


def test_layer_scale_belongs_to_h():
    """Trained scales have both signs: without them the eigenvalues are those of another layer."""
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, init_values=0.1)
    block, x = model.blocks[1], torch.randn(1, 5, C, generator=torch.Generator().manual_seed(1)).transpose(0, 1)
    with torch.no_grad():
        block.ls1.gamma.copy_(torch.randn(C, generator=torch.Generator().manual_seed(2)))
        expected = block.ls1(block.attn(x)) - block.ls1(block.attn(torch.zeros_like(x)))  # one token each: A = 1
    H = update_matrices(block).sum(dim=0)
    assert torch.allclose(x @ H.float(), expected, atol=1e-5)
    wanted = torch.linalg.eigvals(H).real.sort().values
    assert torch.allclose(spectrum(model)[1].layer.real.sort().values, wanted, atol=1e-8)
    heads = spectrum(model)[1].heads[0].real.sort().values
    first = torch.linalg.eigvals(update_matrices(block)[0]).real
    assert torch.allclose(heads, first[first.abs().argsort(descending=True)[:D]].sort().values, atol=1e-8)


def attention_as_function(attention):
    """The module's own linear layers from tokens to values of all heads, and from there to its output."""
    output = attention.proj if hasattr(attention, "proj") else attention.o_proj
    width = getattr(output, "linear", output).in_features
    if getattr(attention, "qkv", None) is not None:
        return lambda x: attention.qkv(x)[..., -width:], output

    def value(x):
        v = attention.v_proj(x).unflatten(-1, (-1, width // attention.num_heads))
        return v.repeat_interleave(attention.num_heads // v.shape[-2], dim=-2).flatten(-2)

    return value, output


def test_the_norm_is_folded_in_and_its_signs_are_counted():
    model = build("vit")
    with torch.no_grad():
        model.blocks[1].norm1.weight[: C // 4] = -2.0
        model.blocks[1].norm1.weight[C // 4 :] = 1.0
    plain, folded = spectrum(model), spectrum(model, fold_norm=True)
    assert plain[1].negative_gains == 0.25
    H = update_matrices(model.blocks[1]).sum(dim=0)
    expected = torch.linalg.eigvals(torch.diag(model.blocks[1].norm1.weight.detach().double()) @ H).real.sort().values
    assert torch.allclose(folded[1].layer.real.sort().values, expected)
    total = folded[1].heads.sum()  # the trace, which a similarity leaves as it is
    assert total.real.item() == pytest.approx(folded[1].layer.sum().real.item())


def test_a_norm_after_the_attention_cannot_be_folded():
    model = build("res_post")
    assert all(math.isnan(layer.negative_gains) for layer in spectrum(model))
    with pytest.raises(ValueError, match=r"cannot fold the norm of blocks.0 .*ResPostBlock"):
        spectrum(model, fold_norm=True)


def random_attention(n: int = 6) -> Tensor:
    return torch.randn(n, n, generator=torch.Generator().manual_seed(7), dtype=torch.float64).softmax(dim=-1)


@pytest.mark.parametrize(("low", "high", "smooths"), [(0.0, 1.0, True), (-1.0, -0.01, False), (-0.3, 1.0, True)])
def test_dominating_eigenvalue_of_the_literal_update(low, high, smooths):
    """The update is a matrix on vec(X): its largest eigenvalue, and whether that is the constant direction's."""
    A = random_attention()
    h = torch.linspace(low, high, 4, dtype=torch.float64)
    matrix = torch.eye(24, dtype=torch.float64) + torch.kron(torch.diag(h), A)
    largest = torch.linalg.eigvals(matrix).abs().max().item()
    found = dominating(h, torch.linalg.eigvals(A))
    assert found.value.abs().item() == pytest.approx(largest)
    assert found.value.item() == pytest.approx((1 + found.lambda_h * found.lambda_a).item())
    assert bool(found.smooths) == smooths


def test_directions_that_stay_as_they_are_do_not_smooth():
    """With H negative or zero and A positive the largest is 1 + 0 * 1: nothing grows, so nothing takes over."""
    found = dominating(torch.tensor([0.0, -0.5]), torch.tensor([1.0, 0.5]))
    assert found.value.item() == 1
    assert not found.smooths


def test_dominating_eigenvalues_come_per_image_and_head():
    model = build("vit")
    for sign, smooths in ((1.0, True), (-1.0, False)):
        set_update(model, sign * torch.linspace(0.1, 1, C, dtype=torch.float64))
        layers = dominating_eigenvalues(model, images(2))
        assert [layer.smooths.shape for layer in layers] == [(2, HEADS)] * 4
        assert all(bool((layer.smooths == smooths).all()) for layer in layers)


def uniform_model(h: float):
    """X <- X + h * mean(X) in every block: uniform attention, H = h I, no norms, no MLP."""
    model = timm.create_model("vit_tiny_patch16_224", **{**SMALL, "depth": 6}).eval()
    set_update(model, torch.full((C,), h, dtype=torch.float64))
    with torch.no_grad():
        for block in model.blocks:
            block.norm1 = torch.nn.Identity()
            block.attn.qkv.weight[: 2 * C] = 0
            for parameter in (block.attn.qkv.bias, block.attn.proj.bias, block.mlp.fc2.weight, block.mlp.fc2.bias):
                parameter.zero_()
    return model


@pytest.mark.parametrize("h", [1.0, -0.5])
def test_a_model_set_by_hand_smooths_fully_or_never(h):
    """The mean token grows by 1 + h per layer and the differences stay: HFC / LFC falls, or grows, by that factor."""
    values = measure(uniform_model(h), [images(1)], ["block_hfc_lfc", "block_similarity"]).values
    ratio = values["block_hfc_lfc"]
    assert [a / b for a, b in itertools.pairwise(ratio)] == pytest.approx([1 + h] * 5, rel=1e-4)
    similarity = values["block_similarity"]
    assert (similarity[-1] > similarity[0]) == (h > 0)


def test_spectra_of_a_family_are_plotted(tmp_path):
    models = {"first": build("vit"), "second": build("deit_distilled")}
    plot_spectra({name: spectrum(model) for name, model in models.items()}, tmp_path / "spectra.svg")
    text = (tmp_path / "spectra.svg").read_text()
    assert ">first<" in text
    assert ">second<" in text
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_spectra({}, tmp_path / "spectra.svg")


def test_wrong_models_are_said():
    with pytest.raises(ValueError, match="come out as one sum"):
        spectrum(build("parallel_scaling"))
    with pytest.raises(ValueError, match=r"cannot read W_V and W_proj of timm\.models\.convit\.GPSA"):
        spectrum(timm.create_model("convit_tiny"))
    model = build("vit")
    with torch.no_grad():
        model.blocks[3].attn.qkv.weight[-1, 0] = float("inf")
    with pytest.raises(ValueError, match=r"blocks\.3 contain NaN or infinity"):
        spectrum(model)
