"""Fig. 6 of the NeuTRENO paper, without training: token similarity of randomly initialised 12-layer models.

    python benchmarks/figure6.py --data FOLDER_OF_PHOTOS

prints a table and writes figure6.json, figure6_block.svg and figure6_attention.svg beside this file. Every seed gives
DeiT-tiny and NeuTRENO-DeiT-tiny (fidelity 0.6) the same random weights. The paper does not say whether it measured the
residual stream or the attention module's output, so both are here. Layer 1 has no fidelity term: its attention output
is the same in both models.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import timm
import torch
from timm_neutreno_cli.data.photos import find_photos, photo_batches

import timm_neutreno
from timm_neutreno.smoothing import METRICS, SIMILARITIES, measure, plot_similarity

PLAIN, TWIN = "deit_tiny_patch16_224", "neutreno_deit_tiny"
FIDELITY = 0.6
HERE = Path(__file__).parent
SIGNIFICANT = 3.0  # standard errors

Values = dict[
    str, list[tuple[list[float], list[float]]]
]  # metric -> per batch, the layers of the plain model and the twin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, searched with its subfolders")
    parser.add_argument("--images", type=int, default=1000, help="how many, evenly spread over all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE)
    args = parser.parse_args()
    photos = find_photos(args.data, args.images)
    runs = [run_seed(seed, photos) for seed in range(args.seeds)]
    summary = {metric: summarize(runs, metric) for metric in SIMILARITIES}
    for metric, rows in summary.items():
        print_table(metric, rows)
    write(args.output, runs, summary, len(photos))


def run_seed(seed: int, photos: list[Path]) -> Values:
    """Both models with this seed's weights, batch by batch on the same photos."""
    torch.manual_seed(seed)
    plain = timm.create_model(PLAIN)
    twin = timm.create_model(TWIN, fidelity=FIDELITY)
    twin.load_state_dict(plain.state_dict())
    start = time.time()
    pairs = [(measure(plain, [batch]).values, measure(twin, [batch]).values) for batch in photo_batches(photos, plain)]
    print(
        f"seed {seed}: both models on {len(photos)} photos in {time.time() - start:.0f} s", file=sys.stderr, flush=True
    )
    return {metric: [(a[metric], b[metric]) for a, b in pairs] for metric in SIMILARITIES}


def summarize(runs: list[Values], metric: str) -> list[dict]:
    """Per layer: means over seeds, the smallest and largest difference of a seed, and the smallest in standard errors.

    The difference is taken batch by batch, so that how much photos differ does not hide it; its standard error is that
    of the mean over batches.
    """
    rows = []
    for layer in range(len(runs[0][metric][0][0])):
        pairs = [[(plain[layer], twin[layer]) for plain, twin in run[metric]] for run in runs]
        lower = [[plain - twin for plain, twin in run] for run in pairs]
        means = [statistics.fmean(run) for run in lower]
        errors = [statistics.stdev(run) / math.sqrt(len(run)) for run in lower]
        rows.append(
            {
                "layer": layer + 1,
                "plain": statistics.fmean(plain for run in pairs for plain, _ in run),
                "neutreno": statistics.fmean(twin for run in pairs for _, twin in run),
                "lower_by_min": min(means),
                "lower_by_max": max(means),
                "standard_errors_min": min(m / e if e else 0.0 for m, e in zip(means, errors, strict=True)),
            }
        )
    return rows


def holds(rows: list[dict]) -> bool:
    """Whether NeuTRENO is significantly lower at every depth in every seed; layer 1 is left out."""
    return all(row["standard_errors_min"] > SIGNIFICANT for row in rows[1:])


def print_table(metric: str, rows: list[dict]) -> None:
    print(f"\n{metric}: NeuTRENO significantly lower at every layer from 2 on, in every seed: {holds(rows)}")
    print("layer  plain   neutreno  lower by (min, max of seeds)  standard errors (min)")
    for row in rows:
        values = f"{row['layer']:5d}  {row['plain']:.4f}  {row['neutreno']:.4f}"
        lower = f"{row['lower_by_min']:+.4f} {row['lower_by_max']:+.4f}"
        print(f"{values}    {lower}               {row['standard_errors_min']:+.1f}")


def write(folder: Path, runs: list[Values], summary: dict[str, list[dict]], images: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "images": images,
        "seeds": len(runs),
        "fidelity": FIDELITY,
        "models": [PLAIN, TWIN],
        "versions": {"torch": torch.__version__, "timm": timm.__version__, "timm_neutreno": timm_neutreno.__version__},
        "hardware": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
        "claim_holds": {metric: holds(rows) for metric, rows in summary.items()},
        "layers": summary,
    }
    (folder / "figure6.json").write_text(json.dumps(document, indent=1) + "\n")
    plot(folder, document)


def plot(folder: Path, document: dict) -> None:
    """Two plots, from what figure6.json holds; all tokens, as without the class token the curves look the same."""
    names = {"plain": "DeiT-tiny", "neutreno": f"NeuTRENO-DeiT-tiny, fidelity {document['fidelity']}"}
    title = f"Random weights, {document['images']} photos, mean of {document['seeds']} seeds"
    for of in ("block", "attention"):
        rows = document["layers"][f"{of}_similarity"]
        curves = {name: [row[key] for row in rows] for key, name in names.items()}
        label = METRICS[f"{of}_similarity"].label
        plot_similarity(curves, folder / f"figure6_{of}.svg", ylabel=label, title=title)


if __name__ == "__main__":
    main()
