"""`neutreno evaluate --per-class --robustness` on a tiny run: all arms, the same images, and figures that fit."""

from __future__ import annotations

import csv
import json

import pytest
import timm
import torch
from integration import small_run
from sklearn.metrics import confusion_matrix
from timm_neutreno_cli.data.corruptions import CORRUPTIONS
from timm_neutreno_cli.engine import examine
from timm_neutreno_cli.engine.responses import ATTACKED, CLEAN, CORRUPTED
from timm_neutreno_cli.errors import OutputError, UsageError
from timm_neutreno_cli.reports import robustness

import timm_neutreno

ARMS = {"control", "neutreno"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> timm_neutreno.adapt:
    root = tmp_path_factory.mktemp("run")
    images, weights = small_run.make(root, val=9)
    return timm_neutreno.adapt(
        checkpoint=weights, arch=small_run.ARCH, model_kwargs=small_run.SHAPE, data=images, epochs=2, batch_size=8,
        device="cpu", lr=1e-3, workers=0, output=root / "run",
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "report"
    return timm_neutreno.evaluate(run.paths["output"], per_class=True, robustness=True, output=folder)


def test_all_arms_have_the_runs_figures(run, found):
    assert found.rows == {arm: run.rows[arm] for arm in ("control", "neutreno")}
    saved = json.loads((found.paths["output"] / "results.json").read_text())
    assert saved == json.loads(json.dumps(found.document))
    assert {"results.json", "confusion.png", "per_class.csv", "confusion-control.csv"} <= found.paths.keys()
    assert all(path.exists() for path in found.paths.values())
    assert torch.equal(found.model("neutreno").head.weight, run.model().head.weight)


def test_the_confusion_matrix_is_scikit_learns(run, found):
    """Of predictions that plain timm makes."""
    from timm.data import create_dataset, create_loader, resolve_model_data_config

    for arm in ARMS:
        model = timm.create_model(f"local-dir:{run.paths[arm]}", pretrained=True).eval()
        config = resolve_model_data_config(model)
        data = create_dataset("", str(run.paths["output"].parent / "images"), split="val")
        keys = ("interpolation", "mean", "std", "crop_pct")
        loader = create_loader(
            data, (3, 16, 16), 9, num_workers=0, device=torch.device("cpu"), **{key: config[key] for key in keys}
        )
        with torch.no_grad():
            answers = [(target, model(images).argmax(1)) for images, target in loader]
        target, predicted = (torch.cat(part).numpy() for part in zip(*answers, strict=True))
        rows = list(csv.reader((found.paths["output"] / f"confusion-{arm}.csv").read_text().splitlines()))
        assert rows[0] == ["", "blue", "red"]
        assert [list(map(int, row[1:])) for row in rows[1:]] == confusion_matrix(target, predicted).tolist()
        per_class = [row["accuracy"][arm] for row in found.document["per_class"]]
        assert per_class == pytest.approx([100 * (predicted == target)[target == c].mean() for c in (0, 1)])


def test_a_matrix_of_many_classes_with_some_missing_is_scikit_learns():
    torch.manual_seed(0)
    target, predicted = torch.randint(7, (200,)), torch.randint(9, (200,))
    expected = confusion_matrix(target, predicted, labels=list(range(9))).tolist()
    assert examine.confusion_matrix(target, predicted, 9).tolist() == expected


def test_attacks_raise_the_loss_of_every_arm_and_the_budgets_are_equal(found):
    loss = {(c["name"], c["strength"]): c["loss"] for c in found.document["robustness"]["conditions"]}
    assert list(loss) == [CLEAN, *CORRUPTED, *ATTACKED]
    assert set(loss[CLEAN]) == ARMS
    for arm in ARMS:
        for attack in ("fgsm", "pgd"):
            assert loss[CLEAN][arm] < loss[attack, 1][arm] < loss[attack, 4][arm]
    assert {name for name, _ in CORRUPTED} == CORRUPTIONS.keys()


def test_clean_images_are_the_runs(found, run):
    """The pixels that corruptions start from, normalised again, are those of the evaluation."""
    clean = found.document["robustness"]["conditions"][0]
    for arm in ARMS:
        assert clean["top1"][arm] == pytest.approx(run.rows[arm]["top1"])
        assert clean["loss"][arm] == pytest.approx(run.rows[arm]["loss"], rel=1e-5)


def test_means_differences_and_sentences(found):
    document = found.document["robustness"]
    for group, count in {"corruptions": 15, "fgsm": 2, "pgd": 2}.items():
        members = [
            c
            for c in document["conditions"]
            if c["name"] == group or (group == "corruptions" and c["name"] in CORRUPTIONS)
        ]
        assert len(members) == count
        means = {arm: sum(c["top1"][arm] for c in members) / count for arm in ARMS}
        assert document["means"][group] == pytest.approx(means)
        pair = document["against_control"]["neutreno"][group]
        assert pair["difference"] == pytest.approx(means["neutreno"] - means["control"])
        assert pair["low"] <= pair["difference"] <= pair["high"]
    assert len(found.verdict) == 2 + 3 + 1
    assert " under PGD: " in str(found)


def test_who_is_more_robust():
    better, worse = [[1.0] * 40, [1.0] * 39 + [0.0]], [[0.0] * 20 + [1.0] * 20, [0.0] * 40]
    pair = robustness.paired(better, worse, 3)
    assert pair["difference"] == pytest.approx(100 * (79 - 20) / 80)
    assert pair["low"] > 0
    assert robustness.paired(worse, better, 3)["high"] < 0
    assert robustness.paired(better, better, 3) == {"difference": 0.0, "low": 0.0, "high": 0.0}


def test_one_model_alone_has_no_pairs(run, tmp_path):
    found = timm_neutreno.evaluate(run.paths["control"], per_class=True, output=tmp_path / "report")
    assert list(found.rows) == ["control"]
    assert found.verdict == []
    assert found.document["per_class"][0]["against_control"] == {}
    with pytest.raises(OutputError, match="holds a report already"):
        timm_neutreno.evaluate(run.paths["control"], per_class=True, output=tmp_path / "report")
    with pytest.raises(UsageError, match="--output is for --per-class"):
        timm_neutreno.evaluate(run.paths["control"], output=tmp_path / "other")
