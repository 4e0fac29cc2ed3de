"""The picture of papers_figures.py: small multiples, from its JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"plain": "C0", "patched": "C1", "control": "C2", "adapted": "C3"}
NAMES = {
    "plain": "as it is", "patched": "NeuTRENO put in", "control": "adapted: control", "adapted": "adapted: NeuTRENO",
}  # fmt: skip
PANELS = {
    "block_similarity": "Fig. 1: cosine of tokens, block outputs",
    "attention_similarity": "Fig. 1: the same, attention outputs",
    "functional_softmax": "Fig. 3: log10 of J(v), softmax as kernel",
    "functional_exp": "Fig. 3: log10 of J(v), exp as kernel",
    "map_cosine": "Fig. 5: cosine of maps, layer and next",
    "head_similarity": "Fig. 5 (code): cosine of a layer's maps",
    "gradient_cosine": "Table 4: cosine of the two gradients",
    "block_hfc_lfc": "2nd paper, Fig. 2: log10 of HFC / LFC",
    "block_angle": "2nd paper, Fig. 2: angle, degrees",
    "block_rank_one_distance": "2nd paper, Fig. 2: distance to rank one",
}


def plot(document: dict[str, Any], path: Path) -> None:
    """Metrics by layer, four models each; below, Fig. 4: what the class token attends to."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "papers_figures", "font.size": 7})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(5, 4, figsize=(11, 12), constrained_layout=True)
    flat = iter(axes.flat)
    for metric, title in PANELS.items():
        curve(next(flat), {name: curves[metric] for name, curves in document["curves"].items()}, title)
    shares = {name: [[v, 0.0] for v in values] for name, values in document["negative_share"].items()}
    curve(next(flat), shares, "2nd paper, Fig. 5: share of negative eigenvalues")
    legend = next(flat)
    legend.axis("off")
    legend.legend(handles=[plt.Line2D([], [], color=COLOURS[n], label=NAMES[n]) for n in COLOURS], loc="center")
    shown = [(name, layer) for name in ("plain", "patched") for layer in range(3)]
    shown += [("control", 2), ("adapted", 2)]
    for name, layer in shown:
        axis = next(flat)
        axis.imshow(document["maps"][name][layer], cmap="viridis")
        axis.set_title(f"Fig. 4: layer {document['layers_of_maps'][layer]}, head 1, {NAMES[name]}")
        axis.axis("off")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def curve(axis: Any, curves: dict[str, list[list[float]]], title: str) -> None:
    for name, points in curves.items():
        layers, middle = range(1, len(points) + 1), [mean for mean, _ in points]
        axis.plot(layers, middle, color=COLOURS[name], linewidth=1)
        low, high = ([mean + side * half for mean, half in points] for side in (-1, 1))
        axis.fill_between(layers, low, high, color=COLOURS[name], alpha=0.25, linewidth=0)
    axis.set_title(title)
    axis.set_xlabel("layer")
