"""The documents of a run, for people and for the model card: what was found, on what, and how to do it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime import files
from . import tables
from .command import command_line
from .html import Section, render
from .provenance import date
from .results import REPORT, RESULTS, RunResult
from .tables import count

SIMILARITY, CURVES, TOKENS, EXAMPLES = "similarity.png", "curves.png", "tokens.png", "examples.png"

TABLE = (
    "All rows are of the same val images. Accuracy is in percent; similarity is the mean cosine similarity between the "
    "tokens of an image after the last block, where 1 means that all are alike. A strength between bars was learned: "
    "the mean of its absolute values."
)
BY_LAYER = "Mean cosine similarity between the tokens of an image after each block. Lower is not better by itself."
TRAINING = "Every arm has the same recipe, seed and images in the same order; only the method differs."
PHOTOS = (
    "Val photos beside the patch tokens of the last block: their first three principal components over these photos "
    "are red, green and blue. Those of the trained models are rotated to lie near the checkpoint's. They show what a "
    "model tells apart, and no more than that."
)

MASKS = "Val images, their true classes, and what each arm predicts there."
UNKNOWN = "Without `import timm_neutreno`, timm answers `Unknown model (neutreno_...)`."


def pictures(directory: Path) -> dict[str, tuple[str, str]]:
    """File -> title and what it shows, of those that the run has."""
    known = {
        CURVES: ("Training", TRAINING),
        SIMILARITY: ("Similarity by layer", BY_LAYER),
        TOKENS: ("Photos and their tokens", PHOTOS),
        EXAMPLES: ("Val images: truth and predictions", MASKS),
    }
    return {name: words for name, words in known.items() if (directory / name).exists()}


def facts(arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions and data, as args.yaml has them."""
    data = arguments.get("data_fingerprint", {})
    images = [count(data[f"{part} images"], f"{part} image") for part in ("train", "val") if f"{part} images" in data]
    starts = [arguments.get("versions", {}), *arguments.get("resumed", [])]
    versions = dict.fromkeys(", ".join(f"{name} {number}" for name, number in start.items()) for start in starts)
    return [
        *([("Images", " and ".join(images))] if images else []),
        ("Versions", "; then, resumed, ".join(versions)),
        ("Date", date()),
    ]


def write(result: RunResult, directory: Path, arguments: Mapping[str, Any]) -> None:
    """Write report.html, README.md and, last, results.json, which the model card is made of.

    Args:
        result: Of one run.
        directory: Its folder, with its pictures.
        arguments: Its args.yaml.
    """
    document = {**result.document(), "table": result.rows, "command": command_line(arguments)}
    files.write_text(directory / REPORT, page(result, directory, arguments))
    files.write_text(directory / "README.md", readme(result, directory, arguments))
    files.write_text(directory / RESULTS, json.dumps(document, indent=2) + "\n")


def page(result: RunResult, directory: Path, arguments: Mapping[str, Any]) -> str:
    """report.html, with the pictures embedded."""
    sections = [Section("Results", [TABLE], table=result.rows)]
    for name, (title, words) in pictures(directory).items():
        sections.append(Section(title, [words], [(directory / name, title)]))
    about = [
        ("Checkpoint", result.checkpoint),
        ("Data", result.data),
        ("Training", f"{count(result.epochs, 'epoch')}, seed {result.seed}, {result.device}{_plans(result)}"),
        ("Time", f"{result.seconds:.0f} s in its last start"),
        *facts(arguments),
    ]
    sections += [
        Section("How it was done", [], facts=about),
        Section("Do it again", [], code=command_line(arguments)),
        Section(f"Load {result.main}", [], code="\n".join(result.load_lines())),
    ]
    return render(heading(result.methods, result.checkpoint, result.data), result.sentences, sections)


def heading(methods: Sequence[str], checkpoint: str, data: str) -> str:
    """Of a report: what was put into what."""
    return f"Adapting {_name(checkpoint)} with {' and '.join(methods)} on {_name(data)}"


def _name(text: str) -> str:
    """Of a file or folder its own name; anything else as it is."""
    try:
        return Path(text).name if Path(text).exists() else text
    except (OSError, ValueError):  # too long, or a zero byte: no path
        return text


def _plans(result: RunResult) -> str:
    if not result.epochs_before:
        return ""
    return (
        f". The run was planned for {', then '.join(map(str, result.epochs_before))} epochs before it was made "
        f"{result.epochs}: the learning rates of each part are those of its own plan."
    )


def readme(result: RunResult, directory: Path, arguments: Mapping[str, Any]) -> str:
    """README.md of the run's folder, which shows the pictures that lie there."""
    from timm_neutreno.hub.card import escaped

    skipped = f" Unreadable images were passed over {count(result.skipped_images, 'time')}."
    title = escaped(heading(result.methods, result.checkpoint, result.data))
    images = count(result.models[result.main]["images"], "val image")
    lines = [
        f"# {title}",
        "",
        *(f"- {sentence}" for sentence in result.sentences),
        "",
        tables.markdown(result.rows),
        "",
        TABLE,
        "",
        *(f"![{title}]({name})\n" for name, (title, _) in pictures(directory).items()),
        f"Checkpoint: {escaped(result.checkpoint)}. Data: {escaped(result.data)}, evaluated on {images}. "
        f"{count(result.epochs, 'epoch')}, seed {result.seed}, {result.device}. Weights of the last epoch"
        f"{_plans(result) or '.'}{skipped if result.skipped_images else ''}",
        "",
        *(f"- {topic}: {words}" for topic, words in facts(arguments)),
        "",
        "To do it again:",
        "",
        "```bash",
        command_line(arguments),
        "```",
        "",
        f"`report.html` shows all this on one page. `arms/` has the checkpoints, logs and weights of each arm; the "
        f"weights here are those of {result.main}:",
        "",
        "```python",
        *result.load_lines(),
        "```",
        "",
        *([UNKNOWN, ""] if result.task == "classification" else []),
    ]
    return "\n".join(lines)
