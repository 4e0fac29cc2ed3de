"""--freeze-blocks and --class-weights: what is left untouched, what is weighed, and against scikit-learn's weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hosts import HOSTS, build
from integration import small_run
from sklearn.utils.class_weight import compute_class_weight
from timm_neutreno_cli.config import Config
from timm_neutreno_cli.engine import setup
from timm_neutreno_cli.errors import DataError, UsageError
from timm_neutreno_cli.tasks import classification
from torch.nn import functional as F

import timm_neutreno


@pytest.mark.parametrize("key", HOSTS)
def test_the_stem_and_the_first_blocks_are_frozen_in_every_class(key):
    model = build(key)
    setup.freeze_blocks(model, 2)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    free = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    inner = {name.removeprefix("encoder.") for name in free}
    stem = ("patch_embed", "embeds", "pos_embed", "cls_token", "reg_token", "norm_pre", "blocks.0.", "blocks.1.")
    assert not [name for name in inner if name.startswith(stem)]
    after = (
        "blocks.2.",
        "blocks.3.",
        "blocks_token_only",
        "head",
        "norm.",
        "fc_norm",
        "encoder.norm.",
        "encoder.pooler",
    )
    assert not [name for name in frozen if name.removeprefix("encoder.").startswith(after)]
    assert any(".1." in name for name in frozen)
    assert any(".2." in name for name in free)


def test_all_blocks_none_or_too_many():
    model = build("vit")
    setup.freeze_blocks(model, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    setup.freeze_blocks(model, 4)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "norm.weight", "norm.bias", "head.weight", "head.bias"
    }  # fmt: skip
    with pytest.raises(UsageError, match="--freeze-blocks 5: the model has 4 blocks"):
        setup.freeze_blocks(build("vit"), 5)
    model = build("vit")
    model.norm.requires_grad_(False), model.head.requires_grad_(False)
    with pytest.raises(UsageError, match="leaves nothing to train"):
        setup.freeze_blocks(model, 4)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict:
    images, weights = small_run.make(tmp_path_factory.mktemp("small"))
    for extra in sorted((images / "train" / "red").iterdir())[4:]:
        extra.unlink()  # 12 blue, 4 red
    return dict(
        checkpoint=weights, arch=small_run.ARCH, model_kwargs=small_run.SHAPE, data=images, epochs=1, batch_size=8,
        workers=0, device="cpu", lr=1e-2,
    )  # fmt: skip


def test_a_run_leaves_frozen_blocks_and_balances_classes(small, tmp_path):
    held = timm_neutreno.adapt(**small, freeze_blocks=1, class_weights="balanced", output=tmp_path / "run")
    plain = timm_neutreno.adapt(**small, freeze_blocks=1, output=tmp_path / "plain")
    for arm in ("control", "neutreno"):
        start, end, other = (
            dict(result.model(name).named_parameters())
            for result, name in ((held, "checkpoint"), (held, arm), (plain, arm))
        )
        for name, value in start.items():
            frozen = name.startswith(("patch_embed", "pos_embed", "cls_token", "blocks.0."))
            assert torch.equal(value, end[name]) == frozen, name
        assert not torch.equal(end["head.weight"], other["head.weight"])  # the weights did something


def test_weights_are_scikit_learns():
    targets = [0] * 9 + [2] * 3 + [4] * 1
    expected = compute_class_weight("balanced", classes=torch.tensor([0, 2, 4]).numpy(), y=targets)
    weights = classification.balanced_weights(torch.bincount(torch.tensor(targets), minlength=6))
    assert weights[[0, 2, 4]].tolist() == pytest.approx(expected)
    assert weights[[1, 3, 5]].tolist() == [0, 0, 0]
    assert weights[targets].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_torchs_up_to_its_normalisation(smoothing):
    torch.manual_seed(0)
    output, target, weights = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 2, 1]), torch.tensor([0.5, 1.0, 2.0])
    found = classification.weighted_cross_entropy(output, target, weights=weights, smoothing=smoothing)
    expected = F.cross_entropy(output, target, weight=weights, label_smoothing=smoothing) * weights[target].sum() / 6
    assert found.item() == pytest.approx(expected.item())
    halves = [
        classification.weighted_cross_entropy(output[s], target[s], weights=weights, smoothing=smoothing)
        for s in (slice(3), slice(3, 6))
    ]
    assert found.item() == pytest.approx(sum(halves).item() / 2)


def test_where_the_weights_go():
    model, device = torch.nn.Linear(4, 3), torch.device("cpu")
    model.num_classes = 3

    config = Config(class_weights="balanced", label_smoothing=0.1)
    images, target = torch.randn(4, 4), torch.tensor([0, 1, 2, 1])
    weights = torch.tensor([2 / 3, 2.0, 1.0])
    expected = F.cross_entropy(model(images), target, weight=weights, label_smoothing=0.1, reduction="none").mean()
    task = classification.training_task(model, None, config, device, SimpleNamespace(targets=[0, 0, 0, 1, 2, 2]))
    torch.testing.assert_close(task(images, target)["loss"], expected)
    mixed = torch.rand(4, 3).softmax(1)
    task = classification.training_task(
        model, None, Config(class_weights="balanced", mixup=0.5), device, SimpleNamespace(targets=[0, 0, 0, 1, 2, 2])
    )
    expected = -(weights * mixed * model(images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(task(images, mixed)["loss"], expected)
    with pytest.raises(DataError, match="does not say of what class"):
        classification.training_task(model, None, config, device, object())
