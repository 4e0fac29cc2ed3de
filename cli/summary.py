"""What a run says at its end: the table, a verdict in words, and how to load the model."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluate import Evaluation

BEFORE, UNADAPTED, ADAPTED, CONTROL = (
    "checkpoint as it came",
    "NeuTRENO, not adapted",
    "NeuTRENO, adapted",
    "control, fidelity 0",
)
AVERAGED = ", EMA"  # after the name of an arm: its averaged weights
ORDER = (BEFORE, UNADAPTED, CONTROL, CONTROL + AVERAGED, ADAPTED, ADAPTED + AVERAGED)
HEADER = ("model", "fidelity", "top-1", "top-5", "loss", "similarity")


def rows(evaluations: dict[str, Evaluation], fidelities: dict[str, str], new_head: bool) -> list[tuple[str, ...]]:
    """The table's cells. A head that was initialised anew has learned nothing: its accuracy is not shown."""
    table: list[tuple[str, ...]] = []
    for name, evaluation in evaluations.items():
        figures = (f"{evaluation.top1:.2f}", f"{evaluation.top5:.2f}", f"{evaluation.loss:.4f}")
        if new_head and name in (BEFORE, UNADAPTED):
            figures = ("new head",) * 3
        table.append((name, fidelities[name], *figures, f"{evaluation.similarity[-1]:.4f}"))
    return table


def plain_table(table: list[tuple[str, ...]]) -> str:
    cells = [HEADER, *table]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADER))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(table: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table)])


def verdict(evaluations: dict[str, Evaluation]) -> list[str]:
    """What the table shows, in sentences, and how much of it is more than chance in these val images.

    Only a control can tell NeuTRENO's part from that of fine-tuning: without one, nothing is said of who won.
    """
    adapted, control = evaluations[ADAPTED], evaluations.get(CONTROL)
    if control:
        return [_accuracy_sentence(adapted, control), _similarity_sentence(adapted, control, "the control")]
    return [
        f"Accuracy: adapted NeuTRENO has {adapted.top1:.2f} % top-1 on {adapted.images} images. There is no control, "
        "so this says nothing for or against NeuTRENO: a gain may come from fine-tuning alone.",
        _similarity_sentence(adapted, evaluations[BEFORE], "the checkpoint as it came")
        + " That, too, may come from fine-tuning alone.",
    ]


def _accuracy_sentence(adapted: Evaluation, control: Evaluation) -> str:
    """Two standard errors of a difference of two proportions: cautious, since both saw the same images."""
    images = adapted.images
    difference = adapted.top1 - control.top1
    p = (adapted.top1 + control.top1) / 200
    noise = 2 * 100 * math.sqrt(max(2 * p * (1 - p), 1e-12) / images)
    count = round(abs(difference) * images / 100)
    if count == 0:
        return (
            f"Accuracy: no difference shown: adapted NeuTRENO and the control are equal at {adapted.top1:.2f} % top-1 "
            f"on {images} images."
        )
    shown = abs(difference) > noise
    what = ("NeuTRENO won" if difference > 0 else "NeuTRENO is worse") if shown else "no difference shown"
    return (
        f"Accuracy: {what}: {difference:+.2f} points of top-1 against the control, {count} of {images} images (one is "
        f"{100 / images:.2f} points). The interval {difference - noise:+.2f} to {difference + noise:+.2f} (two "
        f"standard errors, over images, for one seed) {'does not contain' if shown else 'contains'} 0."
    )


def _similarity_sentence(adapted: Evaluation, other: Evaluation, name: str) -> str:
    a, b = adapted.similarity[-1], other.similarity[-1]
    noise = 2 * math.hypot(adapted.similarity_error, other.similarity_error)
    how = f"{'less' if a < b else 'more'} alike, by more than the noise over images"
    if abs(a - b) <= noise:
        how = "no difference shown, within the noise over images"
    return (
        f"Smoothing: tokens of the last block have mean cosine similarity {a:.3f} against {b:.3f} in {name}: {how} "
        f"(about {noise:.3f})."
    )


def load_lines(directory: str) -> list[str]:
    return ["import timm, timm_neutreno", f'model = timm.create_model("local-dir:{directory}", pretrained=True)']


def document(
    evaluations: dict[str, Evaluation], fidelities: dict[str, str], sentences: list[str], **facts: Any
) -> dict[str, Any]:
    """The run's result as one JSON document."""
    arms = {name: {"fidelity": fidelities[name], **asdict(value)} for name, value in evaluations.items()}
    return {**facts, "models": arms, "verdict": sentences}


def readme(title: str, table: list[tuple[str, ...]], sentences: list[str], directory: str, notes: list[str]) -> str:
    lines = [
        f"# {title}",
        "",
        *notes,
        "",
        markdown_table(table),
        "",
        "Similarity is the mean cosine similarity between the tokens of an image after the last block: 1 means that",
        "all tokens are alike. `similarity.png` shows it layer by layer.",
        "",
        *(f"- {sentence}" for sentence in sentences),
        "",
        "```python",
        *load_lines(directory),
        "```",
        "",
        "Without `import timm_neutreno`, timm answers `Unknown model (neutreno_...)`.",
        "",
    ]
    return "\n".join(lines)
