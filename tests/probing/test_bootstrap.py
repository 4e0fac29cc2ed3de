"""The paired bootstrap against scipy's, and cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from timm_neutreno.probing import bootstrap, classification, paired_differences, segmentation


def hits(count: int, share: float, seed: int):
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([(torch.rand(count, generator=draw) < share).double(), torch.ones(count).double()], dim=1)


def test_equals_scipys_percentile_interval():
    a, b = hits(300, 0.7, 0), hits(300, 0.78, 1)
    ((found, wider),) = paired_differences(a, [b], classification.score, (0.95, 0.99), resamples=20_000)

    def statistic(x, y, axis):
        return 100 * (x.mean(axis) - y.mean(axis))

    for difference, level in ((found, 0.95), (wider, 0.99)):
        reference = scipy.stats.bootstrap(
            (b[:, 0].numpy(), a[:, 0].numpy()), statistic, paired=True, n_resamples=20_000, method="percentile",
            confidence_level=level, rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        assert difference.value == pytest.approx(float(b[:, 0].mean() - a[:, 0].mean()) * 100)
        assert difference.low == pytest.approx(reference.low, abs=0.4)  # both draw; one image is 0.33
        assert difference.high == pytest.approx(reference.high, abs=0.4)


def test_two_images_one_of_which_gained():
    """Of two draws from two images, the gained one comes 0, 1, 2 times with chances 1/4, 1/2, 1/4."""
    a, b = torch.tensor([[0.0, 1], [1, 1]]), torch.tensor([[1.0, 1], [1, 1]])
    levels = (0.4, 0.6)
    ((inner, outer),) = paired_differences(a.double(), [b.double()], classification.score, levels, resamples=20_000)
    assert inner == (50, 50, 50)
    assert outer == (50, 0, 100)


def test_pairing_is_what_makes_it_narrow():
    """A model that gains exactly two points on every image: no doubt at all, however much images differ."""
    scores = torch.rand(50, generator=torch.Generator().manual_seed(0)).double()
    a, b = (torch.stack([values, torch.ones(50).double()], dim=1) for values in (scores, scores + 0.02))
    (((value, low, high),),) = paired_differences(a, [b], classification.score)
    assert all(math.isclose(number, 2.0, abs_tol=1e-9) for number in (value, low, high))


def test_equal_models_differ_by_nothing():
    a = hits(40, 0.5, 0)
    (((value, low, high),),) = paired_differences(a, [a], classification.score)
    assert (value, low, high) == (0, 0, 0)


def test_miou_is_that_of_each_draws_summed_counts():
    """Against a loop that draws images and scores their summed counts; the weights are the same draws."""
    draw = torch.Generator().manual_seed(3)
    hit = torch.randint(5, (12, 3), generator=draw)
    rest = [hit + torch.randint(5, (12, 3), generator=draw) for _ in range(4)]
    a, b = (torch.cat([hit, rest[i], rest[i + 1]], dim=1).double() for i in (0, 2))
    (((_, low, high),),) = paired_differences(a, [b], segmentation.score, (0.9,), resamples=500, seed=7)
    picks = torch.randint(12, (500, 12), generator=torch.Generator().manual_seed(7))
    loop = [float(segmentation.score(b[pick].sum(0)) - segmentation.score(a[pick].sum(0))) for pick in picks]
    assert (low, high) == pytest.approx(tuple(np.quantile(loop, [0.05, 0.95])), abs=1e-9)


def test_how_many_are_drawn_at_once_changes_nothing(monkeypatch):
    a, b = hits(30, 0.4, 0), hits(30, 0.6, 1)
    at_once = paired_differences(a, [b], classification.score, resamples=200)
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 100)
    assert paired_differences(a, [b], classification.score, resamples=200) == at_once
