"""Every method at one budget: a pretrained ViT is fine-tuned with each, and without, on CIFAR-10, several seeds.

    python benchmarks/fair_table.py --data CIFAR10_FOLDER --output DIR          # about two hours of one CPU core
    python benchmarks/fair_table.py --data CIFAR10_FOLDER --output DIR --quick  # the same path in minutes, says nothing
    python benchmarks/fair_table.py --data CIFAR10_FOLDER --output DIR --full   # DeiT-tiny's width, all images: a GPU

CIFAR10_FOLDER is what cifar10.py makes. A plain softmax ViT is trained on the train images first (pretrain.py); then
`timm_neutreno.adapt` fine-tunes it further on them: every variant from the same weights, for the same epochs, with the
same images in the same order. The learning rate is the control's: the best of three for it on val, seed 0. Settings
are chosen on val, which is a part of CIFAR-10's train images that no training saw, and reported on CIFAR-10's test
images. A second call goes on where the first was interrupted. Writes fair_table.json, .md and .svg into DIR.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import cifar10
import machine
import timm
import torch
from pretrain import pretrain
from timm_neutreno_cli.reports.intervals import EXACT, paired

import timm_neutreno
from timm_neutreno.cost import Counter

CONTROL, PAPER = "control", "neutreno"
METHODS = (
    PAPER, "featscale", "neutreno+featscale", "attnscale", "gfsa", "twicing", "laplacian", "xsa", "value_residual",
    "symmetric", "kernel",
)  # fmt: skip
PAPERS = {PAPER: {"fidelity": 0.6}, "neutreno+featscale": {"fidelity": 0.6}}  # other methods have one way only
FIDELITIES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)  # beside the paper's 0.6
RATES = (1e-4, 3e-4, 1e-3)  # for the control, on val

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "shape": {"patch_size": 4, "embed_dim": 48, "num_heads": 3}, "train": 5000, "val": 2000, "test": 5000,
        "pretrain_epochs": 30, "epochs": 2, "batch_size": 50, "seeds": 5, "ways_seeds": 3,
        "augmentation": {"auto_augment": None},
    },
    "quick": {
        "shape": {"patch_size": 8, "embed_dim": 24, "num_heads": 2}, "train": 100, "val": 100, "test": 100,
        "pretrain_epochs": 1, "epochs": 1, "batch_size": 50, "seeds": 2, "ways_seeds": 2,
        "augmentation": {"auto_augment": None},
    },
    "full": {
        "shape": {"patch_size": 4, "embed_dim": 192, "num_heads": 3}, "train": 45000, "val": 5000, "test": 10000,
        "pretrain_epochs": 60, "epochs": 20, "batch_size": 256, "seeds": 5, "ways_seeds": 5,
        "augmentation": {},
    },
}  # fmt: skip
METRICS = {"top1": 2, "loss": 4, "similarity": 3}


def variants(epochs: int) -> dict[str, dict[str, Any]]:
    """What is compared with the control, as options of `adapt`: methods as in their papers, NeuTRENO in other ways."""
    ramp = epochs / 2
    ways: dict[str, dict[str, Any]] = {
        "neutreno, from 0 to 0.6": {"fidelity": 0.6, "fidelity_warmup": ramp},
        "neutreno, from 0 to 0.2": {"fidelity": 0.2, "fidelity_warmup": ramp},
        "neutreno, learned per layer from 0": {"fidelity": 0.0, "learnable_fidelity": "layer"},
        "neutreno, learned per head from 0": {"fidelity": 0.0, "learnable_fidelity": "head"},
        "neutreno, learned per layer from 0.6": {"fidelity": 0.6, "learnable_fidelity": "layer"},
    }
    constant = {f"neutreno at {fidelity:g}": {"fidelity": fidelity} for fidelity in FIDELITIES}
    papers = {method: {"method": [method], **PAPERS.get(method, {})} for method in METHODS}
    return {**papers, **constant, **ways}


def main() -> None:
    options = arguments()
    options.methods = [name for name in METHODS if name in (PAPER, *options.methods)]
    torch.set_num_threads(options.threads)
    size = SIZES[options.size] | ({"seeds": options.seeds} if options.seeds else {})
    options.output.mkdir(parents=True, exist_ok=True)
    data, test = folders(options, size)
    shape = {"img_size": 32, "depth": 12, "num_classes": 10, **size["shape"]}
    pretrained = options.output / "pretrained"
    common = {"batch_size": size["batch_size"], "workers": options.workers, "device": options.device}
    record = pretrain(data, pretrained, shape, epochs=size["pretrain_epochs"], **common, **size["augmentation"])
    common |= {
        "checkpoint": f"local-dir:{pretrained}",
        "data": str(data),
        "epochs": size["epochs"],
        "recipe": "finetune",
    }
    both = {"method": [PAPER], **PAPERS[PAPER], "control": True}  # NeuTRENO's own call trains the control too
    tried = {lr: measured(options, test, f"rate-{lr:g}", 0, common | both | {"lr": lr}) for lr in RATES}
    lr = max(RATES, key=lambda lr: tried[lr][CONTROL]["val"]["top1"])
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in range(size["seeds"]):
        for name, given in variants(size["epochs"]).items():
            if name in METHODS and name not in options.methods:
                continue
            if name not in METHODS and (seed >= size["ways_seeds"] or len(options.methods) < len(METHODS)):
                continue
            found = measured(options, test, name, seed, common | {"lr": lr} | (both if name == PAPER else given))
            for arm, row in found.items():
                rows.setdefault(CONTROL if arm == CONTROL else name, []).append(row)
    document = {
        "what": "CIFAR-10, fine-tuning of a small pretrained ViT with every method",
        **machine.described(options.device),
        "size": options.size, "parameters": parameters(shape), "pretraining": record, **size, "lr": lr,
        "rates": {f"{rate:g}": {arm: row["val"]["top1"] for arm, row in tried[rate].items()} for rate in RATES},
        "cost": kept(options.output / "cost.json", lambda: costs(shape, options)),
        "checkpoint": kept(options.output / "checkpoint.json", lambda: untouched(common, test)),
        "variants": summary(rows, size["epochs"]),
    }  # fmt: skip
    write(document, options.output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/; made if missing")
    parser.add_argument("--cifar-archive", type=Path, help="tar of {train,val}/<class>/*.jpg to make it from")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, help="instead of the size's")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="some; then no other ways")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    sizes = parser.add_mutually_exclusive_group()
    for size in ("quick", "full"):
        sizes.add_argument(f"--{size}", dest="size", action="store_const", const=size, default="small")
    return parser.parse_args()


def folders(options: argparse.Namespace, size: dict[str, Any]) -> tuple[Path, Path]:
    """Train and val images; and the same with the test images as val."""
    source = cifar10.prepare(options.data, options.cifar_archive)
    counts = {"train": ("train", size["train"]), "val": ("train", size["val"]), "test": ("val", size["test"])}
    images = cifar10.choose(source, options.output / "images", counts)
    made = []
    for part in ("val", "test"):
        folder = options.output / f"cifar10-{part}"
        folder.mkdir(exist_ok=True)
        for name, origin in (("train", "train"), ("val", part)):
            if not (folder / name).exists():
                (folder / name).symlink_to((images / origin).resolve(), target_is_directory=True)
        made.append(folder)
    return made[0], made[1]


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gave once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(make(), indent=1) + "\n")
        beside.rename(path)
    return json.loads(path.read_text())


def measured(options: argparse.Namespace, test: Path, name: str, seed: int, given: dict[str, Any]) -> dict[str, Any]:
    """One variant and seed: adapted, and evaluated on test; DIR/measured keeps the figures, not the run."""
    slug = f"{name.replace(', ', '-').replace(' ', '-')}-seed{seed}"

    def adapt() -> dict[str, Any]:
        print(slug, file=sys.stderr, flush=True)
        run = options.output / "runs" / slug
        shutil.rmtree(run, ignore_errors=True)  # interrupted
        start = time.perf_counter()
        result = timm_neutreno.adapt(**{"control": False, **given}, seed=seed, output=str(run))
        found = {
            arm: {
                "val": figures(row),
                "test": figures(timm_neutreno.evaluate(run / "arms" / arm, data=str(test)).document),
                "untrained": figures(result.rows.get(f"{arm}/start", result.rows["checkpoint"])),
                "strengths": {key: value["mean_abs"] for key, value in row["strengths"].items()},
                "seconds": round(time.perf_counter() - start, 1),
            }
            for arm, row in result.rows.items()
            if arm != "checkpoint" and "/" not in arm
        }
        shutil.rmtree(run)
        return found

    return kept(options.output / "measured" / f"{slug}.json", adapt)


def untouched(common: dict[str, Any], test: Path) -> dict[str, Any]:
    """The pretrained model's own figures."""
    model = common["checkpoint"]
    return {
        part: figures(timm_neutreno.evaluate(model, data=data).document)
        for part, data in (("val", common["data"]), ("test", str(test)))
    }


def figures(row: dict[str, Any]) -> dict[str, float]:
    """The similarity is the last block's."""
    return {key: row[key][-1] if isinstance(row[key], list) else row[key] for key in METRICS}


def costs(shape: dict[str, Any], options: argparse.Namespace, rounds: int = 15) -> dict[str, Any]:
    """A training step with each method over one without, in turns: time (quartiles of ratios) and peak memory."""
    base = timm.create_model("vit_tiny_patch16_224", **shape)
    models = {CONTROL: copy.deepcopy(base), "control again": copy.deepcopy(base)}
    models |= {method: timm_neutreno.patch(copy.deepcopy(base), method) for method in options.methods}
    images = torch.randn(50, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(options.device)
    steps = {name: step(model.to(options.device).train(), images) for name, model in models.items()}
    peaks = {}
    for name, run in steps.items():
        run()
        with Counter() as counter:
            run()
        peaks[name] = counter.peak
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, run in steps.items():
            times[name].append(clock(run, options.device))
    return {
        name: {
            "time": statistics.quantiles([a / b for a, b in zip(times[name], times[CONTROL], strict=True)], n=4),
            "memory": peaks[name] / peaks[CONTROL],
        }
        for name in steps
        if name != CONTROL
    }


def step(model: torch.nn.Module, images: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        model(images).sum().backward()
        model.zero_grad(set_to_none=True)

    return run


def clock(run: Callable[[], None], device: str) -> float:
    """Seconds: on the CPU those that this process computed, which others on the machine do not lengthen much."""
    cuda = device.startswith("cuda")
    now = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize()
    start = now()
    run()
    if cuda:
        torch.cuda.synchronize()
    return now() - start


def parameters(shape: dict[str, Any]) -> int:
    return sum(parameter.numel() for parameter in timm.create_model("vit_tiny_patch16_224", **shape).parameters())


def summary(rows: dict[str, list[dict[str, Any]]], epochs: int) -> dict[str, Any]:
    """Every figure of every seed, and the differences to the control's of the same seed."""
    methods = sum(name in METHODS for name in rows)
    ways = len(rows) - 1 - methods
    found: dict[str, Any] = {}
    for name, runs in rows.items():
        entry: dict[str, Any] = {
            part: {key: [run[part][key] for run in runs] for key in METRICS} for part in ("val", "test", "untrained")
        }
        entry["strengths"] = {key: fmean(run["strengths"][key] for run in runs) for key in runs[0]["strengths"]}
        if name != CONTROL:
            entry["options"] = variants(epochs)[name]
            entry["differences"] = {
                part: {
                    key: paired(
                        [a - b for a, b in zip(entry[part][key], found[CONTROL][part][key], strict=False)],
                        methods if name in METHODS else ways,
                    )
                    for key in METRICS
                }
                for part in ("val", "test")
            }
        found[name] = entry
    return found


def chosen(document: dict[str, Any]) -> str:
    """NeuTRENO's way that is best on val, over the seeds that all ways have."""
    ways = [name for name, row in document["variants"].items() if is_neutreno(name, row)]
    return max(ways, key=lambda name: fmean(document["variants"][name]["val"]["top1"][: document["ways_seeds"]]))


def is_neutreno(name: str, row: dict[str, Any]) -> bool:
    return name == PAPER or (name not in METHODS and name != CONTROL)


def sorted_out(document: dict[str, Any]) -> dict[str, list[str]]:
    """The methods by what their difference to the control on test shows."""
    words: dict[str, list[str]] = {"better": [], "no difference shown": [], "worse": []}
    for name in METHODS:
        if name in document["variants"]:
            words[outcome(document["variants"][name]["differences"]["test"]["top1"])].append(name)
    return words


def readme(document: dict[str, Any]) -> str:
    """In short."""
    words, rows, best = sorted_out(document), document["variants"], chosen(document)
    methods, ways = sum(map(len, words.values())), document["ways_seeds"]
    lost = -fmean(rows[PAPER]["differences"]["test"]["top1"]["values"])
    return (
        f"And on photos: of {methods} methods, each fine-tuned on CIFAR-10 at one budget ({document['seeds']} seeds, "
        f"{document['test']:,} test images), {len(words['better']) or 'none'} came out better than the control by more "
        f"than chance, and {len(words['worse']) or 'none'} worse ({', '.join(words['worse'])}). NeuTRENO at the "
        f"paper's 0.6 lost {lost:.1f} points of top-1; the way that val chose ({best}) differs from the control by "
        f"{shown(versus(rows, best, CONTROL, ways), 2)}. The whole table: [docs/evidence.md](docs/evidence.md)."
    )


def told(document: dict[str, Any]) -> list[str]:
    """What the figures show, and what they cannot."""
    rows = document["variants"]
    words = {
        word: [f"{name} {shown(rows[name]['differences']['test']['top1'], 2)}" for name in names]
        for word, names in sorted_out(document).items()
    }
    seeds, ways = document["seeds"], document["ways_seeds"]
    best = chosen(document)
    val = f"{fmean(rows[best]['val']['top1'][:ways]):.2f}"
    lines = [
        f"Against the control, in top-1 on {document['test']:,} test images, mean of {seeds} seeds, with intervals "
        f"that hold for all {sum(map(len, words.values()))} methods together: "
        + "; ".join(f"{word}: {', '.join(found) or 'none'}" for word, found in words.items())
        + ".",
        f"Among NeuTRENO's ways val takes {best} ({val} top-1 there, {ways} seeds): on test it differs from the "
        f"control by {shown(versus(rows, best, CONTROL, ways), 2)}"
        + (
            f", and from NeuTRENO as in the paper by {shown(versus(rows, best, PAPER, ways), 2)}"
            if best != PAPER
            else ""
        )
        + " (each interval 95 % by itself).",
    ]
    alike = [name for name in (PAPER, best) if outcome(rows[name]["differences"]["test"]["similarity"]) == "worse"]
    lines.append(
        f"Token similarity in the last block is {fmean(rows[CONTROL]['test']['similarity']):.3f} in the control, "
        f"{fmean(rows[PAPER]['test']['similarity']):.3f} in NeuTRENO as in the paper"
        + (f" and {fmean(rows[best]['test']['similarity']):.3f} with {best}" if best != PAPER else "")
        + f"; lower than the control's by more than chance in {' and '.join(alike) or 'neither'}. Lower is not better "
        "by itself."
    )
    model, pretraining = document["parameters"], document["pretraining"]
    edge = ", the lowest that was tried" if document["lr"] == min(map(float, document["rates"])) else ""
    lines.append(
        f"What this cannot tell: the model has {model:,} parameters and {pretraining['top1']:.1f} % top-1 on val after "
        f"{document['pretrain_epochs']} epochs of pretraining on {document['train']:,} images, and the adaptation is "
        f"{document['epochs']} more, which is less than the paper's third. All variants have the learning rate that is "
        f"best for the control{edge}, so others may gain from one of their own. The intervals are about the chance of "
        "training; all seeds share the pretrained weights and the test images."
    )
    return lines


def outcome(found: dict[str, Any]) -> str:
    """Seeds that agree to the last image by accident are no interval."""
    if found["sd"] < EXACT:
        return "no difference shown"
    return "better" if found["low"] > 0 else "worse" if found["high"] < 0 else "no difference shown"


def versus(rows: dict[str, Any], name: str, other: str, seeds: int) -> dict[str, Any]:
    """Top-1 on test over the first seeds."""
    pairs = zip(rows[name]["test"]["top1"][:seeds], rows[other]["test"]["top1"][:seeds], strict=True)
    return paired([a - b for a, b in pairs])


def shown(found: dict[str, Any], digits: int) -> str:
    return f"{found['mean']:+.{digits}f} [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"


def markdown(document: dict[str, Any]) -> str:
    """Both tables, and what stands beside them; from the JSON alone."""
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    rates = "; ".join(f"{rate}: " + ", ".join(f"{arm} {top1:.2f}" for arm, top1 in row.items())
                      for rate, row in document["rates"].items())  # fmt: skip
    shape = ", ".join(f"{key} {value}" for key, value in document["pretraining"]["shape"].items())
    lines = []
    if document["size"] == "quick":
        lines += ["**A trial of the script: the figures say nothing.**", ""]
    untouched = document["checkpoint"]["test"]
    seen = ", ".join(f"{document[part]:,} {part}" for part in ("train", "val", "test"))
    lines += [
        f"{document['what']}: {shape}; {seen} images, {document['epochs']} epochs of adaptation in batches of "
        f"{document['batch_size']}, recipe finetune, seeds 0 to {document['seeds'] - 1}. Learning rate "
        f"{document['lr']:g}, the control's best on val (top-1 there, seed 0: {rates}). {document['hardware']}, "
        f"{versions}, {document['date']}:",
        "",
        f"    {document['command']}",
        "",
        "Top-1 in per cent, loss and token similarity of the last block on test, mean of the seeds; differences to "
        "the control of the same seed with 95 % intervals (Student's t over seeds, widened for all rows of a table). "
        "`untrained` is top-1 on val with the method put in and nothing trained; time and memory are of a training "
        "step over the control's (median and quartiles of paired ratios; peak of tensors). "
        f"The pretrained model itself has {untouched['top1']:.2f} top-1 and similarity {untouched['similarity']:.3f}.",
        "",
        "| method | top-1 val | test | difference | loss | similarity | strength | untrained | time | memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(line(document, name, True) for name in (CONTROL, *METHODS) if name in document["variants"]),
        "",
        f"NeuTRENO in other ways, {document['ways_seeds']} seeds (the row of 0.6 has {document['seeds']}):",
        "",
        "| NeuTRENO | top-1 val | test | difference | loss | similarity | strength | untrained |",
        "|---|---|---|---|---|---|---|---|",
        *(line(document, name, False) for name, row in document["variants"].items() if is_neutreno(name, row)),
        "",
        *(f"- {sentence}" for sentence in told(document)),
        "",
    ]
    return "\n".join(lines)


def line(document: dict[str, Any], name: str, costs: bool) -> str:
    row = document["variants"][name]
    mean = {part: {key: fmean(values) for key, values in row[part].items()} for part in ("val", "test", "untrained")}
    differences = row.get("differences")
    strengths = ", ".join(f"{value:.3g}" for value in row["strengths"].values())
    cells = [
        name, f"{mean['val']['top1']:.2f}", f"{mean['test']['top1']:.2f}",
        shown(differences["test"]["top1"], 2) if differences else "", f"{mean['test']['loss']:.4f}",
        f"{mean['test']['similarity']:.3f}", strengths, f"{mean['untrained']['top1']:.2f}" if differences else "",
    ]  # fmt: skip
    if costs and name in document["cost"]:
        low, middle, high = document["cost"][name]["time"]
        cells += [f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{document['cost'][name]['memory']:.2f}"]
    elif costs:
        low, middle, high = document["cost"]["control again"]["time"]
        cells += [f"{middle:.2f} ({low:.2f} to {high:.2f})", "1.00"]
    return f"| {' | '.join(cells)} |"


def plot(document: dict[str, Any], path: Path) -> None:
    """Differences of the methods, and NeuTRENO's strength against accuracy and similarity."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = document["variants"]
    plt.rcParams["svg.hashsalt"] = "fair_table"
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    methods = [name for name in METHODS if name in rows]
    for y, name in enumerate(reversed(methods)):
        found = rows[name]["differences"]["test"]["top1"]
        error = [[found["mean"] - found["low"]], [found["high"] - found["mean"]]]
        left.errorbar(found["mean"], y, xerr=error, fmt="o", color="tab:blue", capsize=3)
    left.axvline(0, color="grey", linewidth=1)
    left.set_yticks(range(len(methods)), list(reversed(methods)))
    left.set_xlabel("top-1 on test minus the control's, points")
    constant = {0.0: CONTROL, 0.6: PAPER, **{value: f"neutreno at {value:g}" for value in FIDELITIES}}
    xs = sorted(x for x, name in constant.items() if name in rows)
    for part, label in (("test", "trained, test"), ("untrained", "untrained, val")):
        middle.plot(xs, [fmean(rows[constant[x]][part]["top1"]) for x in xs], "o-", label=label)
    middle.set_ylabel("top-1, per cent")
    for part, label in (("test", "trained"), ("untrained", "untrained")):
        right.plot(xs, [fmean(rows[constant[x]][part]["similarity"]) for x in xs], "o-", label=label)
    right.set_ylabel("token similarity, last block")
    for axis in (middle, right):
        axis.axvline(0.6, color="grey", linewidth=1, linestyle=":")
        axis.set_xlabel("fidelity (0.6: the paper's)")
        axis.legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def write(document: dict[str, Any], output: Path) -> None:
    (output / "fair_table.json").write_text(json.dumps(document, indent=1) + "\n")
    (output / "fair_table.md").write_text(markdown(document))
    plot(document, output / "fair_table.svg")
    print(markdown(document))


if __name__ == "__main__":
    main()
