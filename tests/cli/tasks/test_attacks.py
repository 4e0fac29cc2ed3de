"""FGSM and PGD: within the budget, and against formulas on a linear model, where the best attack is known."""

from __future__ import annotations

import pytest
import torch
from hosts import build
from timm_neutreno_cli.tasks.attacks import fgsm, pgd
from torch.nn import functional as F

import timm_neutreno

BUDGET = 4 / 255


def test_on_a_linear_model_both_find_the_best_attack():
    """With two classes the loss grows with (w_1 - w_0) x: its largest value in the budget is at the signs of w."""
    torch.manual_seed(0)
    w, x, target = torch.randn(2, 12), torch.rand(5, 3, 2, 2) * 0.8 + 0.1, torch.tensor([0, 1, 0, 1, 1])

    def logits(x):
        return x.flatten(1) @ w.T

    direction = torch.where(target == 0, 1.0, -1.0)[:, None] * (w[1] - w[0]).sign()
    best = x + BUDGET * direction.reshape(x.shape)
    torch.testing.assert_close(fgsm(logits, x, target, BUDGET), best)
    torch.testing.assert_close(pgd(logits, x, target, BUDGET), best)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_a_change_stays_within_the_budget_and_the_pixels_range(attack):
    model, x = build("vit"), torch.rand(4, 3, 32, 32)
    x[:, :, :8] = 0.0
    x[:, :, 8:16] = 1.0
    found = attack(model, x, torch.tensor([0, 1, 2, 3]), BUDGET)
    assert 0 <= found.min() <= found.max() <= 1
    assert 0 < (found - x).abs().max() <= BUDGET + 1e-6
    assert not found.requires_grad


@pytest.mark.parametrize("patched", [False, True])
def test_pgd_raises_the_loss_more_than_fgsm(patched):
    model = build("vit")
    if patched:
        timm_neutreno.patch(model)
    x, target = torch.rand(8, 3, 32, 32), torch.arange(8) % 5
    loss = {
        name: F.cross_entropy(model(images), target).item()
        for name, images in {
            "clean": x, "fgsm": fgsm(model, x, target, BUDGET), "pgd": pgd(model, x, target, BUDGET)
        }.items()
    }  # fmt: skip
    assert loss["clean"] < loss["fgsm"] < loss["pgd"]
