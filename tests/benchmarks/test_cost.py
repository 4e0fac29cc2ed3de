"""Counted operations and memory against numbers worked out by hand."""

from __future__ import annotations

import pytest
import timm
import torch
from hosts import SMALL, build, images
from torch import nn

import timm_neutreno
from timm_neutreno.cost import count, efficiency

N, C, DEPTH = 17, 48, 4  # of the "vit" host: 16 patches and the class token


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, x):
        return (self.linear(x) * 2).relu()


def test_products_biases_and_elementwise_operations_are_counted():
    counted = count(Small(), torch.zeros(2, 4, 7, 3))
    rows = 2 * 4 * 7
    assert counted.matmul_flops == 2 * rows * 3 * 5
    assert counted.elementwise_flops == rows * 5 * 3  # bias, times 2, relu
    assert counted.peak_bytes == rows * 5 * 4 * 2  # the product and its double; then the linear's output is gone


@pytest.mark.parametrize("batch", [1, 3])
def test_the_fidelity_term_takes_three_operations_per_value_and_layer(batch):
    """v_0 - v, times fidelity, added: methods of the paper, G.4, counted by hand."""
    model, x = build("vit"), images(batch)
    plain, patched = count(model, x), count(timm_neutreno.patch(build("vit")), x)
    assert patched.flops - plain.flops == batch * 3 * (DEPTH - 1) * N * C
    assert patched.matmul_flops == plain.matmul_flops


def test_deit_tiny_is_about_ten_times_the_papers_number():
    """1.248 M operations on 1.254 GMAC: 1.0005, where the paper says 1.00005."""
    model = timm.create_model("deit_tiny_patch16_224")
    ratios = efficiency(model, images(1, 224), pairs=2)
    assert ratios.flops_added_per_image == 3 * 11 * 197 * 192
    assert ratios.flops == pytest.approx(1.000498, abs=2e-5)
    assert 1.0 < ratios.peak_bytes < 1.2
    assert ratios.seconds_quartiles[0] <= ratios.seconds <= ratios.seconds_quartiles[1]
    assert not timm_neutreno.is_patched(model)


def test_memory_is_the_first_values():
    """The peak is inside the MLP, where of ours only v_0 is alive: N C float32 numbers per image."""
    plain, patched = count(build("vit"), images(2)), count(timm_neutreno.patch(build("vit")), images(2))
    assert patched.peak_bytes - plain.peak_bytes == 2 * N * C * 4


def test_wrong_use():
    with pytest.raises(ValueError, match="pairs must be at least 2"):
        efficiency(build("vit"), images(), pairs=1)
    with pytest.raises(ValueError, match="patched already"):
        efficiency(timm.create_model("neutreno_vit_tiny_patch16_224", **SMALL), images())
