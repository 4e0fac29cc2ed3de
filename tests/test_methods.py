"""Laws of the paper's formula on plain tensors: linear in fidelity, zero where v = v0, exact at fidelity 0."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_neutreno import fidelity_term
from timm_neutreno.methods import add_scaled, check_strength

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 5))
NUMBERS = st.floats(-4, 4, allow_subnormal=False)
SEEDS = st.integers(0, 2**31)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])

examples = settings(max_examples=60, deadline=None)


def tensors(shape, seed, count=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def add_term(u, v, v0, fidelity):
    """What `neutreno` adds to u; a tensor fidelity as the attention body gives it."""
    w = fidelity if isinstance(fidelity, int | float) else fidelity.view(-1, 1, 1)
    return add_scaled(u, w, v0 - v)


def loop_formula(u, v, v0, fidelity_of_head):
    """u_bhnd + fidelity_h * (v0_bhnd - v_bhnd), one number at a time."""
    out = torch.empty(u.shape, dtype=torch.float64)
    B, H, N, D = u.shape
    for b in range(B):
        for h in range(H):
            for n in range(N):
                for d in range(D):
                    i = b, h, n, d
                    out[i] = float(u[i]) + fidelity_of_head(h) * (float(v0[i]) - float(v[i]))
    return out


@examples
@given(SHAPES, SEEDS, NUMBERS, NUMBERS, NUMBERS)
def test_term_is_linear_in_fidelity_and_in_the_difference(shape, seed, a, b, c):
    v, v0 = tensors(shape, seed, 2)
    both = fidelity_term(v, v0, a + b)
    assert torch.allclose(both, fidelity_term(v, v0, a) + fidelity_term(v, v0, b), atol=1e-12)
    assert torch.allclose(fidelity_term(c * v, c * v0, a), c * fidelity_term(v, v0, a), atol=1e-12)
    assert torch.equal(fidelity_term(v0, v, a), -fidelity_term(v, v0, a))
    shift = tensors(shape, seed + 1, 1)[0]
    assert torch.allclose(fidelity_term(v + shift, v0 + shift, a), fidelity_term(v, v0, a), atol=1e-12)


@examples
@given(SHAPES, SEEDS, NUMBERS, DTYPES)
def test_term_is_zero_where_v_is_v0(shape, seed, fidelity, dtype):
    u, v = tensors(shape, seed, 2, dtype)
    assert torch.count_nonzero(fidelity_term(v, v.clone(), fidelity)) == 0
    assert torch.equal(add_term(u, v, v.clone(), fidelity), u)
    assert torch.equal(add_term(u, v, v.clone(), torch.tensor([fidelity], dtype=dtype)), u)


@examples
@given(SHAPES, SEEDS, DTYPES, st.sampled_from(["float", "layer", "head"]))
def test_zero_fidelity_gives_u_exactly(shape, seed, dtype, kind):
    u, v, v0 = tensors(shape, seed, 3, dtype)
    fidelity = 0.0 if kind == "float" else torch.zeros(shape[1] if kind == "head" else 1)
    out = add_term(u, v, v0, fidelity)
    assert out.dtype == dtype
    assert torch.equal(out, u)


@examples
@given(SHAPES, SEEDS, NUMBERS, DTYPES)
def test_equals_the_formula_in_float64(shape, seed, fidelity, dtype):
    u, v, v0 = tensors(shape, seed, 3, dtype)
    want = loop_formula(u, v, v0, lambda h: fidelity)
    size = u.abs().double() + abs(fidelity) * (v0.abs().double() + v.abs().double())
    bound = 2 * torch.finfo(dtype).eps * size + torch.finfo(dtype).tiny  # v0 - v, the product and the sum are rounded
    for out in (add_term(u, v, v0, fidelity), u + fidelity_term(v, v0, fidelity)):
        assert out.dtype == dtype
        assert out.shape == u.shape
        assert ((out.double() - want).abs() <= bound).all()


@examples
@given(SHAPES, SEEDS)
def test_tensor_fidelity_belongs_to_the_layer_or_to_its_heads(shape, seed):
    u, v, v0 = tensors(shape, seed)
    (numbers,) = tensors((shape[1],), seed + 1, 1)
    per_head = add_term(u, v, v0, numbers)
    assert torch.allclose(per_head, loop_formula(u, v, v0, lambda h: numbers[h].item()), atol=1e-13)
    for h in range(shape[1]):  # a head sees its own number and no other
        alone = add_term(u[:, h : h + 1], v[:, h : h + 1], v0[:, h : h + 1], numbers[h].item())
        assert torch.allclose(per_head[:, h : h + 1], alone, atol=1e-13)
    layer = add_term(u, v, v0, numbers[:1])
    assert torch.allclose(layer, add_term(u, v, v0, numbers[0].item()), atol=1e-13)


@pytest.mark.parametrize("kind", ["float", "layer", "head"])
def test_gradients_by_finite_differences(kind):
    u, v, v0 = (t.requires_grad_() for t in tensors((2, 3, 4, 5), 0))
    if kind == "float":
        assert torch.autograd.gradcheck(lambda u, v, v0: add_term(u, v, v0, 0.6), (u, v, v0))
        assert torch.autograd.gradcheck(lambda v, v0: fidelity_term(v, v0, 0.6), (v, v0))
        return
    (fidelity,) = tensors((3 if kind == "head" else 1,), 1, 1)
    inputs = (u, v, v0, fidelity.requires_grad_())
    assert torch.autograd.gradcheck(add_term, inputs)
    assert torch.autograd.gradgradcheck(add_term, inputs)


def test_gradient_reaches_v0_and_inputs_stay():
    u, v, v0 = (t.requires_grad_() for t in tensors((1, 2, 3, 4), 0))
    before = [t.detach().clone() for t in (u, v, v0)]
    add_term(u, v, v0, 0.6).sum().backward()
    assert torch.allclose(v0.grad, torch.full_like(v0, 0.6))
    assert torch.allclose(v.grad, torch.full_like(v, -0.6))
    assert all(torch.equal(t, b) for t, b in zip((u, v, v0), before, strict=True))


@given(st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(10**6), 10**6))
def test_check_fidelity_takes_exactly_the_finite_numbers(number):
    if math.isfinite(number):
        assert check_strength("fidelity", number) == number
        assert type(check_strength("fidelity", number)) is float
    else:
        with pytest.raises(ValueError, match="finite number"):
            check_strength("fidelity", number)


def test_check_fidelity_takes_what_float_takes():
    assert check_strength("fidelity", "0.25") == check_strength("fidelity", torch.tensor(0.25)) == 0.25
    with pytest.raises(ValueError, match="finite number"):
        check_strength("fidelity", 10**400)
