"""Gram anchoring: the loss against explicit pairs, the tokens against forward_features, and that it holds a model."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from hosts import HOSTS, build, images
from integration import small_run
from timm_neutreno_cli.errors import UsageError
from timm_neutreno_cli.tasks.anchor import GramAnchor, gram_loss, listen

import timm_neutreno

CPU = torch.device("cpu")


def test_the_loss_is_the_mean_over_pairs_of_explicit_cosines():
    torch.manual_seed(0)
    x, a = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True), torch.randn(2, 5, 3, dtype=torch.float64)

    def cosine(u, v):
        return (u @ v) / (u.norm() * v.norm())

    pairs = [
        (cosine(x[b, i], x[b, j]) - cosine(a[b, i], a[b, j])) ** 2 for b in range(2) for i in range(5) for j in range(5)
    ]
    expected = torch.stack(pairs).mean()
    found = gram_loss(x, a)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, x)[0].float() for loss in (found, expected)), atol=1e-6, rtol=1e-4
    )
    rotated = a @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0] * 7
    assert gram_loss(rotated, a).item() < 1e-12  # similarities know neither rotation nor scale


def test_half_precision_is_left_for_the_pairs():
    x = torch.randn(1, 40, 16).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gram_loss(x, x + 0.01).dtype == torch.float32


REFUSED = {"qwen3", "gemma4", "sam"}  # their norm acts on pooled tokens, or there is a neck in its place


@pytest.mark.parametrize("key", HOSTS)
def test_the_tokens_are_the_patches_of_forward_features(key):
    model, found = build(key), []
    if key in REFUSED:
        with pytest.raises(UsageError, match="has no such norm"):
            listen(model, found, only_training=False)
        return
    listen(model, found, only_training=False)
    with torch.no_grad():
        model(images())
        tokens = model.forward_features(images())
    tokens = tokens["patches"] if isinstance(tokens, dict) else tokens
    (patches,) = found
    assert torch.equal(patches, tokens.flatten(1, -2)[:, getattr(model, "num_prefix_tokens", 0) :])
    assert patches.shape[1] == 16


def test_at_the_start_it_is_nothing_and_it_pulls_back():
    start = build("vit")
    model = timm_neutreno.patch(build("vit"), fidelity=0.0).train()
    anchor = GramAnchor(model, start, 2.0, CPU)
    model(images())
    assert anchor(images()).item() < 1e-12
    timm_neutreno.set_fidelity(model, 0.6)
    losses, optimizer = [], torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(8):
        model(images())
        loss = anchor(images())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is None for p in anchor.frozen.parameters())
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), build("vit").parameters(), strict=True))


def test_a_model_whose_patches_cannot_be_compared_is_refused():
    with pytest.raises(UsageError, match="VisionTransformer drops some of them"):
        listen(build("vit", patch_drop_rate=0.5), [], only_training=True)
    with pytest.raises(UsageError, match="has no such norm"):
        listen(torch.nn.Linear(2, 2), [], only_training=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict:
    images, weights = small_run.make(tmp_path_factory.mktemp("small"))
    return dict(
        checkpoint=weights, arch=small_run.ARCH, model_kwargs=small_run.SHAPE, data=images, epochs=2, batch_size=8,
        workers=0, device="cpu", lr=1e-2, drop_path=0.0, warmup_epochs=0,
    )  # fmt: skip


def distance(result: timm_neutreno.adapt, arm: str) -> float:
    """Gram loss between an arm and the checkpoint."""
    tokens = [
        result.model(name).forward_features(torch.linspace(-1, 1, 768).view(1, 3, 16, 16))[:, 1:]
        for name in (arm, "checkpoint")
    ]
    return gram_loss(*tokens).item()


def test_a_run_with_an_anchor_stays_nearer_to_its_start_in_every_arm(small, tmp_path):
    plain = timm_neutreno.adapt(**small, output=tmp_path / "plain")
    held = timm_neutreno.adapt(**small, anchor="gram", anchor_weight=20, ema_decay=0.5, output=tmp_path / "held")
    for arm in ("control", "neutreno"):
        assert distance(held, arm) < 0.7 * distance(plain, arm)
    state = torch.load(tmp_path / "held" / "arms" / "control" / "last.pth.tar")["state_dict"]
    assert state.keys() == timm.create_model(small_run.ARCH, num_classes=2, **small_run.SHAPE).state_dict().keys()


@pytest.mark.parametrize("options", [{"accumulate": 2}, {"grad_checkpointing": True}, {"compile": True}])
def test_it_is_the_same_however_a_step_is_run(small, tmp_path, options):
    one = {**small, "epochs": 1, "anchor": "gram", "control": False, "limit_batches": 2, "color_jitter": 0.0}
    losses = []
    for name, more in (("plain", {}), ("other", options)):
        timm_neutreno.adapt(**one, **more, output=tmp_path / name)
        records = (tmp_path / name / "arms" / "neutreno" / "metrics.jsonl").read_text().splitlines()
        losses.append(json.loads(records[-1])["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] > 0


def test_sharding_and_an_anchor_do_not_go_together(small):
    with pytest.raises(UsageError, match="--fsdp and --anchor do not go together"):
        timm_neutreno.adapt(**small, anchor="gram", fsdp=True)
