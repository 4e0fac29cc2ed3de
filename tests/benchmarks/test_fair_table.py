"""benchmarks/fair_table.py: the whole way on a few images, and what it says of constructed figures."""

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def fair_table():
    return importlib.import_module("fair_table")


def images(folder, per_class):
    """Noise in CIFAR-10's layout."""
    random = np.random.default_rng(0)
    for part, count in per_class.items():
        for label in range(10):
            (folder / part / f"class{label}").mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / f"class{label}" / f"{index:03}.png")


def test_from_images_to_the_table_and_again(fair_table, tmp_path, monkeypatch, capsys):
    images(tmp_path / "cifar10", {"train": 20, "val": 10})
    words = ["--data", str(tmp_path / "cifar10"), "--output", str(tmp_path / "out"), "--quick", "--methods", "xsa"]
    monkeypatch.setattr(sys, "argv", ["fair_table.py", *words])
    fair_table.main()
    document = json.loads((tmp_path / "out" / "fair_table.json").read_text())
    assert list(document["variants"]) == ["control", "neutreno", "xsa"]
    assert (tmp_path / "out" / "fair_table.md").read_text() == fair_table.markdown(document)
    assert "the figures say nothing" in fair_table.markdown(document)
    folders = {name: sorted((tmp_path / "out" / "images" / name).rglob("*.png")) for name in ("train", "val", "test")}
    assert [len(found) for found in folders.values()] == [100, 100, 100]
    assert not {path.resolve() for path in folders["train"]} & {path.resolve() for path in folders["val"]}

    (tmp_path / "out" / "measured" / "xsa-seed1.json").unlink()  # as if it had been interrupted there
    fair_table.main()
    again = json.loads((tmp_path / "out" / "fair_table.json").read_text())
    assert again["variants"] == document["variants"], "the same seed gives the same figures"
    shutil.rmtree(tmp_path / "out")
    capsys.readouterr()


def constructed(fair_table, gains):
    """A document of five seeds in which every method gains so much over the control."""

    def run(top1, similarity):
        figures = {"top1": top1, "loss": 1.0, "similarity": similarity}
        return {"val": figures, "test": figures, "untrained": figures, "strengths": {}}

    noise = (0.0, 0.1, -0.1, 0.05, -0.05)
    rows = {"control": [run(50.0, 0.5) for _ in noise]}
    rows |= {name: [run(50 + gain + n, 0.4) for n in noise] for name, gain in gains.items()}
    return {
        "variants": fair_table.summary(rows, 2), "seeds": 5, "test": 1000, "train": 100,
        "parameters": 1,
        "pretraining": {"top1": 50.0}, "pretrain_epochs": 1, "epochs": 1, "lr": 1e-4, "rates": {"0.0001": {}},
    }  # fmt: skip


def test_what_is_said(fair_table):
    document = constructed(fair_table, {"neutreno": -5.0, "featscale": 5.0, "xsa": 0.0, "neutreno at 0.1": 1.0})
    first, second, third, _ = fair_table.fair_table_report.told(document)
    assert "better: featscale +5.00 [" in first
    assert "no difference shown: xsa +0.00 [" in first
    assert "worse: neutreno -5.00 [" in first
    assert "val takes neutreno at 0.1 (51.00 top-1 there)" in second
    assert "as in the paper by +6.00" in second
    assert "lower than the control's by more than chance in neither" in third, "no spread, no interval"


def test_intervals_are_widened_for_the_rows_of_a_table(fair_table):
    alone = constructed(fair_table, {"neutreno": 1.0})["variants"]["neutreno"]["differences"]["test"]["top1"]
    many = constructed(fair_table, dict.fromkeys(fair_table.METHODS, 1.0))["variants"]["neutreno"]
    assert many["differences"]["test"]["top1"]["high"] - 1 > 2 * (alone["high"] - 1) > 0
