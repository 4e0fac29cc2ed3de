"""benchmarks/papers_figures_table.py: what becomes of a claim, on values made up so that the answer is known."""

import importlib
import json
import math
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def table():
    return importlib.import_module("papers_figures_table")


def subject(table, start: float, step: float) -> dict:
    """Twelve layers of every metric, rising by `step` from `start`, in eight images that differ a little."""
    metrics = {claim.metric for claim in table.CLAIMS}
    images = [{m: [start + step * layer + 1e-3 * image for layer in range(12)] for m in metrics} for image in range(8)]
    return {"images": images, "heads": [0.6, 0.61] * 6}


def found(table, **changed):
    subjects = {"plain": (0.2, 0.02), "patched": (0.1, 0.02), "control": (0.5, -0.02), "adapted": (0.5, -0.02)}
    rows = table.rows({name: subject(table, *values) for name, values in (subjects | changed).items()})
    return {(row["metric"], row["reads"], row["subject"]): row for row in rows}


def test_a_change_is_taken_image_by_image(table):
    row = found(table)["block_similarity", "last layer", "patched"]
    assert row["mean"] == pytest.approx(-0.1)
    assert row["high"] - row["low"] < 1e-6  # the images differ, their differences do not
    assert row["ends"] == pytest.approx([0.4235, 0.3235])
    assert row["verdict"] == "agrees"


def test_no_change_cannot_be_told_and_the_other_way_does_not_agree(table):
    rows = found(table, patched=(0.3, 0.02))
    assert rows["block_similarity", "last layer", "adapted"]["verdict"] == "cannot be told"
    assert rows["block_similarity", "last layer", "patched"]["verdict"] == "does not agree"


def test_the_trend_with_depth_decides_and_one_smoothing_model_refutes_nothing(table):
    rows = found(table)
    assert rows["block_similarity", table.TREND, "plain"]["verdict"] == "agrees"
    assert rows["block_similarity", table.TREND, "control"]["verdict"] == "does not agree"
    assert rows["block_hfc_lfc", table.TREND, "plain"]["verdict"] == "agrees"
    assert rows["block_hfc_lfc", table.TREND, "control"]["verdict"] == "cannot be told"
    assert rows["spectra", "share of negative real parts", "plain"]["verdict"] == "agrees"


def test_trend_is_spearmans(table):
    assert table.depth([1.0, 2.0, 10.0, 11.0]) == pytest.approx(1)
    assert table.depth([3.0, 1.0, 2.0, 0.0]) == pytest.approx(-0.8)


def test_some_are_compared_as_logarithms(table):
    assert table.by_image([{"functional_exp": [1e-3, 1e90]}], "functional_exp") == [[-3, pytest.approx(90)]]
    assert math.isclose(table.by_image([{"map_cosine": [0.5]}], "map_cosine")[0][0], 0.5)


def test_the_tables_are_what_their_json_gives(table):
    document = json.loads((FOLDER / "papers_figures.json").read_text())
    assert table.markdown(document) == (FOLDER / "papers_figures.md").read_text()
