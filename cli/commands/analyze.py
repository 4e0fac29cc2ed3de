"""`neutreno analyze`: how much do these models smooth? Measurements side by side, plots, and one report."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import place
from ..data.photos import find_photos, photo_batches
from ..errors import CheckpointError, DataError, OutputError, UsageError
from ..reports import provenance, tables
from ..reports.html import Section, metric_section, render, summary
from ..reports.sections import EXTRAS, Models
from ..reports.tables import count
from ..runtime import files
from ..runtime.console import Console, width
from . import completion

if TYPE_CHECKING:
    from timm_neutreno.smoothing import Smoothing

    from ..engine.checkpoint import Source

GROUPS = ("similarity", "tokens", "heads", "all")
DEFAULT = ("similarity", "spectra")
SMOOTHING = (
    "In a deep Vision Transformer the tokens of an image can grow alike from layer to layer: over-smoothing. The plots "
    "show how far that goes, layer by layer, as the mean over images. Block outputs are the tokens after a block; "
    "attention outputs are what its attention adds to them. Whether smoothing harms is another question: read the "
    "plots beside the accuracy."
)


def analyze(
    models: Annotated[list[str], typer.Argument(help="Models to compare: names in timm, files, or runs' folders, as adapt --checkpoint takes them.", autocompletion=completion.models)],
    data: Annotated[str, typer.Option(help="A folder of images, which is searched with its subfolders; demo for the embedded digits.")],
    output: Annotated[Path, typer.Option(help="Folder for report.html, results.json and the plots.")],
    images: Annotated[int, typer.Option(min=1, help="Number of images to measure on, evenly spread over the folder.", metavar="<int>")] = 1000,
    metrics: Annotated[list[str], typer.Option(help=f"What to measure: {', '.join(EXTRAS)}, the name of a metric, or a group of them: {', '.join(GROUPS)}. Can be repeated, and commas work.", autocompletion=completion.words((*EXTRAS, *GROUPS)))] = list(DEFAULT),  # noqa: B006 - never changed: Typer copies it for every call
    pretrained: Annotated[bool, typer.Option(help="Give models that are named their pretrained weights, or random ones.", metavar="")] = True,
    arch: Annotated[str, typer.Option(help="Name in timm of the architecture of files that do not say it.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of random weights, which are the same for every model.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of images that a model gets at once.", metavar="<int>")] = 25,
    device: Annotated[str, typer.Option(help="Where to compute, such as cpu, cuda or mps. (default: cuda if there is one)", show_default=False)] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier report in the folder.", metavar="")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings.", metavar="")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as one JSON document on stdout.", metavar="")] = False,
) -> None:  # fmt: skip
    """Measure over-smoothing in one or several models, side by side, and write a report that opens from disk.

    # How alike do the tokens of these models become, layer by layer?
      neutreno analyze deit_tiny vit_small_patch14_dinov2 --data photos/ --output smoothing
    # What has a run changed?
      neutreno analyze runs/mine runs/mine/arms/control --data photos/ --output smoothing
    # Everything that can be measured, on a few images
      neutreno analyze runs/mine --data photos/ --images 50 --metrics all --output everything
    """
    console = Console(quiet)
    names, extras = choose(metrics)
    photos = find_photos(data_folder(data), images)
    with prepared_output(output, overwrite):
        loaded = load(models, arch or None, pretrained, seed, device)
        document, sections = run(loaded, photos, names, extras, output, batch_size, console)
    where = "the val split of the demo's handwritten digits" if data == "demo" else data
    weights = "" if pretrained else f" Model names stand for random weights (seed {seed})."
    about = [
        ("Models", f"{', '.join(loaded)}.{weights}"),
        ("Images", f"{count(len(photos), 'image')} from {where}"),
        *provenance.facts(),
    ]
    introduction = [] if names else [SMOOTHING]
    sections.append(Section("How it was done", [], facts=about))
    files.write_text(output / "report.html", render("Token smoothing, layer by layer", introduction, sections))
    files.write_text(output / "results.json", json.dumps(document, indent=1) + "\n")
    if as_json:
        print(json.dumps(document))
    elif not quiet and sections[0].table:
        print(tables.plain(sections[0].table, width()) + "\n")
    console.say(f"report: {output / 'report.html'}")


def choose(asked: Sequence[str]) -> tuple[list[str], list[str]]:
    """The metrics and the extras that names and groups stand for, in the order of the tables.

    Raises:
        UsageError: If a name is unknown, or there is none.
    """
    from timm_neutreno.smoothing import METRICS, SIMILARITIES

    groups = {
        "similarity": SIMILARITIES,
        "tokens": [name for name, metric in METRICS.items() if metric.of in ("block", "attention")],
        "heads": [name for name, metric in METRICS.items() if metric.of in ("heads", "layers")],
        "all": [*METRICS, *EXTRAS],
    }
    words = [word.strip() for part in asked for word in part.split(",") if word.strip()]
    wanted = {name for word in words for name in groups.get(word, [word])}
    known = [*groups, *EXTRAS, *METRICS]
    unknown = sorted(wanted - set(known))
    if unknown or not wanted:
        what = f"there is no {', no '.join(unknown)}" if unknown else "there is nothing to measure"
        near = sorted({other for name in unknown for other in difflib.get_close_matches(name, known, n=3)})
        hint = f" Did you mean: {', '.join(near)}?" if near else ""
        raise UsageError(
            f"--metrics: {what}.{hint} The groups are {', '.join(groups)}; each metric's name stands in the "
            "results.json of --metrics all."
        )
    return [name for name in METRICS if name in wanted], [name for name in EXTRAS if name in wanted]


def data_folder(data: str) -> Path:
    """The folder that `--data` names.

    Raises:
        DataError: If it is the demo's and scikit-learn is missing.
    """
    if data != "demo":
        return place(data)
    from timm_neutreno.demo import demo_data_directory

    try:
        return demo_data_directory() / "val"
    except ModuleNotFoundError as error:
        raise DataError(str(error)) from None


@contextmanager
def prepared_output(output: Path, overwrite: bool) -> Iterator[None]:
    """Make the folder; if what is done inside fails, empty folders that were made for it go again.

    Raises:
        OutputError: If it holds a report and `overwrite` is off, cannot be made, or the disk is full.
    """
    if (place(output) / "results.json").exists() and not overwrite:
        raise OutputError(f"{output} holds a report already; add --overwrite to replace it, or name another --output")
    plots = output / "plots"
    made = [folder for folder in (plots, *plots.parents) if not folder.exists()]
    try:
        files.make_directory(plots)
        yield
    except BaseException as error:
        for folder in made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        with files.writing(output) if getattr(error, "errno", None) in files.FULL else nullcontext():
            raise


def load(texts: Sequence[str], arch: str | None, pretrained: bool, seed: int, device: str) -> Models:
    """Build every model, on the device; models with random weights start from the same seed.

    A `neutreno_*` name is NeuTRENO with its default; a plain name or checkpoint is timm's own function.

    Raises:
        CheckpointError: As `checkpoint.resolve_checkpoint` and `build`.
        UsageError: If a model is named twice.
    """
    import torch

    from timm_neutreno import is_patched, patch
    from timm_neutreno.names import PREFIX

    from ..engine.checkpoint import build

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    models: Models = {}
    for text in texts:
        if parts := _parts_of_segmenter(text):
            models |= {label: model.to(device).eval() for label, model in parts.items()}
            continue
        source = _source(text, arch, pretrained)
        for note in source.notes:
            print(f"{text}: {note}", file=sys.stderr)
        torch.manual_seed(seed)
        model = build(source, pretrained=pretrained or not _is_name(text))
        if text.startswith(PREFIX) and not is_patched(model):
            patch(model)
        label = text if _is_name(text) else label_of(Path(text)) or text
        label = text if label in models else label
        if label in models:
            raise UsageError(f"{text} is named twice; name every model once")
        models[label] = model.to(device).eval()
    return models


def _parts_of_segmenter(text: str) -> Models:
    """Encoder and decoder of a saved Segmenter, as two models; none if it is something else."""
    from timm_neutreno.segmenter import DecoderInPlace

    from ..engine.segmenter import is_segmenter, open_segmenter

    folder = Path(text.removeprefix("local-dir:"))
    if not is_segmenter(folder):
        return {}
    model, label = open_segmenter(text), folder.name or text
    return {f"{label}, encoder": model.encoder, f"{label}, decoder": DecoderInPlace(model)}


def label_of(path: Path) -> str:
    """How to call a file or folder: of a run, RUN/ARM."""
    from ..engine.evaluate_model import run_of
    from ..reports.results import RESULTS

    run = run_of(path) if path.is_dir() else None
    if run is None:
        return path.name
    run = run.absolute()
    seeds = [run.parent.name] if run_of(run.parent) == run.parent else []
    inside = [part for part in path.absolute().relative_to(run).parts if part != "arms"]
    if not inside and (run / RESULTS).is_file():  # what lies in a run's root are the weights of its main arm
        inside = [json.loads((run / RESULTS).read_text(encoding="utf-8"))["main"]]
    return "/".join([*seeds, run.name, *inside])


def _is_name(text: str) -> bool:
    """Whether it is a model's name, not a file, folder or address."""
    import timm

    from timm_neutreno.names import neutreno_name

    return timm.is_model(neutreno_name(_architecture(text)))


def _architecture(name: str) -> str:
    """The timm name without prefix and tag, short names spelled out."""
    from timm_neutreno.names import base_name
    from timm_neutreno.neutreno_vit import ALIASES

    name = base_name(name).split(".")[0]
    return ALIASES.get(name, name)


def _source(text: str, arch: str | None, pretrained: bool) -> Source:
    """What `adapt` makes of it; of a name without weights only the architecture."""
    from ..engine.checkpoint import Source, resolve_checkpoint

    return resolve_checkpoint(text, arch) if pretrained or not _is_name(text) else Source(text, _architecture(text))


def run(
    models: Models,
    photos: list[Path],
    names: list[str],
    extras: list[str],
    output: Path,
    batch_size: int,
    console: Console,
) -> tuple[dict[str, Any], list[Section]]:
    """Measure and plot everything: what goes into results.json, and the parts of the report.

    Raises:
        CheckpointError: If a measurement has no answer for a model.
    """
    from timm_neutreno.smoothing import measure, plot_results

    results: list[Smoothing] = []
    sections: list[Section] = []
    for label, model in models.items() if names else ():
        console.say(f"{label}: {count(len(photos), 'image')}")
        batches = photo_batches(photos, model, batch_size)
        tracked = console.track(batches, label, total=-(-len(photos) // batch_size))
        try:
            results.append(measure(model, tracked, names, name=label))
        except ValueError as error:
            raise CheckpointError(f"{label}: {error}") from error
    for metric in names:
        for suffix in (".png", ".svg"):
            plot_results(results, output / "plots" / f"{metric}{suffix}", metric)
        sections += [] if sections else [summary(results, SMOOTHING)]
        sections.append(metric_section(results, metric, output / "plots" / f"{metric}.svg"))
    document: dict[str, Any] = {"images": len(photos), "results": [asdict(result) for result in results]}
    for extra in extras:
        console.say(f"{extra} ...")
        first = {label: next(photo_batches(photos[:1], model)) for label, model in models.items()}
        try:
            document[extra], section = EXTRAS[extra](models, first, output / "plots")
        except ValueError as error:
            raise CheckpointError(f"{extra}: {error}") from error
        sections.append(section)
    return document, sections
