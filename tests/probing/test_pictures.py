"""Plots and colours: files are there and say what they show; components of two models are comparable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from probing.data import CLASSES, batches, model
from sklearn.decomposition import PCA

from timm_neutreno.probing import (
    REFERENCE,
    Options,
    Setting,
    grid,
    methods,
    pictures,
    plot_blocks,
    plot_pca,
    plot_strengths,
    probe,
)
from timm_neutreno.probing.pca import colors, components


@pytest.fixture(scope="module")
def result():
    settings = [
        *grid("neutreno", {"fidelity": (0.1, 0.6)}),
        *grid("neutreno", {"fidelity": (0.1, 0.6)}, (-1,)),
        *grid("symmetric", {}),
    ]
    return probe(
        model(), batches(60, 0), batches(45, 2), num_classes=CLASSES, settings=settings,
        options=Options(neighbors=(5,), blocks=True),
    )  # fmt: skip


def test_strengths_against_scores(result, tmp_path):
    assert methods(result) == ["neutreno", "symmetric"]
    for method in methods(result):
        plot_strengths(result, tmp_path / f"{method}.svg", method)
        plot_strengths(result, tmp_path / f"{method}.png", method)
    text = (tmp_path / "neutreno.svg").read_text()
    for label in ("all blocks", "last block", "fidelity (0: the model as it is)", "0.1", "0.6", "neutreno"):
        assert f">{label}<" in text
    with pytest.raises(ValueError, match="'gfsa' was not probed; there are: neutreno, symmetric"):
        plot_strengths(result, tmp_path / "x.svg", "gfsa")


def test_scores_by_block(result, tmp_path):
    plot_blocks(result, tmp_path / "blocks.svg", "linear")
    text = (tmp_path / "blocks.svg").read_text()
    assert ">as it is<" in text
    assert ">Layer<" in text


def test_components_are_those_of_scikit_learn():
    tokens = torch.randn(2, 4, 5, 12, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(1.0, 13))
    found = components(tokens).flatten(0, 2).numpy()
    expected = PCA(3, whiten=True).fit_transform(tokens.flatten(0, 2).double().numpy()) * np.sqrt(40 / 39)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-6)


def test_rotated_and_mirrored_tokens_get_the_same_colours():
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 4, 5, 12, generator=draw, dtype=torch.float64) @ torch.diag(torch.arange(1.0, 13)).double()
    turn = torch.linalg.qr(torch.randn(12, 12, generator=draw, dtype=torch.float64)).Q
    first = components(tokens)
    torch.testing.assert_close(components(tokens @ -turn, like=first), first)
    shown = colors(first)
    assert (float(shown.min()), float(shown.max())) == (0, 1)


def test_pictures_of_a_model_as_it_is_and_patched(tmp_path):
    images = batches(3, 0)[0][0]
    settings = [REFERENCE, Setting("neutreno", {"fidelity": 0.0}), Setting("neutreno", {"fidelity": 0.6})]
    found = pictures(model(), settings, images)
    assert [tuple(maps.shape) for maps in found.values()] == [(3, 4, 4, 3)] * 3
    plain, zero, strong = found.values()
    torch.testing.assert_close(plain, zero)
    assert not torch.allclose(plain, strong, atol=1e-3)
    photos = [image.permute(1, 2, 0).clamp(0, 1).numpy() for image in images]
    plot_pca(photos, found, tmp_path / "pca.png")
    assert (tmp_path / "pca.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_pca([], found, tmp_path / "pca.png")
