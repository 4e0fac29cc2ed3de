"""Every token measure against known answers and a literal float64 double loop."""

from __future__ import annotations

import math

import pytest
import torch

from timm_neutreno.smoothing import tokens

N, C = 7, 5


def literal_cosine(x: torch.Tensor) -> float:
    """The formula of App. E.3, pair by pair."""
    x = x.double()
    n = len(x)
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                total += float(x[i] @ x[j]) / math.sqrt(float(x[i] @ x[i]) * float(x[j] @ x[j]))
    return total / (n * (n - 1))


def literal_hfc_lfc(x: torch.Tensor) -> float:
    x = x.double()
    n = len(x)
    constant = torch.ones(n, n, dtype=torch.float64) / n @ x  # LFC = 1/n 1 1^T X
    return float((x - constant).norm() / constant.norm())


def literal_angle(x: torch.Tensor) -> float:
    e = [token / token.norm() for token in x.double()]
    mean = sum(e) / len(e)
    return sum(math.degrees(math.acos(float(token @ mean) / float(mean.norm()))) for token in e) / len(e)


def literal_rank_one_distance(x: torch.Tensor) -> float:
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    return float((x.double() - s[0] * torch.outer(u[:, 0], v[0])).norm() / x.double().norm())


def literal_effective_rank(x: torch.Tensor) -> float:
    eigenvalues = torch.linalg.eigvalsh(x.double().T @ x.double()).clamp(min=0).sqrt()
    return math.exp(-sum(float(p) * math.log(float(p)) for p in eigenvalues / eigenvalues.sum() if p > 0))


LITERAL = {
    "cosine_similarity": literal_cosine,
    "hfc_lfc": literal_hfc_lfc,
    "angle": literal_angle,
    "rank_one_distance": literal_rank_one_distance,
    "effective_rank": literal_effective_rank,
}


@pytest.mark.parametrize("name", LITERAL)
@pytest.mark.parametrize("shift", [0.0, 3.0], ids=["unrelated", "alike"])
def test_equals_the_literal_formula(name, shift):
    x = torch.randn(3, N, C, generator=torch.Generator().manual_seed(0)) + shift
    expected = [LITERAL[name](image) for image in x]
    assert getattr(tokens, name)(x).tolist() == pytest.approx(expected, abs=1e-9)


# tokens with a known answer for each measure: cosine, HFC/LFC, angle, distance to rank one, effective rank
IDENTICAL = torch.full((1, 4, 3), 2.0)
ORTHOGONAL = torch.eye(4)[None]
OPPOSITE = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]])  # rank one, yet not smooth
RANK_TWO = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])
KNOWN = [
    ("cosine_similarity", IDENTICAL, 1.0),
    ("cosine_similarity", ORTHOGONAL, 0.0),
    ("cosine_similarity", OPPOSITE, -1 / 3),
    ("hfc_lfc", IDENTICAL, 0.0),
    ("hfc_lfc", ORTHOGONAL, math.sqrt(3)),
    ("angle", IDENTICAL, 0.0),
    ("angle", ORTHOGONAL, 60.0),
    ("angle", RANK_TWO, 45.0),
    ("rank_one_distance", IDENTICAL, 0.0),
    ("rank_one_distance", OPPOSITE, 0.0),
    ("rank_one_distance", RANK_TWO, math.sqrt(0.5)),
    ("effective_rank", IDENTICAL, 1.0),
    ("effective_rank", OPPOSITE, 1.0),
    ("effective_rank", ORTHOGONAL, 4.0),
    ("effective_rank", RANK_TWO, 2.0),
]


@pytest.mark.parametrize(("name", "x", "answer"), KNOWN)
def test_known_answers(name, x, answer):
    assert getattr(tokens, name)(x).item() == pytest.approx(answer, abs=1e-6)


def test_similarity_keeps_its_digits_when_tokens_are_nearly_equal():
    """The float32 formula loses this difference: 1 - cos is about 1e-10 here."""
    x = torch.ones(1, 200, 64, dtype=torch.float64)
    x[0, 0, 0] += 1e-4
    assert 1 - tokens.cosine_similarity(x).item() == pytest.approx(1 - literal_cosine(x[0]), rel=1e-3)


def test_a_zero_token_is_similar_to_none():
    x = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    assert tokens.cosine_similarity(x).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tokens_are_measured_in_float64(dtype):
    x = torch.randn(2, N, C).to(dtype)
    assert tokens.cosine_similarity(x).dtype == torch.float64
    assert tokens.cosine_similarity(x)[0].item() == pytest.approx(literal_cosine(x[0]), abs=1e-12)
