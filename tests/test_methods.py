"""Laws of the methods on plain tensors, as their papers have them, and what their options take."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_neutreno import fidelity_term
from timm_neutreno.methods import METHODS, Projected, add_scaled, canonical, check_strength, resolve

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


# --- identities of the other methods --------------------------------------------------------------------------------


def softmax_attention(p):
    scale = p.q.shape[-1] ** -0.5 if p.scale is None else p.scale
    scores = scale * p.q @ p.k.transpose(-2, -1)
    return (scores if p.bias is None else scores + p.bias).softmax(dim=-1) @ p.v


def projected(seed, shape=(2, 3, 6, 4), **kwargs):
    return Projected(*tensors(shape, seed), **kwargs)


def close(a, b):
    return torch.allclose(a, b, atol=1e-12, rtol=1e-12)


def attention_map(p):
    return softmax_attention(p._replace(v=torch.eye(p.v.shape[-2], dtype=p.v.dtype).expand(*p.v.shape[:2], -1, -1)))


@examples
@given(SEEDS, NUMBERS)
def test_each_method_is_what_its_paper_says(seed, w):
    p, (v0,) = projected(seed), tensors((2, 3, 6, 4), seed + 1, 1)
    A, apply = attention_map(p), {name: row.apply for name, row in METHODS.items()}
    mean = p.v.mean(dim=-2, keepdim=True).expand_as(p.v)
    assert close(apply["value_residual"](softmax_attention, p, 1.0, v0), A @ v0)
    assert close(apply["attnscale"](softmax_attention, p, -1.0), mean)
    assert close(apply["gfsa"](softmax_attention, p, w), A @ p.v + w * (A @ p.v + 3 * (A @ A @ p.v - A @ p.v)))
    assert close(apply["twicing"](softmax_attention, p, 1.0), (2 * A - A @ A) @ p.v)
    assert close(apply["twicing"](softmax_attention, p._replace(v=mean), w), mean)  # constant values stay
    exclusive = apply["xsa"](softmax_attention, p, 1.0)
    assert ((exclusive * p.v).sum(dim=-1).abs() <= 1e-12 * p.v.norm(dim=-1) * (1 + exclusive.norm(dim=-1))).all()
    heads = apply["laplacian"](softmax_attention, p, 1 / 3)
    assert close(heads[:, :1], (p.v - A @ p.v)[:, :1])
    assert torch.equal(heads[:, 1:], softmax_attention(p)[:, 1:])
    assert close(apply["neutreno"](softmax_attention, p, w, v0), A @ p.v + fidelity_term(p.v, v0, w))


@examples
@given(SEEDS, st.sampled_from([None, 1.0, 0.3]))
def test_kernel_is_a_gaussian_of_distances_and_does_not_see_a_common_shift(seed, scale):
    p, (shift,) = projected(seed, scale=scale), tensors((1, 1, 1, 4), seed + 1, 1)
    kernel = METHODS["kernel"].apply
    K = torch.exp(-(4**-0.5 if scale is None else scale) / 2 * torch.cdist(p.q, p.k).square())
    assert torch.allclose(kernel(softmax_attention, p), K / K.sum(dim=-1, keepdim=True) @ p.v, atol=1e-9)
    moved = kernel(softmax_attention, p._replace(q=p.q + shift, k=p.k + shift))
    assert torch.allclose(moved, kernel(softmax_attention, p), atol=1e-9)
    bias = tensors((2, 3, 6, 6), seed + 2, 1)[0]
    biased = K * bias.exp()
    expected = biased / biased.sum(dim=-1, keepdim=True) @ p.v
    assert torch.allclose(kernel(softmax_attention, p._replace(bias=bias)), expected, atol=1e-9)


@examples
@given(SEEDS)
def test_symmetric_scores_equal_their_transpose(seed):
    seen = []
    METHODS["symmetric"].apply(lambda p: seen.append(p.q @ p.k.transpose(-2, -1)), projected(seed))
    assert torch.equal(seen[0], seen[0].transpose(-2, -1))


@examples
@given(SEEDS, NUMBERS, NUMBERS)
def test_featscale_weighs_the_mean_and_the_rest_channel_by_channel(seed, low, high):
    y, p = tensors((2, 6, 5), seed, 1)[0], projected(seed)
    featscale, ones = METHODS["featscale"].apply, torch.ones(5, dtype=y.dtype)
    mean = y.mean(dim=1, keepdim=True).expand_as(y)
    assert close(featscale(y, p, low * ones, high * ones), (1 + low) * mean + (1 + high) * (y - mean))
    assert close(featscale(y, p, 0.0, -1.0), mean)
    one = torch.zeros(5, dtype=y.dtype)
    one[2] = 1.0
    assert torch.equal(featscale(y, p, one * 0, one)[..., [0, 1, 3, 4]], y[..., [0, 1, 3, 4]])


def test_options_have_one_meaning():
    assert canonical(" featscale + neutreno") == "neutreno+featscale"
    assert resolve("neutreno", {}) == {"fidelity": 0.6, "learnable_fidelity": None}
    assert resolve("gfsa", {}) == {"gfsa": 0.0, "learnable_gfsa": "head"}  # as the paper learns it
    assert resolve("gfsa", {"gfsa": 0.1, "learnable_gfsa": False}) == {"gfsa": 0.1, "learnable_gfsa": False}
    assert resolve("symmetric", {}) == {}


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("x", {}, "unknown method 'x' in 'x'. Methods: attnscale, gfsa"),
        ("neutreno+neutreno", {}, "names a method twice"),
        (0.3, {}, r"got 0.3. For a fidelity of 0.3 say fidelity=0.3"),
        (None, {}, "method must be names"),
        ("neutreno", {"gfsa": 1}, "gfsa belongs to the method 'gfsa', and the method is 'neutreno'"),
        ("gfsa", {"learnable_fidelity": "head"}, "learnable_fidelity belongs to the method 'neutreno'"),
        ("gfsa", {"fidelty": 1}, "unknown option 'fidelty' of method 'gfsa'. Options: gfsa, learnable_gfsa"),
        ("symmetric", {"x": 1}, "Options: none"),
        ("laplacian", {"learnable_laplacian": "head"}, "learnable_laplacian must be one of None, False; got 'head'"),
        ("laplacian", {"laplacian": 1.5}, "a share of the heads, from 0 to 1, got 1.5"),
        ("featscale", {"learnable_featscale_low": "head"}, "must be one of None, False, 'channel'; got 'head'"),
        ("xsa", {"xsa": float("nan")}, "xsa must be a finite number such as 1.0, got nan"),
    ],
)
def test_options_that_cannot_be_are_refused(method, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        resolve(method, options)
