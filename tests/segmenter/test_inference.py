"""Sliding windows and scales, against loops over pixels and over windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hosts import images

from timm_neutreno.segmenter import MULTI_SCALE, logits, predict, slide


class Pixels(torch.nn.Module):
    """A stand-in for a Segmenter whose scores depend on where in its window a pixel is."""

    num_classes, fixed_size, window, stride = 3, None, (8, 8), (8, 8)

    def forward(self, x):
        rows = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
        return x * (1 + rows) + rows


def by_hand(model, x, window, stride):
    """Every window, one after the other; every pixel, one after the other."""
    H, W = x.shape[-2:]
    tops = [t for t in range(0, H, stride[0]) if t < H - window[0]] + [H - window[0]]
    lefts = [t for t in range(0, W, stride[1]) if t < W - window[1]] + [W - window[1]]
    found = [[[] for _ in range(W)] for _ in range(H)]
    for top in tops:
        for left in lefts:
            y = model(x[..., top : top + window[0], left : left + window[1]])
            for i in range(window[0]):
                for j in range(window[1]):
                    found[top + i][left + j].append(y[..., i, j])
    rows = [torch.stack([torch.stack(scores).mean(0) for scores in row], -1) for row in found]
    return torch.stack(rows, -2)


@pytest.mark.parametrize(
    ("window", "stride"), [((8, 8), (8, 8)), ((8, 6), (3, 5)), ((4, 12), (4, 1)), ((13, 9), (5, 9))]
)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_windows_are_averaged_where_they_overlap(window, stride, batch_size):
    x = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(0))
    got = slide(Pixels(), x, window, stride, batch_size)
    assert torch.allclose(got, by_hand(Pixels(), x, window, stride), atol=1e-4)


def test_one_window_is_the_whole_image():
    x = torch.randn(1, 3, 13, 17)
    whole = Pixels()(x)
    assert torch.equal(slide(Pixels(), x, (13, 17), (13, 17)), whole)
    assert torch.equal(slide(Pixels(), x, (40, 40), (7, 7)), whole)


def test_one_scale_is_single_scale_and_several_are_a_mean_of_probabilities():
    model, x = Pixels().eval(), torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0)) / 50
    single = logits(model, x, window=(8, 8), stride=(4, 4)).softmax(1)
    assert torch.allclose(predict(model, x, window=(8, 8), stride=(4, 4), scales=(1.0,)), single, atol=1e-6)
    got = predict(model, x, size=(6, 9), scales=MULTI_SCALE, flip=True)
    parts = []
    for scale in MULTI_SCALE:
        size = (round(12 * scale), round(16 * scale))
        scaled = x if scale == 1 else F.interpolate(x, size, mode="bilinear")
        for mirror in (False, True):
            scores = slide(model, scaled.flip(-1) if mirror else scaled, (8, 8), (8, 8))
            scores = scores.flip(-1) if mirror else scores
            parts.append(F.interpolate(scores, (6, 9), mode="bilinear").softmax(1))
    assert torch.allclose(got, torch.stack(parts).mean(0), atol=1e-6)
    assert torch.allclose(got.sum(1), torch.ones(2, 6, 9), atol=1e-5)


def test_a_gap_between_windows_is_refused():
    with pytest.raises(ValueError, match=r"a stride of \(9, 8\) pixels leaves gaps between windows of \(8, 8\)"):
        logits(Pixels(), images(1, 16), stride=(9, 8))


def test_memory_is_one_map_of_classes():
    """150 classes at 160 x 200 pixels are one map of 18 MiB; windows come and go."""
    from timm_neutreno.cost import Counter

    class Many(Pixels):
        num_classes = 150

        def forward(self, x):
            return x[:, :1].expand(-1, 150, -1, -1) * 1.0

    map_bytes = 150 * 160 * 200 * 4
    x = torch.randn(1, 3, 160, 200)
    with torch.no_grad(), Counter() as counter:
        predict(Many(), x, window=(32, 32), stride=(32, 32), batch_size=1)
    assert map_bytes < counter.peak < 1.2 * map_bytes
