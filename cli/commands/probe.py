"""`neutreno probe`: what are frozen features worth, as they are and with a method but without training?"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import place
from ..errors import CheckpointError, DataError, UsageError
from ..reports.tables import plain
from ..runtime.console import Console, fold, width
from . import completion
from .analyze import prepared_output

if TYPE_CHECKING:
    from torch import nn

    from timm_neutreno.probing import Folder, Measured, Options, ProbeResult, Setting

STRENGTHS = "0.02,0.05,0.1,0.2"
NEIGHBORS = "1,3,5,10,20"  # those of probing/neighbors.py, which imports torch


def probe(
    models: Annotated[list[str], typer.Argument(help="Models to probe: names in timm, files, or runs' folders, as adapt --checkpoint takes them.", autocompletion=completion.models)],
    data: Annotated[str, typer.Option(help="A folder with class folders in train/, val/ and test/ (or some of them); for segmentation one with images/ and annotations/; demo for the embedded digits.")],
    method: Annotated[list[str], typer.Option(help="Method to put into the models, such as neutreno. Can be repeated, and commas work.", autocompletion=completion.methods)] = ["neutreno"],  # noqa: B006 - never changed: Typer copies it for every call
    fidelity: Annotated[str, typer.Option(help="Strengths of neutreno to try, between commas. The model as it is, strength 0, is always there.")] = STRENGTHS,
    strength: Annotated[list[str] | None, typer.Option(help=f"Strengths of another method to try, such as gfsa=0.1,0.2. Can be repeated. (default: {STRENGTHS})")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Blocks that get the method: all, -4: (the last four), 2:6, or 0,3. Can be repeated. (default: all)")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for report.html, results.json and the plots. (default: runs/TIME-probe)")] = None,
    blocks: Annotated[bool, typer.Option("--blocks", help="Probe the tokens of every block, not only those of the last.")] = False,
    pool: Annotated[str, typer.Option(help="What stands for an image: class, the class token if there is one, or mean, the mean of the patch tokens.", autocompletion=completion.words(("class", "mean")))] = "class",
    neighbors: Annotated[str, typer.Option(help="Numbers of neighbours of k-NN to try, between commas; the val images choose.")] = NEIGHBORS,
    pca: Annotated[int, typer.Option(min=0, help="Number of photos whose patch tokens the report shows as colours.")] = 0,
    ignore_label: Annotated[int | None, typer.Option(help="Label in the masks that does not count, such as 11 in CamVid or 0 in ADE20K.")] = None,
    num_labels: Annotated[int | None, typer.Option(min=1, help="Number of labels in the masks, counted from 0. (default: what the train masks have)")] = None,
    img_size: Annotated[str, typer.Option(help="Size of the images in pixels, such as 224, or 196x266 for height x width. (default: the model's)")] = "",
    images: Annotated[int | None, typer.Option(min=1, help="Use at most this many images of each part.")] = None,
    arch: Annotated[str, typer.Option(help="Name in timm of the architecture of files that do not say it.")] = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Number of images that a model gets at once.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Number of processes that load images.")] = 0,
    device: Annotated[str, typer.Option(help="Where to compute, such as cpu, cuda or mps. (default: cuda if there is one)", show_default=False)] = "",
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap, and of the choice of train patches that k-NN compares with.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier report in the folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the result alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as one JSON document on stdout, in place of the table.")] = False,
) -> None:  # fmt: skip
    """Probe frozen features with a linear probe and k-NN: each model as it is, and with methods at several strengths.

    Nothing but the probes is trained. What is best on val is compared with the model as it is on the test images,
    with an interval. Exit codes are those of adapt.

    # Does a little of NeuTRENO help the features of this model? A first try
      neutreno probe deit_tiny --data photos/
    # Segmentation: images/ and annotations/, two methods in the last four blocks
      neutreno probe vit_small_patch14_dinov2 --data camvid/ --ignore-label 11 --method neutreno,gfsa --layers=-4:
    # Block by block, with pictures of the patch tokens
      neutreno probe deit_tiny --data photos/ --blocks --pca 4 --output probed
    """
    size = parse_size(img_size)
    counts = parse_numbers("--neighbors", neighbors, int)
    strengths = {"fidelity": parse_numbers("--fidelity", fidelity, float), **parse_strengths(strength or [])}
    result, _, lines = measure_models(
        models, data, method=method, strengths=strengths, layers=layers or ["all"], output=output, blocks=blocks,
        pool=pool, counts=counts, pca=pca, ignore_label=ignore_label, num_labels=num_labels, size=size, images=images,
        arch=arch or None, batch_size=batch_size, workers=workers, device=device, seed=seed, overwrite=overwrite,
        console=Console(quiet),
    )  # fmt: skip
    if as_json:
        print(json.dumps(result.to_dict()))
        return
    for words, rows in lines.items():
        print(f"{words}\n{plain(rows, width())}\n")
    for verdict in result.verdicts:
        print(fold(verdict.sentence, width()))


def measure_models(
    models: Sequence[str], data: str, *, method: Sequence[str], strengths: dict[str, list[float]],
    layers: Sequence[str], output: Path | None, blocks: bool, pool: str, counts: list[int], pca: int,
    ignore_label: int | None, num_labels: int | None, size: tuple[int, int] | None, images: int | None,
    arch: str | None, batch_size: int, workers: int, device: str, seed: int, overwrite: bool, console: Console,
) -> tuple[ProbeResult, Path, dict[str, list[list[str]]]]:  # fmt: skip
    """Probe and write the report: all that the command does but print.

    Args:
        models: As the command's, like all that follow; those that are not text there are parsed.
        data: Likewise.
        method: Likewise.
        strengths: Strengths to try, by name.
        layers: As the command's.
        output: Folder; None for a new one in runs/.
        blocks: As the command's.
        pool: Likewise.
        counts: Numbers of neighbours.
        pca: As the command's.
        ignore_label: Likewise.
        num_labels: Likewise.
        size: (height, width) in pixels; None for the model's.
        images: As the command's.
        arch: Likewise, or None.
        batch_size: As the command's.
        workers: Likewise.
        device: Likewise.
        seed: Likewise.
        overwrite: Likewise.
        console: Is told what happens.

    Returns:
        The result, the folder of the report, and the tables by title.

    Raises:
        CliError: As the command.
    """
    if pool not in ("class", "mean"):
        raise UsageError(f"--pool {pool}: choose class or mean")

    from timm_neutreno.probing import Options, compare, describe

    with library_errors():
        settings = make_settings(method, strengths, layers)
        folder = open_data(data, ignore_label, num_labels, images)
    loaded = load(models, arch, size, device)
    output = output or Path("runs") / time.strftime("%Y%m%d-%H%M%S-probe")
    options = Options(pool=pool, blocks=blocks, neighbors=tuple(counts), seed=seed)
    from ..reports.probe import tables, write_report

    with prepared_output(output, overwrite), library_errors():
        measured, size = run(loaded, folder, settings, options, batch_size, workers, ignore_label, console)
        where = f"{'demo (handwritten digits)' if data == 'demo' else data}: {folder.about}"
        protocol = describe(folder.task, options, size, where)
        result = compare(measured, folder.task, protocol, seed)
        write_report(result, output, loaded, folder, pca, ignore_label)
    console.say(f"report: {output / 'report.html'}")
    return result, output, tables(result)


@contextmanager
def library_errors() -> Iterator[None]:
    """What the library says of data, models and settings, with its exit code."""
    from timm_neutreno import UnsupportedModelError, probing

    try:
        yield
    except probing.DataError as error:
        raise DataError(str(error)) from error
    except (probing.FeatureError, UnsupportedModelError) as error:
        raise CheckpointError(str(error)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def parse_numbers(option: str, text: str, kind: type) -> list:
    """Numbers between commas.

    Raises:
        UsageError: If there are none, or one is no number, not finite or, as a count, below 1.
    """
    try:
        numbers = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{option} {text}: expected numbers between commas") from None
    if not numbers or any(number != number or abs(number) == float("inf") for number in numbers):
        raise UsageError(f"{option} {text}: expected finite numbers between commas")
    if kind is int and min(numbers) < 1:
        raise UsageError(f"{option} {text}: expected numbers from 1 on")
    return list(dict.fromkeys(numbers))


def parse_strengths(texts: Sequence[str]) -> dict[str, list[float]]:
    """NAME=VALUES as a dict.

    Raises:
        UsageError: If one has another form.
    """
    found = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals:
            raise UsageError(f"--strength {text}: expected NAME=VALUES, such as gfsa=0.1,0.2")
        found[name.strip()] = parse_numbers(f"--strength {name}=", values, float)
    return found


def parse_layers(text: str) -> tuple[int, ...] | None:
    """Block indices from all, -4:, 2:6 or 0,3; None for all.

    Raises:
        UsageError: If it has another form.
    """
    if text == "all":
        return None
    try:
        if ":" not in text:
            return tuple(int(part) for part in text.split(","))
        start, end = text.split(":")
        found = tuple(range(int(start or 0), int(end or (0 if int(start or 0) < 0 else "x"))))
    except ValueError:
        found = ()
    if not found:
        raise UsageError(f"--layers {text}: expected all, -4: (the last four), 2:6, or 0,3")
    return found


def parse_size(text: str) -> tuple[int, int] | None:
    """(height, width) from 224 or 196x266.

    Raises:
        UsageError: If it has another form.
    """
    if not text:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) for part in parts):
        raise UsageError(f"--img-size {text}: expected pixels, such as 224 or 196x266 (height x width)")
    return int(parts[0]), int(parts[-1])


def make_settings(methods: Sequence[str], strengths: dict[str, list[float]], layers: Sequence[str]) -> list[Setting]:
    """Every method in every choice of blocks at every combination of its strengths.

    Raises:
        UsageError: If a strength is none of the methods'.
    """
    from timm_neutreno.probing import grid, strength_names

    names = [name.strip() for text in methods for name in text.split(",") if name.strip()]
    known = {name: strength_names(name) for name in names}
    if strange := set(strengths) - {"fidelity"} - {each for every in known.values() for each in every}:
        raise UsageError(
            f"--strength {sorted(strange)[0]}: no strength of {', '.join(names)}; these have: "
            f"{', '.join(each for every in known.values() for each in every) or 'none'}"
        )
    default = parse_numbers("", STRENGTHS, float)
    return [
        setting
        for name in names
        for where in layers
        for setting in grid(name, {each: strengths.get(each, default) for each in known[name]}, parse_layers(where))
    ]


def open_data(data: str, ignore_label: int | None, num_labels: int | None, images: int | None) -> Folder:
    """The folder that `--data` names.

    Raises:
        DataError: If it is the demo's and scikit-learn is missing, or the data cannot be probed.
    """
    from timm_neutreno.probing import open_folder

    path = str(place(data))
    if data == "demo":
        from timm_neutreno.demo import demo_data_directory

        try:
            path = str(demo_data_directory())
        except (ModuleNotFoundError, RuntimeError) as error:
            raise DataError(str(error)) from None
    return open_folder(path, ignore_label=ignore_label, num_labels=num_labels, limit=images)


def load(texts: Sequence[str], arch: str | None, size: tuple[int, int] | None, device: str) -> dict[str, nn.Module]:
    """Build every model as its checkpoint has it, on the device; a plain one is timm's own.

    Raises:
        CheckpointError: As `checkpoint.resolve_checkpoint` and `build`.
        UsageError: If a model is named twice, or its patches do not cover images of the size.
    """
    import torch

    from ..engine.checkpoint import build, resolve_checkpoint

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if twice := [text for text in texts if list(texts).count(text) > 1]:
        raise UsageError(f"{twice[0]} is named twice; name every model once")
    models: dict[str, Any] = {}
    for text in texts:
        source = resolve_checkpoint(text, arch, {"img_size": size} if size else None)
        name = Path(text).name or text
        name = text if name in models else name
        models[name] = build(source).to(device).eval()
    return models


def run(
    models: dict[str, nn.Module], folder: Folder, settings: list[Setting], options: Options, batch_size: int,
    workers: int, ignore_label: int | None, console: Console,
) -> tuple[list[Measured], tuple[int, int]]:  # fmt: skip
    """Measure every model as it is and under every setting; also the size of the images in pixels."""
    from timm_neutreno.probing import REFERENCE, Splits, check_settings, loaders, measure

    measured, size = [], (0, 0)
    for model in models.values():
        check_settings(model, settings)
    for name, model in models.items():
        splits, size = loaders(folder, model, batch_size=batch_size, workers=workers, ignore_label=ignore_label)
        tracked = (Tracked(batches, name, console) for batches in (splits.train, splits.val, splits.test))
        splits = Splits(splits.task, splits.num_classes, *tracked)
        for setting in (REFERENCE, *settings):
            console.say(f"{name}, {setting.label}")
            measured.append(measure(model, setting, splits, options, name))
    return measured, size


class Tracked:
    """Batches that show a bar each time they are read."""

    def __init__(self, batches: Any, title: str, console: Console):
        self.batches, self.title, self.console = batches, title, console

    def __iter__(self) -> Iterator[Any]:
        return self.console.track(self.batches, self.title, total=len(self.batches))
