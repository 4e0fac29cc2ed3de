"""Segmentation: figures against torchmetrics, and a loss that does not depend on how a step is dealt out."""

from __future__ import annotations

import pytest
import timm
import torch
from timm_neutreno_cli.config import Config
from timm_neutreno_cli.errors import DataError
from timm_neutreno_cli.tasks import segmentation
from torchmetrics.classification import MulticlassJaccardIndex

from timm_neutreno import Segmenter, patch

VIT = dict(img_size=16, patch_size=8, embed_dim=24, depth=3, num_heads=2, dynamic_img_size=True)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(0)
    return patch(Segmenter(timm.create_model("vit_tiny_patch16_224", **VIT), 3)).eval()


def batch(*sizes: tuple[int, int]) -> tuple[list, list]:
    draw = torch.Generator().manual_seed(1)
    images = [torch.randn(3, *size, generator=draw) for size in sizes]
    masks = [torch.randint(-1, 3, (2 * h, 2 * w), generator=draw) for h, w in sizes]
    return images, masks


def test_figures_are_those_of_torchmetrics_whatever_the_batches(model):
    images, masks = batch((16, 24), (16, 24), (24, 16), (16, 24), (40, 40))
    with torch.no_grad():
        rows = segmentation.batch_figures(model, images, masks)
        single = [segmentation.batch_figures(model, [x], [y]) for x, y in zip(images, masks, strict=True)]
        predicted = [model.segment(x[None], size=tuple(y.shape))[0] for x, y in zip(images, masks, strict=True)]
    assert torch.allclose(rows, torch.cat(single), rtol=1e-5)
    assert torch.equal(rows[:, 1:], torch.cat(single)[:, 1:])
    metric = MulticlassJaccardIndex(3, ignore_index=-1)
    for ours, mask in zip(predicted, masks, strict=True):
        metric.update(ours[None], mask[None])
    found = segmentation.metrics(rows, final=True)
    assert found["miou"] == pytest.approx(100 * metric.compute().item(), rel=1e-5)
    right = sum(((ours == mask) & (mask >= 0)).sum().item() for ours, mask in zip(predicted, masks, strict=True))
    labelled = sum((mask >= 0).sum().item() for mask in masks)
    assert found["pixel_accuracy"] == pytest.approx(100 * right / labelled)
    assert found["images"] == len(found["miou_by_image"]) == 5
    assert segmentation.MAIN in found


def test_several_scales_give_other_figures(model):
    images, masks = batch((32, 40))
    with torch.no_grad():
        one, several = (segmentation.batch_figures(model, images, masks, multi_scale=flag) for flag in (False, True))
    assert one[0, 1:].sum() > 0
    assert torch.equal(one[0, -3:], several[0, -3:])  # what is labelled
    assert not torch.equal(one, several)


def test_no_label_at_all_is_an_error():
    with pytest.raises(DataError, match="all are void"):
        segmentation.metrics(torch.zeros(4, 10))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_parts_is_that_of_the_whole(smoothing):
    """Parts of a step, however many of their pixels are void; a void crop alone gives 0, and no NaN."""
    loss = segmentation.PixelLoss(smoothing)
    output, target = torch.randn(6, 4, 5, 7), torch.randint(0, 4, (6, 5, 7))
    target[0], target[1, :3], target[4, 2:] = -1, -1, -1
    parts = [loss(x, y) for x, y in zip(output.chunk(3), target.chunk(3), strict=True)]
    assert loss(output, target).item() == pytest.approx(sum(parts).item() / 3, rel=1e-6)
    assert loss(output[:1], target[:1]) == 0
    labelled = target >= 0
    mean = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(output.movedim(1, -1)[labelled], target[labelled])
    assert loss(output, target).item() == pytest.approx(mean.item() * labelled.float().mean().item(), rel=1e-6)


def test_parts_that_methods_and_measures_see(model):
    assert segmentation.part(model, "") is model
    assert segmentation.part(model, "decoder") is model.decoder
    assert segmentation.watched(model) == {"": model.encoder, "decoder_": model.decoder}
    task = segmentation.training_task(model, None, Config(), torch.device("cpu"))
    assert task(torch.randn(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.long))["output"].shape == (2, 3, 16, 16)
