"""mIoU against torchmetrics, targets by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate
from torchmetrics.classification import MulticlassJaccardIndex

from timm_neutreno.probing import DataError, segmentation

CLASSES, GRID = 4, (3, 5)


def scenes(seed: int = 0):
    """Scores (2, 6, h w, K), and masks of different sizes with void; class 3 hardly occurs."""
    draw = torch.Generator().manual_seed(seed)
    masks = []
    for height, width in ((12, 20), (9, 15), (17, 31), (12, 20), (30, 50), (7, 9)):
        weights = torch.tensor([0.2, 0.4, 0.3, 0.09, 0.01])
        drawn = torch.multinomial(weights, height * width, replacement=True, generator=draw)
        masks.append(drawn.view(height, width) - 1)
    return torch.randn(2, len(masks), GRID[0] * GRID[1], CLASSES, generator=draw), masks


@pytest.mark.parametrize("candidate", [0, 1])
def test_miou_equals_torchmetrics_over_the_data_set(candidate):
    scores, masks = scenes()
    counts = segmentation.count(scores, masks, GRID)
    whole = MulticlassJaccardIndex(CLASSES, ignore_index=segmentation.VOID)
    per_image = []
    for image, mask in enumerate(masks):
        maps = scores[candidate, image].T.view(1, CLASSES, *GRID)
        predicted = interpolate(maps, size=tuple(mask.shape), mode="bilinear", align_corners=False).argmax(1)
        whole.update(predicted, mask[None])
        per_image.append(100 * MulticlassJaccardIndex(CLASSES, ignore_index=segmentation.VOID)(predicted, mask[None]))
    found = segmentation.score(counts[candidate].sum(0))
    assert float(found) == pytest.approx(100 * float(whole.compute()), abs=1e-5)
    assert abs(float(found) - float(torch.stack(per_image).mean())) > 0.1  # per image it would be another number


def test_a_class_that_nowhere_occurs_is_left_out():
    scores, masks = scenes()
    scores[..., 3] = -99
    masks = [mask.clamp(max=2) for mask in masks]
    found = segmentation.score(segmentation.count(scores, masks, GRID)[0].sum(0))
    whole = MulticlassJaccardIndex(CLASSES, ignore_index=segmentation.VOID)
    for image, mask in enumerate(masks):
        maps = scores[0, image].T.view(1, CLASSES, *GRID)
        whole.update(interpolate(maps, size=tuple(mask.shape), mode="bilinear").argmax(1), mask[None])
    assert float(found) == pytest.approx(100 * float(whole.compute()), abs=1e-5)


def test_targets_are_shares_of_the_labelled_pixels():
    mask = torch.tensor([[0, 0, 1, 1], [0, 2, -1, 1], [-1, -1, 2, 2], [-1, -1, 2, 0]])
    (shares,) = segmentation.soft_targets([mask], (2, 2), 3)
    expected = torch.tensor([[3 / 4, 0, 1 / 4], [0, 1, 0], [0, 0, 0], [1 / 4, 0, 3 / 4]])
    torch.testing.assert_close(shares, expected)


def test_pixels_belong_to_the_patch_of_their_centre():
    """5 rows over 2 patches: the middle one has its centre on the border, and goes to the lower patch."""
    mask = torch.arange(5)[:, None].expand(5, 2).contiguous()
    (shares,) = segmentation.soft_targets([mask], (2, 1), 5)
    torch.testing.assert_close(shares, torch.tensor([[1 / 2, 1 / 2, 0, 0, 0], [0, 0, 1 / 3, 1 / 3, 1 / 3]]))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.full((4, 4), 4), "the label 4 lies beyond the 4 classes 0 to 3"),
        (torch.full((4, 4), -2), "the label -2 lies beyond"),
        (torch.zeros(4, 4), r"must be integers of shape \(height, width\), got torch.float32"),
        (torch.zeros(3, 4, 4, dtype=torch.long), r"of shape \(3, 4, 4\)"),
    ],
)
def test_masks_that_are_none(mask, message):
    with pytest.raises(DataError, match=message):
        segmentation.soft_targets([mask], (2, 2), 4)
    with pytest.raises(DataError, match=message):
        segmentation.count(torch.zeros(1, 1, 4, 4), [mask], (2, 2))
