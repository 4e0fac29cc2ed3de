"""The linear probe against scikit-learn's Ridge; batch by batch against all at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as Reference
from sklearn.preprocessing import StandardScaler

from timm_neutreno.probing import DataError
from timm_neutreno.probing.ridge import STRENGTHS, Ridge

ROWS, FEATURES, CLASSES = 300, 24, 5


@pytest.fixture(scope="module")
def rows():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, FEATURES, generator=draw, dtype=torch.float64) @ torch.randn(
        FEATURES, FEATURES, generator=draw, dtype=torch.float64
    )
    y = torch.rand(ROWS, CLASSES, generator=draw, dtype=torch.float64)  # shares, as of a patch
    return 3 * x + 100, y / y.sum(1, keepdim=True)


def streamed(x, y, size: int) -> Ridge:
    ridge = Ridge()
    for start in range(0, len(x), size):
        ridge.update(x[start : start + size], y[start : start + size])
    return ridge


@pytest.mark.parametrize("index", range(len(STRENGTHS)))
def test_equals_scikit_learn_on_standardised_features(rows, index):
    x, y = rows
    scaler = StandardScaler().fit(x.numpy())
    reference = Reference(alpha=STRENGTHS[index] * ROWS, solver="svd").fit(scaler.transform(x.numpy()), y.numpy())
    new = torch.randn(50, FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 10 + 100
    scores = streamed(x, y, 37).solve()(new)[index]
    np.testing.assert_allclose(scores, reference.predict(scaler.transform(new.numpy())), rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [1, 7, 299])
@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_streamed_equals_in_memory(rows, size, mean):
    """Also where the mean is a million times the spread, at which plain sums of squares lose 12 of their 16 digits."""
    x, y = rows[0] + mean, rows[1]
    whole, parts = streamed(x, y, ROWS), streamed(x, y, size)
    assert parts.rows == ROWS
    torch.testing.assert_close(parts.products, whole.products, rtol=1e-9, atol=1e-9 * float(whole.products.abs().max()))
    torch.testing.assert_close(parts.solve()(x), whole.solve()(x), rtol=0, atol=1e-9 if not mean else 1e-6)


def test_a_constant_feature_gets_no_weight(rows):
    x, y = rows[0].clone(), rows[1]
    x[:, 3] = 7.0
    linear = streamed(x, y, 50).solve()
    assert linear.weights.isfinite().all()
    assert (linear.weights[:, 3] == 0).all()
    without = streamed(x[:, [i for i in range(FEATURES) if i != 3]], y, 50).solve()
    torch.testing.assert_close(linear(x)[4], without(x[:, [i for i in range(FEATURES) if i != 3]])[4])


def test_one_candidate_is_the_same_as_among_all(rows):
    linear = streamed(*rows, 50).solve()
    assert torch.equal(linear.choose(2)(rows[0])[0], linear(rows[0])[2])


def test_no_rows():
    ridge = Ridge()
    ridge.update(torch.zeros(0, 3), torch.zeros(0, 2))
    with pytest.raises(DataError, match="no labelled train row"):
        ridge.solve()
