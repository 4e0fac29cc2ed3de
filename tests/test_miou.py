"""mIoU against torchmetrics, and its spread over images against drawing images."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from timm_neutreno import miou

VOID, CLASSES = 255, 6


def pictures(count: int, seed: int, noise: float = 0.4):
    """Predictions and masks (count, 9, 11); class 4 is in no mask, class 5 in neither, and image 1 is void alone."""
    draw = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 4, (count, 9, 11), generator=draw)
    wrong = torch.rand(masks.shape, generator=draw) < noise
    predicted = torch.where(wrong, torch.randint(0, 5, masks.shape, generator=draw), masks)
    masks[torch.rand(masks.shape, generator=draw) < 0.2] = VOID
    masks[1] = VOID
    return predicted, masks


@pytest.mark.parametrize("seed", range(3))
def test_it_is_torchmetrics(seed):
    predicted, masks = pictures(7, seed)
    counts = torch.stack([miou.count(p, m, CLASSES, VOID) for p, m in zip(predicted, masks, strict=True)])
    total = counts.sum(0)
    metric = MulticlassJaccardIndex(CLASSES, average=None, ignore_index=VOID)
    theirs = metric(predicted, masks)
    ours = miou.iou(total)
    assert torch.isnan(ours[5])
    assert torch.allclose(ours[:5].float(), theirs[:5])
    mean = MulticlassJaccardIndex(CLASSES, average="macro", ignore_index=VOID)(predicted, masks)
    assert miou.miou(total).item() == pytest.approx(100 * mean.item(), abs=1e-4)
    labelled = masks != VOID
    assert miou.pixel_accuracy(total).item() == pytest.approx(
        100 * (predicted == masks)[labelled].float().mean().item()
    )


def test_nothing_labelled_is_zero():
    counts = miou.count(torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), VOID), CLASSES, VOID)
    assert miou.miou(counts) == 0
    assert miou.pixel_accuracy(counts) == 0


def test_influence_is_the_spread_that_drawing_images_finds():
    masks = pictures(60, 0)[1]
    counts = []
    for noise, seed in ((0.4, 1), (0.42, 2)):
        draw = torch.Generator().manual_seed(seed)
        worse = torch.rand(60, 1, 1, generator=draw) * 2 * noise  # images differ in how hard they are
        wrong = torch.rand(masks.shape, generator=draw) < worse
        predicted = torch.where(wrong, torch.randint(0, 4, masks.shape, generator=draw), masks.clamp(max=3))
        counts.append(torch.stack([miou.count(p, m, CLASSES, VOID) for p, m in zip(predicted, masks, strict=True)]))
    a, b = counts
    found = (miou.influence(a) - miou.influence(b)).square().sum().sqrt()
    picked = torch.randint(0, 60, (2000, 60), generator=torch.Generator().manual_seed(3))
    drawn = miou.miou(a[picked].sum(1)) - miou.miou(b[picked].sum(1))
    assert miou.influence(a).sum().abs() < 1e-9
    assert found.item() == pytest.approx(drawn.std().item(), rel=0.1)
