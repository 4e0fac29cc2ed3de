"""One model under one setting: against scikit-learn on features taken by hand, and to the bit the plain model at 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hosts import HOSTS, build
from hosts import images as host_images
from probing.data import CLASSES, batches, model, scenes
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

import timm_neutreno
from timm_neutreno.probing import (
    REFERENCE,
    DataError,
    FeatureError,
    Options,
    Setting,
    Splits,
    measure,
    segmentation,
    strength_names,
)
from timm_neutreno.probing.features import extract
from timm_neutreno.smoothing import tokens

OPTIONS = Options(neighbors=(1, 5), ridge=(1e-3, 1.0))


def splits(train: int = 60, val: int = 30, test: int = 45) -> Splits:
    return Splits("classification", CLASSES, batches(train, 0), batches(val, 1), batches(test, 2))


def segmentation_splits() -> Splits:
    return Splits("segmentation", CLASSES, scenes(8, 0), scenes(4, 1), scenes(6, 2))


@torch.no_grad()
def by_hand(vit, parts, pool: str):
    """Features and labels of all images at once, from timm's forward_features."""
    x = torch.cat([vit.forward_features(images) for images, _ in parts])
    features = x[:, 0] if pool == "class" else x[:, 1:].mean(1)
    return features.double().numpy(), torch.cat([labels for _, labels in parts]).numpy()


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_classification_equals_scikit_learn(pool):
    vit, parts = model(), splits()
    (x, y), (val_x, val_y), (new_x, new_y) = (by_hand(vit, part, pool) for part in parts[2:])
    scaler = StandardScaler().fit(x)
    found = measure(vit, REFERENCE, parts, OPTIONS._replace(pool=pool))
    ridges = {
        s: Ridge(alpha=s * len(x), solver="svd").fit(scaler.transform(x), np.eye(CLASSES)[y]) for s in OPTIONS.ridge
    }
    neighbors = {k: KNeighborsClassifier(k, metric="cosine").fit(x, y) for k in OPTIONS.neighbors}
    predict = {
        "linear": {s: lambda z, r=r: r.predict(scaler.transform(z)).argmax(1) for s, r in ridges.items()},
        "knn": {k: lambda z, n=n: n.predict(z) for k, n in neighbors.items()},
    }
    for probe, candidates in predict.items():
        on_val = {choice: 100 * (f(val_x) == val_y).mean() for choice, f in candidates.items()}
        (outcome,) = found.outcomes[probe].values()
        assert outcome.val == pytest.approx(max(on_val.values()))
        assert on_val[outcome.choice] == pytest.approx(outcome.val)
        hits = candidates[outcome.choice](new_x) == new_y
        assert outcome.test[:, 0].tolist() == hits.tolist()
        assert 0.33 < hits.mean() < 1  # else the images could not tell right from wrong
    assert found.images == (60, 30, 45)


def test_segmentation_equals_scikit_learn_and_leaves_void_patches_out():
    vit = model()
    parts = segmentation_splits()
    for _, masks in parts.train:
        for mask in masks[::2]:
            mask[10:, :] = -1  # whole patches
    (outcome,) = measure(vit, REFERENCE, parts, OPTIONS).outcomes["linear"].values()
    (images, masks), (new, new_masks) = parts.train[0], parts.test[0]
    with torch.no_grad():
        x, z = (vit.forward_features(each)[:, 1:].flatten(0, 1).double().numpy() for each in (images, new))
    y = segmentation.soft_targets(masks, (4, 4), CLASSES).flatten(0, 1).numpy()
    labelled = y.sum(1) > 0
    assert 0 < (~labelled).sum() < len(y)
    scaler = StandardScaler().fit(x[labelled])
    ridge = Ridge(alpha=outcome.choice * labelled.sum(), solver="svd").fit(scaler.transform(x[labelled]), y[labelled])
    scores = torch.from_numpy(ridge.predict(scaler.transform(z))).view(1, len(new), 16, CLASSES)
    assert torch.equal(outcome.test, segmentation.count(scores, new_masks, (4, 4))[0])


@pytest.mark.parametrize("make", [splits, segmentation_splits])
@pytest.mark.parametrize("method", ["neutreno", "gfsa", "attnscale+value_residual", "featscale"])
def test_strength_0_is_the_plain_model_to_the_last_digit(make, method):
    vit, parts, options = model(), make(), OPTIONS._replace(blocks=True)
    plain = measure(vit, REFERENCE, parts, options)
    zero = measure(vit, Setting(method, dict.fromkeys(strength_names(method), 0.0)), parts, options)
    some = measure(vit, Setting(method, dict.fromkeys(strength_names(method), 0.4)), parts, options)
    assert plain.similarity == zero.similarity != some.similarity
    for probe, outcomes in plain.outcomes.items():
        for block, outcome in outcomes.items():
            other = zero.outcomes[probe][block]
            assert (outcome.choice, outcome.val) == (other.choice, other.val)
            assert torch.equal(outcome.test, other.test)


def test_batches_do_not_matter():
    vit = model()
    one, other = (
        Splits("classification", CLASSES, *(batches(n, s, size) for s, n in enumerate((60, 30, 45))))
        for size in (1, 60)
    )
    a, b = measure(vit, REFERENCE, one, OPTIONS), measure(vit, REFERENCE, other, OPTIONS)
    for probe in a.outcomes:
        assert torch.equal(a.outcomes[probe][3].test, b.outcomes[probe][3].test)
    assert a.fingerprint == b.fingerprint


def test_the_model_is_left_as_it_was():
    vit = model().train()
    state = {name: value.clone() for name, value in vit.state_dict().items()}
    measure(vit, Setting("neutreno", {"fidelity": 0.3}, (-1,)), splits(), OPTIONS)
    assert not timm_neutreno.is_patched(vit)
    assert vit.training
    assert all(torch.equal(value, state[name]) for name, value in vit.state_dict().items())


def test_a_patched_model_is_measured_as_it_is_and_other_settings_on_a_copy():
    plain, patched = model(), timm_neutreno.patch(model(), fidelity=0.3)
    parts = splits()
    as_it_is = measure(patched, REFERENCE, parts, OPTIONS)
    again = measure(plain, Setting("neutreno", {"fidelity": 0.3}), parts, OPTIONS)
    assert as_it_is.similarity == again.similarity
    weaker = measure(patched, Setting("neutreno", {"fidelity": 0.1}), parts, OPTIONS)
    assert weaker.similarity == measure(plain, Setting("neutreno", {"fidelity": 0.1}), parts, OPTIONS).similarity
    assert timm_neutreno.strengths(patched)["blocks.3.attn.fidelity"] == 0.3


def test_layers_limit_where_a_method_acts():
    vit, options = model(), OPTIONS._replace(blocks=True)
    plain = measure(vit, REFERENCE, splits(), options)
    last = measure(vit, Setting("neutreno", {"fidelity": 0.4}, (-1,)), splits(), options)
    assert [plain.similarity[block] == last.similarity[block] for block in range(4)] == [True, True, True, False]


def test_similarity_is_that_of_the_patch_tokens():
    vit, parts = model(), splits()
    found = measure(vit, REFERENCE, parts, OPTIONS).similarity[3]
    with torch.no_grad():
        x = torch.cat([vit.forward_features(images)[:, 1:] for images, _ in parts.test])
    assert found == pytest.approx(float(tokens.cosine_similarity(x).mean()), abs=1e-6)


@pytest.mark.parametrize("key", HOSTS)
def test_features_of_every_supported_model(key):
    vit = build(key)
    with torch.no_grad():
        found = extract(vit, host_images(), [0, 2])
    assert list(found) == [0, 2]
    assert all(each.patches.shape[:3] == (2, 4, 4) for each in found.values())


def test_class_token_and_patches_are_timms():
    vit = model("vit_tiny_patch16_224", reg_tokens=2)
    with torch.no_grad():
        tokens_ = extract(vit, batches(4, 0)[0][0], [3])[3]
        x = vit.forward_features(batches(4, 0)[0][0])
    assert torch.equal(tokens_.class_token, x[:, 0])
    assert torch.equal(tokens_.patches.flatten(1, 2), x[:, 3:])


def damaged():
    vit = model()
    with torch.no_grad():
        vit.blocks[2].mlp.fc1.weight[0, 0] = float("nan")
    return vit


def one_class():
    (x, y), *_ = batches(30, 0, 30)
    return splits()._replace(train=[(x, y * 0)])


WRONG = {
    "NaN": (damaged, splits, FeatureError, r"model, as it is: the features of blocks.3 are not finite"),
    "one class": (model, one_class, DataError, "fewer than two classes"),
    "neighbours": (model, lambda: splits(train=4), DataError, "4 labelled train rows, fewer than 5 neighbours"),
    "label": (model, lambda: splits()._replace(num_classes=2), DataError, "label 2 lies beyond the 2 classes"),
    "patch size": (
        model,
        lambda: splits()._replace(train=[(torch.zeros(2, 3, 36, 32), torch.tensor([0, 1]))]),
        FeatureError,
        "36 x 32 pixels cannot be cut into patches of 8 x 8; take a multiple, such as 32 x 32",
    ),
    "no train": (model, lambda: splits()._replace(train=[]), DataError, "no train images"),
    "no val": (model, lambda: splits()._replace(val=[]), DataError, "no val images"),
    "no test": (model, lambda: splits()._replace(test=[]), DataError, "no test images"),
    "targets": (
        model,
        lambda: splits()._replace(train=[(torch.zeros(2, 3, 32, 32), torch.tensor([0]))]),
        DataError,
        "2 images and 1 targets",
    ),
    "no transformer": (lambda: torch.nn.Linear(3, 3), splits, FeatureError, "Linear has no blocks"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use(case):
    make, parts, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        measure(make(), REFERENCE, parts(), OPTIONS)
