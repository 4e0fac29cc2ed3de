"""What fair_table.py writes of its figures: JSON, both tables with what can be told, and a figure."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from pages import interval, stated
from timm_neutreno_cli.reports.intervals import EXACT, paired
from timm_neutreno_cli.reports.verdict import BETTER, OPEN, WORSE, outcomes_of_seeds

CONTROL, PAPER = "control", "neutreno"
METHODS = (
    PAPER, "featscale", "neutreno+featscale", "attnscale", "gfsa", "twicing", "laplacian", "xsa", "value_residual",
    "symmetric", "kernel",
)  # fmt: skip
FIDELITIES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)  # beside the paper's 0.6


def chosen(document: dict[str, Any]) -> str:
    """NeuTRENO's way that is best on val."""
    ways = [name for name in document["variants"] if is_neutreno(name)]
    return max(ways, key=lambda name: fmean(document["variants"][name]["val"]["top1"]))


def is_neutreno(name: str) -> bool:
    return name == PAPER or name not in (CONTROL, *METHODS)


def sorted_out(document: dict[str, Any]) -> dict[str, list[str]]:
    """The methods by what their difference to the control on test shows."""
    found = {name: row["differences"]["test"] for name, row in document["variants"].items() if name in METHODS}
    outcomes = outcomes_of_seeds(found, list(found))
    return {word: [name for name in found if outcomes[name] == word] for word in (BETTER, OPEN, WORSE)}


def readme(document: dict[str, Any]) -> str:
    """In short."""
    words, rows, best = sorted_out(document), document["variants"], chosen(document)
    return (
        f"And on photos: of {sum(map(len, words.values()))} methods, each fine-tuned on CIFAR-10 at one budget "
        f"({document['seeds']} seeds, {document['test']:,} test images), {len(words[BETTER]) or 'none'} came out "
        f"better than the control by more than chance, and {len(words[WORSE]) or 'none'} worse "
        f"({', '.join(words[WORSE])}). NeuTRENO at the paper's 0.6 differs from it by "
        f"{interval(rows[PAPER]['differences']['test']['top1'], 2)} points of top-1, and the way that val chose "
        f"({best}) by {interval(versus(rows, best, CONTROL), 2)}. The whole table: "
        "[docs/evidence.md](docs/evidence.md)."
    )


def told(document: dict[str, Any]) -> list[str]:
    """What the figures show, and what they cannot."""
    rows = document["variants"]
    words = {
        word: [f"{name} {interval(rows[name]['differences']['test']['top1'], 2)}" for name in names]
        for word, names in sorted_out(document).items()
    }
    best = chosen(document)
    val = f"{fmean(rows[best]['val']['top1']):.2f}"
    lines = [
        f"Against the control, in top-1 on {document['test']:,} test images, mean of {document['seeds']} seeds, with "
        f"intervals that hold for all {sum(map(len, words.values()))} methods together: "
        + "; ".join(f"{word}: {', '.join(found) or 'none'}" for word, found in words.items())
        + ".",
        f"Among NeuTRENO's ways val takes {best} ({val} top-1 there): on test it differs from the "
        f"control by {interval(versus(rows, best, CONTROL), 2)}"
        + (f", and from NeuTRENO as in the paper by {interval(versus(rows, best, PAPER), 2)}" if best != PAPER else "")
        + " (each interval 95 % by itself).",
    ]
    alike = [name for name in (PAPER, best) if lower(rows[name]["differences"]["test"]["similarity"])]
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


def lower(found: dict[str, Any]) -> bool:
    """By more than chance; seeds that agree to the last digit by accident are no interval."""
    return found["sd"] >= EXACT and found["high"] < -EXACT


def versus(rows: dict[str, Any], name: str, other: str) -> dict[str, Any]:
    """Top-1 on test, seed by seed."""
    pairs = zip(rows[name]["test"]["top1"], rows[other]["test"]["top1"], strict=True)
    return paired([a - b for a, b in pairs])


def markdown(document: dict[str, Any]) -> str:
    """Both tables, and what stands beside them; from the JSON alone."""
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
        f"{document['lr']:g}, the control's best on val (top-1 there, seed 0: {rates}). {stated(document)}:",
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
        "NeuTRENO in other ways:",
        "",
        "| NeuTRENO | top-1 val | test | difference | loss | similarity | strength | untrained |",
        "|---|---|---|---|---|---|---|---|",
        *(line(document, name, False) for name in document["variants"] if is_neutreno(name)),
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
        interval(differences["test"]["top1"], 2) if differences else "", f"{mean['test']['loss']:.4f}",
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
