"""Pixels by class equal those of torch's bilinear upsampling and argmax, whatever the sizes and the scores."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

from timm_neutreno import miou
from timm_neutreno.probing import pixels

SIZES = st.integers(1, 9)


def literal(maps: Tensor, mask: Tensor) -> Tensor:
    """What `count` is: upsample in float64, take the best class, count."""
    upsampled = interpolate(maps.double(), size=tuple(mask.shape), mode="bilinear", align_corners=False)
    return miou.count(upsampled.argmax(1), mask, maps.shape[1], -1)


def scene(grid: tuple[int, int], size: tuple[int, int], classes: int, noise: float, seed: int):
    """Scores of 3 candidates, smooth but for the noise, and a mask of regions with void."""
    draw = torch.Generator().manual_seed(seed)
    smooth = interpolate(torch.randn(1, classes, 2, 2, generator=draw), size=grid, mode="bilinear", align_corners=False)
    maps = smooth + noise * torch.randn(3, classes, *grid, generator=draw)
    coarse = torch.randint(-1, classes, (1, 1, 3, 3), generator=draw).float()
    return maps, interpolate(coarse, size=size, mode="nearest")[0, 0].long()


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(SIZES, SIZES),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.integers(1, 12),
    st.sampled_from((0.0, 0.1, 1.0, 30.0)),
    st.integers(0, 2**31),
)
def test_equals_upsampling_and_argmax(grid, size, classes, noise, seed):
    maps, mask = scene(grid, size, classes, noise, seed)
    found, expected = pixels.count(maps, mask), literal(maps, mask)
    labelled = int((mask >= 0).sum())
    assert torch.equal(found[:, 2 * classes :], expected[:, 2 * classes :])
    assert found[:, classes : 2 * classes].sum(1).tolist() == [labelled] * 3
    # float32 against float64: a pixel on the border between two classes may go to the other
    assert (found - expected).abs().sum(1).max() <= 4 * max(1, labelled // 1000)


def test_many_cells_at_once_and_one_by_one_are_the_same(monkeypatch):
    maps, mask = scene((9, 7), (60, 41), 12, 1.0, 0)
    together = pixels.count(maps, mask)
    monkeypatch.setattr(pixels, "AT_ONCE", 1)
    assert torch.equal(pixels.count(maps, mask), together)


def test_a_class_that_is_best_at_no_patch_wins_between_them():
    """Scores 1, 0, 0.9 at one patch and 0, 1, 0.9 at the next: half way the third is best."""
    maps = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]], [[0.9, 0.9]]]])
    mask = torch.tensor([[0, 2, 2, 1]])  # centres a quarter, half ... of the way
    hit, predicted, labelled = pixels.count(maps, mask)[0].view(3, 3).tolist()
    assert hit == predicted == labelled == [1, 1, 2]
