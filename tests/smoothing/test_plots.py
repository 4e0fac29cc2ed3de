"""Plots: the files are there, the curves can be told apart, wrong use is said."""

from __future__ import annotations

import pytest

from timm_neutreno.smoothing import Smoothing, plot_results, plot_similarity
from timm_neutreno.smoothing.plots import COLORS, curve_style

CURVES = {"plain": [0.1, 0.5, 0.9], "NeuTRENO": [0.1, 0.3, 0.4, 0.5]}


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_writes_the_format_of_the_name(tmp_path, suffix):
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    path = tmp_path / f"plot{suffix}"
    plot_similarity(CURVES, path)
    assert path.read_bytes().startswith(start)


def test_svg_holds_every_label_as_text(tmp_path):
    plot_similarity(CURVES, tmp_path / "plot.svg", title="Two models")
    text = (tmp_path / "plot.svg").read_text()
    for label in (*CURVES, "Layer", "Mean cosine similarity of tokens", "Two models"):
        assert f">{label}<" in text


def test_the_same_numbers_give_the_same_file(tmp_path):
    for name in ("a.svg", "b.svg"):
        plot_similarity(CURVES, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def luminance(color: str) -> float:
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_curves_differ_in_marker_and_dash_too():
    styles = [curve_style(i) for i in range(12)]
    assert len({(style["marker"], str(style["linestyle"])) for style in styles}) == 12
    assert all(luminance(color) < 0.75 for color in COLORS)  # visible on white


@pytest.mark.parametrize(
    ("curves", "name", "message"),
    [
        ({}, "a.png", "nothing to plot"),
        ({"x": []}, "a.png", "nothing to plot"),
        ({"x": [1.0, float("nan")]}, "a.png", "cannot plot x: not all values are finite"),
        ({"x": [1.0]}, "a.jpg", r"must end in one of \.png"),
    ],
)
def test_wrong_use(tmp_path, curves, name, message):
    with pytest.raises(ValueError, match=message):
        plot_similarity(curves, tmp_path / name)


RESULT = Smoothing("plain", 3, {"block_similarity": [0.1, 0.5]}, {"block_similarity": [0.0, 0.1]})


def test_a_result_saves_loads_and_plots_itself(tmp_path):
    RESULT.save(tmp_path / "result.json")
    assert Smoothing.load(tmp_path / "result.json") == RESULT
    plot_results([RESULT], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_wrong_files_and_metrics_are_named(tmp_path):
    (tmp_path / "other.json").write_text('{"top1": 3}')
    with pytest.raises(ValueError, match=r"other.json is not a saved smoothing result"):
        Smoothing.load(tmp_path / "other.json")
    with pytest.raises(ValueError, match="'block_angle' was not measured on plain; there are: block_similarity"):
        plot_results([RESULT], tmp_path / "plot.png", "block_angle")
