"""Corruptions: the images stay images, each strength does what it says, and the same image gets the same noise."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from timm_neutreno_cli.data.corruptions import CORRUPTIONS, corrupt


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """(4, 3, 56, 56) real pictures."""
    from sklearn.datasets import load_sample_images

    china = Image.fromarray(load_sample_images().images[0])
    parts = [china.crop((x, 100, x + 224, 324)).resize((56, 56)) for x in (0, 120, 240, 360)]
    return torch.stack([torch.from_numpy(np.array(part)).permute(2, 0, 1) / 255 for part in parts])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_stronger_is_further_away_and_still_an_8_bit_image(photos, name):
    distances = []
    for strength in CORRUPTIONS[name].strengths:
        found = corrupt(photos, name, strength, 0)
        assert found.shape == photos.shape
        assert torch.equal(found, (found * 255).round() / 255)
        assert 0 <= found.min() <= found.max() <= 1
        distances.append((found - photos).square().mean().item())
    assert 0 < distances[0] < distances[1] < distances[2]


def test_noise_depends_on_the_place_of_the_image_alone(photos):
    whole = corrupt(photos, "noise", 0.18, 10)
    parts = [corrupt(photos[i : i + 1], "noise", 0.18, 10 + i) for i in range(4)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, corrupt(photos, "noise", 0.18, 11))
    grey = torch.full((2, 3, 100, 100), 0.5)
    assert (corrupt(grey, "noise", 0.08, 0) - grey).std().item() == pytest.approx(0.08, rel=0.02)


def test_contrast_and_pixels_by_hand(photos):
    means = photos.mean((2, 3), keepdim=True)
    expected = ((photos - means) * 0.4 + means).clamp(0, 1)
    assert torch.allclose(corrupt(photos, "contrast", 0.4, 0), expected, atol=0.5 / 255 + 1e-6)
    blocks = corrupt(photos, "pixelate", 0.25, 0)  # 56 -> 14: blocks of 4 x 4 of their mean
    means = photos.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))
    assert torch.allclose(blocks, means.repeat_interleave(4, 2).repeat_interleave(4, 3), atol=0.5 / 255 + 1e-6)


def test_blur_is_a_gaussian_that_goes_with_the_root_of_the_side(photos):
    pixels = (photos[0] * 255).byte().permute(1, 2, 0).numpy()
    reference = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3))  # Pillow's approximation
    found = corrupt(photos[:1], "blur", 6, 0)[0]
    inner = (slice(None), slice(8, -8), slice(8, -8))  # the two treat borders in different ways
    gap = (found - torch.from_numpy(np.array(reference)).permute(2, 0, 1) / 255)[inner].abs().max().item()
    assert gap < 0.03


def test_jpeg_is_pillows(photos):
    file = io.BytesIO()
    Image.fromarray((photos[1] * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=15)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    assert torch.equal(corrupt(photos, "jpeg", 15, 0)[1], expected)
