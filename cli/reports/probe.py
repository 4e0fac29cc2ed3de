"""report.html of `neutreno probe`, and the table on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime import files
from . import provenance
from .html import Section, render

if TYPE_CHECKING:
    from torch import nn

    from timm_neutreno.probing import Folder, ProbeResult, Score, Setting

PROBES = {"linear": "linear probe", "knn": "k-NN"}
TOPICS = {"linear": "Linear probe", "knn": "k-NN"}
INTRODUCTION = (
    "The models are frozen: nothing was trained but the probes. A method is put into a model as it is, and its "
    "strength is chosen on val; what is compared on the test images is that choice alone."
)


def write_report(
    result: ProbeResult, output: Path, models: dict[str, nn.Module], folder: Folder, pca: int, ignore_label: int | None
) -> None:
    """results.json, plots and report.html in the folder."""
    from timm_neutreno.probing import methods, plot_blocks, plot_strengths

    result.save(output / "results.json")
    images = ", ".join(f"{number} {part}" for part, number in result.images.items())
    names = ", ".join(dict.fromkeys(row.model for row in result.rows))
    sections = [Section("What can be told", told(result)), *scores(result)]
    for method in methods(result):
        paths = [output / "plots" / f"{method}{suffix}" for suffix in (".png", ".svg")]
        for path in paths:
            plot_strengths(result, path, method)
        sections.append(Section(f"{method}: strength against score", [CURVES], [(paths[1], f"Scores of {method}")]))
    if result.rows[0].by_block:
        plots = []
        for probe, words in PROBES.items():
            for suffix in (".png", ".svg"):
                plot_blocks(result, output / "plots" / f"blocks_{probe}{suffix}", probe)
            plots.append((output / "plots" / f"blocks_{probe}.svg", f"{words} by block"))
        sections.append(Section("Block by block", [BLOCKS], plots))
    if pca:
        plots = pca_plots(result, output, models, folder, pca, ignore_label)
        sections.append(Section("Patch tokens as colours", [COLORS], plots))
    protocol = [(TOPICS.get(topic) or topic.capitalize(), words) for topic, words in result.protocol.items()]
    sections.append(Section("How it was done", [], facts=[*protocol, *provenance.facts()]))
    introduction = [INTRODUCTION, f"Models: {names}. Images: {images}."]
    files.write_text(output / "report.html", render("What frozen features are worth", introduction, sections))


SCORES = (
    "Test scores in per cent; in brackets the 95 % interval of the difference from the model as it is, from a paired "
    "bootstrap over test images. A * marks what is best on val. Similarity: mean cosine similarity of different patch "
    "tokens of the last block. Last column: chosen on val for each setting."
)
CURVES = (
    "Bars are those intervals, drawn around the score of the model as it is plus the difference; filled marks are best "
    "on val. Below: how alike the patch tokens of the last block are. Less alike is not better by itself."
)
BLOCKS = "The same probes on the tokens of every block; only the last block was used to choose and to compare."
COLORS = (
    "The first three principal components of the patch tokens of the last block, over these photos, as red, green and "
    "blue. Components of the other settings are rotated to lie near those of the model as it is."
)


def told(result: ProbeResult) -> list[str]:
    """The sentences, and what they rest on."""
    if not result.verdicts:
        return ["One model as it is: there is nothing to compare."]
    number = len(result.verdicts)
    better = sum(verdict.outcome == "better" for verdict in result.verdicts)
    worse = sum(verdict.outcome == "worse" for verdict in result.verdicts)
    head = (
        f"{number} comparison{'s' if number > 1 else ''}, each with an interval at {100 * result.level:.4g} % so that "
        f"all together hold with 95 %: {better} better, {worse} worse, "
        f"{number - better - worse} that cannot be told apart."
    )
    return [head, *(verdict.sentence for verdict in result.verdicts)]


def scores(result: ProbeResult) -> list[Section]:
    """A table for each probe."""
    return [Section(f"Scores: {words}", [SCORES], table=table) for words, table in tables(result).items()]


def tables(result: ProbeResult) -> dict[str, list[list[str]]]:
    """The probe in words -> a line per setting, header first."""
    several = len({row.model for row in result.rows}) > 1
    found = {}
    for probe, words in PROBES.items():
        lines = [["setting", "val", "test", "difference", "similarity", "ridge strength" if probe == "linear" else "k"]]
        for index, row in enumerate(result.rows):
            score = row.scores[probe]
            best = any(verdict.row == index and verdict.probe == probe for verdict in result.verdicts)
            name = f"{row.model}, {row.label}" if several else row.label
            val, test = f"{score.val:.2f}{'*' if best else ''}", f"{score.test:.2f}"
            lines.append([name, val, test, difference(score), f"{row.similarity:.4f}", f"{score.choice:g}"])
        found[words] = lines
    return found


def difference(score: Score) -> str:
    """A difference with its interval."""
    if score.difference is None:
        return ""
    return f"{score.difference:+.2f} [{score.low:+.2f}, {score.high:+.2f}]"


def pca_plots(
    result: ProbeResult,
    output: Path,
    models: dict[str, nn.Module],
    folder: Folder,
    number: int,
    ignore_label: int | None,
) -> list[tuple[Path, str]]:
    """A picture per model: test photos beside their patch tokens, as it is and under the chosen settings."""
    from timm_neutreno.probing import pictures, plot_pca, sample_photos

    plots = []
    for index, (name, model) in enumerate(models.items()):
        images, photos = sample_photos(folder, model, number, ignore_label)
        for suffix in (".png", ".svg"):
            path = output / "plots" / f"pca_{index + 1}{suffix}"
            plot_pca(photos, pictures(model, shown(result, name), images), path)
        plots.append((output / "plots" / f"pca_{index + 1}.png", f"Photos and patch tokens of {name}"))
    return plots


def shown(result: ProbeResult, model: str) -> list[Setting]:
    """The model as it is, of every method what is best on val for the linear probe, and its largest strengths."""
    from timm_neutreno.probing import REFERENCE, Setting

    rows = [result.rows[verdict.row] for verdict in result.verdicts if verdict.probe == "linear"]
    for method in {row.method: None for row in result.rows if row.method}:
        rows.append(
            max((row for row in result.rows if row.method == method), key=lambda row: sum(row.strengths.values()))
        )
    settings = [REFERENCE]
    for row in rows:
        setting = Setting(row.method, row.strengths, None if row.layers is None else tuple(row.layers))
        if row.model == model and setting not in settings:
            settings.append(setting)
    return settings
