"""k-NN against scikit-learn's; which rows stay when not all do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from torch.nn.functional import one_hot

from timm_neutreno.probing import DataError
from timm_neutreno.probing.neighbors import Bank


def rows(count: int, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 12, generator=draw), torch.randint(4, (count,), generator=draw)


def filled(x, y, size: int | None = None, batch: int = 50, seed: int = 0) -> Bank:
    bank = Bank(size, seed)
    for start in range(0, len(x), batch):
        bank.update(x[start : start + batch], y[start : start + batch])
    return bank


def test_equals_scikit_learn():
    (x, labels), (new, _) = rows(1030), rows(600, 1)  # more of either than are held at once
    scores = filled(x, one_hot(labels, 4)).solve((1, 5, 20))(new)
    for candidate, k in enumerate((1, 5, 20)):
        reference = KNeighborsClassifier(k, metric="cosine").fit(x.numpy(), labels.numpy())
        np.testing.assert_allclose(scores[candidate], reference.predict_proba(new.numpy()), atol=1e-6)
        assert scores[candidate].max(1).indices.tolist() == reference.predict(new.numpy()).tolist()


def test_soft_targets_equal_scikit_learns_regression():
    (x, _), (new, _) = rows(300), rows(40, 1)
    y = torch.rand(300, 3, generator=torch.Generator().manual_seed(2))
    reference = KNeighborsRegressor(7, metric="cosine").fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(filled(x, y).solve((7,))(new)[0], reference.predict(new.numpy()), atol=1e-6)


def test_the_rows_that_stay_depend_on_the_seed_alone():
    x, labels = rows(1000)
    y = one_hot(labels, 4)
    first, other, again = (filled(x, y, 100, batch).solve((1,)) for batch in (10, 333, 1000))
    assert first.x.shape == (100, 12)
    assert torch.equal(first.x, other.x)
    assert torch.equal(first.y, again.y)
    assert not torch.equal(first.x, filled(x, y, 100, seed=1).solve((1,)).x)


def test_every_row_may_stay():
    """Each of 40 rows stays about as often as another: 200 draws of a fourth of them."""
    x = torch.eye(40)
    stayed = sum(filled(x, x, 10, 7, seed).solve((1,)).y.sum(0) for seed in range(200))
    assert 25 < stayed.min() <= stayed.max() < 80


def test_fewer_rows_than_neighbours():
    with pytest.raises(DataError, match="6 labelled train rows, fewer than 20 neighbours"):
        filled(torch.eye(6), torch.eye(6)).solve((5, 20))


def test_the_command_offers_the_same_numbers():
    from timm_neutreno_cli.commands import probe

    from timm_neutreno.probing.neighbors import NEIGHBORS

    assert probe.parse_numbers("--neighbors", probe.NEIGHBORS, int) == list(NEIGHBORS)
