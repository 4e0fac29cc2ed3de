"""benchmarks/language_model_flops.py counts attention; torch's counter takes the CPU's fused kernel for nothing."""

import importlib

import pytest
import torch
from timm.layers import Attention
from torch import nn


class Causal(nn.Module):
    """One attention layer; the mean of its outputs stands for the loss."""

    def __init__(self, width, heads):
        super().__init__()
        self.attention = Attention(width, num_heads=heads)
        self.scale = nn.Parameter(torch.ones(()))  # so that the layer's input has a gradient, as in a model

    def forward(self, x, words):
        return self.attention(x * self.scale, is_causal=True)


@pytest.mark.parametrize(("backward", "passes"), [(False, 1), (True, 3)])
def test_attention_is_counted_forward_and_backward(backward, passes):
    counted = importlib.import_module("language_model_flops").counted
    N, C = 64, 32
    x = torch.randn(1, N + 1, C)  # its first N tokens go in
    products = 2 * (4 * N * C * C + 2 * N * N * C)  # qkv and proj; q k^T and A v
    assert counted(Causal(C, 2), x, N, backward=backward) == passes * products
