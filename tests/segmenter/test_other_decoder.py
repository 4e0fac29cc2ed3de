"""docs/segmentation.md's other road: DPT of segmentation_models_pytorch around a twin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import timm_neutreno

smp = pytest.importorskip("segmentation_models_pytorch", reason="it comes with the extra `test` alone")

PAGE = Path(__file__).parents[2] / "docs" / "segmentation.md"
SMALL = dict(encoder_weights=None, classes=11, img_size=64)


def test_the_snippet_as_printed_but_without_weights():
    (text,) = re.findall(r"```python\n(import segmentation_models_pytorch.*?)```", PAGE.read_text(), re.DOTALL)
    assert 'encoder_weights="imagenet"' in text
    namespace: dict = {}
    exec(text.replace('"imagenet"', "None"), namespace)
    model = namespace["model"]
    assert set(timm_neutreno.strengths(model).values()) == {0.4}


def test_dpt_around_a_twin_is_dpt_around_the_plain_model_but_for_the_term(tmp_path):
    plain = smp.DPT("tu-vit_tiny_patch16_224", **SMALL).eval()
    model = smp.DPT("tu-neutreno_vit_tiny_patch16_224", fidelity=0.3, **SMALL).eval()
    model.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs, ours = plain(x), model(x)
        assert ours.shape == (1, 11, 64, 64)
        assert (ours - theirs).abs().max() > 1e-3 * theirs.abs().max()
        model.save_pretrained(tmp_path)
        again = smp.from_pretrained(tmp_path).eval()
        assert set(timm_neutreno.strengths(again).values()) == {0.3}
        assert torch.equal(again(x), ours)
        assert torch.equal(timm_neutreno.unpatch(model)(x), theirs)
