"""The theory as runnable checks: convergence or not, with and without the fidelity term, against literal recursions."""

from __future__ import annotations

import pytest
import torch
from dynamics import fidelity_limit, functional, gradient_step, iterate, smooth_limit
from torch import Tensor

from timm_neutreno.smoothing import tokens

N, C = 6, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, A = random(N, C), random(N, N, seed=1).softmax(dim=-1)
V = torch.linalg.qr(random(C, C, seed=2))[0]


def update_matrix(low: float, high: float) -> Tensor:
    """Symmetric H with eigenvalues from `low` to `high`."""
    return V @ torch.diag(torch.linspace(low, high, C, dtype=torch.float64)) @ V.T


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("fidelity", [0.0, 0.6])
def test_iterates_are_the_literal_recursion_up_to_scale(residual, fidelity):
    H, x = update_matrix(0.2, 1.0), X
    states = iterate(X, A, H, 5, fidelity=fidelity, residual=residual)
    assert states.shape == (6, N, C)
    for state in states:
        assert torch.allclose(state, x / x.norm())
        x = (x if residual else 0) + (A @ x + fidelity * (X - x)) @ H


def test_a_smoothing_spectrum_smooths_fully_and_a_sharpening_one_never():
    smooth = iterate(X, A, update_matrix(0.0, 1.0), 400)
    sharp = iterate(X, A, update_matrix(-1.0, -0.1), 400)
    assert tokens.hfc_lfc(smooth)[-1] < 1e-12
    assert tokens.rank_one_distance(smooth)[-1] < 1e-7
    assert tokens.cosine_similarity(smooth)[-1].item() == pytest.approx(1)
    assert tokens.hfc_lfc(sharp)[-1] > 1
    assert tokens.cosine_similarity(sharp)[-1] < 0.5


def test_the_fidelity_term_stops_the_smoothing_of_plain_attention():
    plain = iterate(X, A, steps=100, residual=False)
    kept = iterate(X, A, steps=100, residual=False, fidelity=0.6)
    assert tokens.hfc_lfc(plain)[-1] < 1e-12
    assert tokens.hfc_lfc(kept)[-1] > 0.3


def kernel() -> Tensor:
    k = random(N, 3, seed=4)
    return (k @ k.T / 3**0.5).exp()


def test_proposition_1_attention_is_a_gradient_step_on_j_and_lowers_it():
    step, attention = gradient_step(X, kernel())
    assert torch.allclose(step, attention, atol=1e-12)
    assert torch.allclose(attention, (kernel() / kernel().sum(dim=1, keepdim=True)) @ X)
    assert functional(step, kernel()) < functional(X, kernel())


def test_the_functional_is_its_double_sum():
    k = kernel()
    literal = sum(k[i, j] * ((X[i] - X[j]) ** 2).sum() for i in range(N) for j in range(N)) / 2
    assert functional(X, k).item() == pytest.approx(literal.item())


def test_lemma_1_repeated_attention_ends_in_equal_tokens():
    limit = smooth_limit(X, A)
    assert torch.equal(limit, limit[:1].expand(N, C))
    x = X
    for _ in range(100):
        x = A @ x
    assert torch.allclose(x, limit, atol=1e-10)
    second = torch.linalg.eigvals(A).abs().sort(descending=True).values[1]
    ratio = (A @ A @ x0_after(20) - limit).norm() / (x0_after(20) - limit).norm()
    assert ratio <= 3 * second**2  # shrinks about as lambda_2 says (a complex pair turns, so not exactly)


def x0_after(steps: int) -> Tensor:
    return torch.linalg.matrix_power(A, steps) @ X


def test_lemma_2_with_fidelity_it_ends_in_tokens_that_differ():
    limit, x = fidelity_limit(X, A, 0.6), X
    for _ in range(200):
        x = A @ x + 0.6 * (X - x)
    assert torch.allclose(x, limit, atol=1e-10)
    assert tokens.hfc_lfc(limit[None]).item() > 0.3
    equal = torch.ones(N, C, dtype=torch.float64)
    assert torch.allclose(fidelity_limit(equal, A, 0.6), equal)


NEGATIVE = torch.tensor([[0.1, 0.9], [0.9, 0.1]])  # eigenvalues 1 and -0.8

WRONG = {
    "rows": (lambda: iterate(X, A * 2), "rows that sum to 1"),
    "shape": (lambda: iterate(X, A[:3, :3].softmax(-1)), r"A must be \(6, 6\)"),
    "H": (lambda: iterate(X, A, torch.eye(3)), r"H must be \(C, C\)"),
    "zero": (lambda: iterate(X, A, torch.zeros(C, C), residual=False), "the state is zero after 1 steps"),
    "NaN": (lambda: iterate(X * float("nan"), A), "the state is not finite after 0 steps"),
    "kernel": (lambda: gradient_step(X, A), "symmetric and positive"),
    "no walk": (lambda: smooth_limit(X, torch.eye(N)), "A must be positive"),
    "no fidelity": (lambda: fidelity_limit(X, A, 0.0), "fidelity must be positive"),
    "diverges": (lambda: fidelity_limit(X[:2], NEGATIVE, 0.6), "an eigenvalue of size 1.400"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()
