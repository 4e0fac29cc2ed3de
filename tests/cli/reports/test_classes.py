"""Class by class: the exact test against SciPy's, the sentences, and the picture of the matrices."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from timm_neutreno_cli.reports import classes, confusion
from timm_neutreno_cli.reports.intervals import sign_test

NAMES = ["cat", "dog", "cow"]
CONTROL = [[10, 20, 0], [1, 29, 0], [0, 0, 0]]
OURS = [[25, 5, 0], [0, 30, 0], [0, 0, 0]]


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (3, 9), (9, 3), (7, 7), (0, 40), (800, 700)])
def test_the_exact_test_is_scipys(won, lost):
    expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert sign_test(won, lost) == pytest.approx(expected, rel=1e-9)


def rows() -> list[dict]:
    return classes.per_class(NAMES, {"control": CONTROL, "gfsa": OURS}, {"gfsa": [(16, 1), (1, 0), (0, 0)]})


def test_figures_and_sentences():
    found = rows()
    assert [row["images"] for row in found] == [30, 30, 0]
    assert found[0]["accuracy"] == {"control": pytest.approx(100 / 3), "gfsa": pytest.approx(250 / 3)}
    assert found[2]["accuracy"] == {"control": None, "gfsa": None}
    pairs, by_class = classes.sentences(found, ["gfsa"], 60)
    assert "of 60 images gfsa alone recognises 17 and the control alone 1: a difference" in pairs
    assert "gfsa wins 'cat' (+50.0 points, 16 images won, 1 lost). For the other 2" in by_class
    assert "loses" not in by_class
    lost = classes.per_class(NAMES, {"control": OURS, "gfsa": CONTROL}, {"gfsa": [(1, 16), (0, 1), (0, 0)]})
    assert "gfsa loses 'cat' (-50.0 points" in classes.sentences(lost, ["gfsa"], 60)[1]
    equal = classes.per_class(NAMES, {"control": OURS, "gfsa": OURS}, {"gfsa": [(2, 1), (0, 0), (0, 0)]})
    pairs, by_class = classes.sentences(equal, ["gfsa"], 60)
    assert "no difference shown (" in pairs
    assert "no difference shown between gfsa and the control in any of 3." in by_class


def test_tables():
    assert classes.cells(rows()) == [
        ["class", "images", "control", "gfsa", "gfsa: difference, won, lost"],
        ["cat", "30", "33.33", "83.33", "+50.00, 16, 1"],
        ["dog", "30", "96.67", "100.00", "+3.33, 1, 0"],
        ["cow", "0", "-", "-", "-"],
    ]
    assert [row[0] for row in classes.cells(rows(), most=1)] == ["class", "cat"]
    assert classes.to_csv(rows()).splitlines()[2].startswith("dog,30,96.6666")
    assert classes.confused(CONTROL, NAMES) == "'cat' taken for 'dog' (20 of 30), 'dog' taken for 'cat' (1 of 30)"


def test_the_picture_shows_all_classes_or_the_most_confused(tmp_path):
    confusion.plot_confusion({"control": CONTROL, "gfsa": OURS}, NAMES, tmp_path / "few.png")
    many = [[5 if i == j else 0 for j in range(100)] for i in range(100)]
    many[70][3] = 9
    shown, note = confusion.chosen([np.array(many)], 100)
    assert len(shown) == confusion.MOST
    assert {3, 70} <= set(shown)
    assert "30 of 100 classes" in note
    confusion.plot_confusion({"control": many}, [f"class {i}" for i in range(100)], tmp_path / "many.png")
    few, many_ = (Image.open(tmp_path / name).convert("L") for name in ("few.png", "many.png"))
    assert few.getextrema()[0] < 60  # something dark is drawn
    assert many_.size[0] > 600
