"""Seeing over-smoothing: how alike a ViT's tokens are, layer by layer, and plots of it.

    from timm_neutreno.smoothing import token_similarity, plot_similarity
    curves = {"deit": token_similarity(model, loader), "neutreno": token_similarity(patched, loader)}
    plot_similarity(curves, "similarity.png")

`measure` runs any of `METRICS` over a stream of images; `watch` does so inside one's own loop. `spectrum` looks at the
weights.
"""

from . import tokens
from .maps import attention_maps, plot_attention_maps
from .measure import measure, token_similarity
from .metrics import METRICS, SIMILARITIES
from .plots import plot_similarity, plot_spectra
from .result import Smoothing, plot_results
from .spectra import dominating, dominating_eigenvalues, spectrum
from .watch import watch

__all__ = [
    "METRICS",
    "SIMILARITIES",
    "Smoothing",
    "attention_maps",
    "dominating",
    "dominating_eigenvalues",
    "measure",
    "plot_attention_maps",
    "plot_results",
    "plot_similarity",
    "plot_spectra",
    "spectrum",
    "token_similarity",
    "tokens",
    "watch",
]
