"""docs/segmentation.md's other road: DPT of segmentation_models_pytorch around a twin."""

from __future__ import annotations

import pytest
import torch

import timm_neutreno

smp = pytest.importorskip("segmentation_models_pytorch", reason="docs/segmentation.md names it; it is not needed here")


def test_dpt_takes_a_twin():
    model = smp.DPT("tu-neutreno_vit_tiny_patch16_224", encoder_weights=None, classes=11).eval()
    assert timm_neutreno.is_patched(model)
    assert {round(value, 3) for value in timm_neutreno.strengths(model).values()} == {0.6}
    with torch.no_grad():
        assert model(torch.randn(1, 3, 224, 224)).shape == (1, 11, 224, 224)
