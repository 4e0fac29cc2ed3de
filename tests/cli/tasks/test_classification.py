"""Image classification: its loss and figures against torch's own, and when a head does not fit."""

from __future__ import annotations

import pytest
import timm
import torch
from integration import small_run
from timm_neutreno_cli.config import Config
from timm_neutreno_cli.tasks import classification
from torch import nn


def test_figures_of_several_batches_are_those_of_all_images():
    torch.manual_seed(0)
    output, target = torch.randn(30, 8), torch.randint(8, (30,))
    sums = sum(
        classification.batch_sums(part, labels) for part, labels in zip(output.split(7), target.split(7), strict=True)
    )
    found = classification.metrics(sums.double()[None])
    ranks = (output > output.gather(1, target[:, None])).sum(1)
    assert found["images"] == 30
    assert found["top1"] == pytest.approx(100 * (ranks < 1).double().mean().item())
    assert found["top5"] == pytest.approx(100 * (ranks < 5).double().mean().item())
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(output, target).item(), rel=1e-6)
    assert classification.MAIN in found


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_cross_entropy_with_label_smoothing(smoothing):
    model, images, target = nn.Linear(4, 3), torch.randn(5, 4), torch.randint(3, (5,))
    task = classification.training_task(model, None, Config(label_smoothing=smoothing), torch.device("cpu"))
    expected = nn.functional.cross_entropy(model(images), target, label_smoothing=smoothing)
    torch.testing.assert_close(task(images, target)["loss"], expected)


def test_the_loss_of_mixed_images_takes_their_soft_targets():
    model, images, target = nn.Linear(4, 3), torch.randn(5, 4), torch.rand(5, 3).softmax(1)
    task = classification.training_task(model, None, Config(mixup=0.5), torch.device("cpu"))
    expected = -(target * model(images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(task(images, target)["loss"], expected)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_teacher_has_its_share(weight):
    model, teacher = (timm.create_model(small_run.ARCH, num_classes=3, **small_run.SHAPE).eval() for _ in range(2))
    images, target = torch.randn(5, 3, 16, 16), torch.randint(3, (5,))
    config = Config(distill_weight=weight, label_smoothing=0.0)
    loss = classification.training_task(model, teacher, config, torch.device("cpu"))(images, target)["loss"]
    labels = nn.functional.cross_entropy(model(images), target)
    log, wanted = model(images).log_softmax(1), teacher(images).log_softmax(1)
    pull = nn.functional.kl_div(log, wanted, log_target=True, reduction="batchmean")
    torch.testing.assert_close(loss, weight * pull + (1 - weight) * labels)


@pytest.mark.parametrize(
    ("head", "data", "words"),
    [
        ((2, None), (2, ["a", "b"]), ""),
        ((2, ["a", "b"]), (2, None), ""),
        ((2, ["a", "b"]), (2, ["a", "b"]), ""),
        ((2, None), (3, None), "the checkpoint has 2 classes, and the data have 3"),
        ((2, ["a", "b"]), (2, ["a", "c"]), "the checkpoint's classes are a, b, ...; those of the data are a, c, ..."),
    ],
)
def test_when_a_head_does_not_fit(head, data, words):
    assert classification.head_mismatch(*head, *data) == words
