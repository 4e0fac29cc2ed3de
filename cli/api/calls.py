"""`timm_neutreno.adapt`, `.evaluate` and `.probe`: the commands of the same names, called from Python.

They print nothing unless `quiet=False` is passed; a notebook shows a bar, which `quiet=True` takes away. They never
read sys.argv or NEUTRENO_<OPTION>, and leave random numbers, threads and signal handlers of the process as they were.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import OF_EVALUATE, Config, check
from ..errors import UsageError
from ..reports import seeds, tables
from ..reports.verdict import CONTROL
from ..runtime import processes
from ..runtime.console import Console
from ..runtime.loggers import check as check_loggers
from ..runtime.undisturbed import undisturbed
from .arguments import takes_options, to_config
from .result import Result

if TYPE_CHECKING:
    from torch import nn


@takes_options()
def adapt(**options: Any) -> Result:
    """Fine-tune a pretrained checkpoint into a NeuTRENO model, and compare it with a control: `neutreno adapt`.

        result = timm_neutreno.adapt(checkpoint="deit_tiny", data="path/to/images", epochs=5)
        print(result)  # the table and what it shows
        model = result.model()

    Returns:
        Rows "checkpoint", "neutreno/start", "control", "neutreno"; `dry_run=True` gives a plan, which has no rows.

    Raises:
        CliError: One of the kinds in `timm_neutreno_cli.errors`, with the sentence that the command prints: UsageError,
            DataError, CheckpointError, HubError, OutputError, TrainingError, or Interrupted after Ctrl-C (what was done
            is saved, and `adapt(resume=FOLDER)` goes on).
    """
    config = to_config(options, adapt)
    if int(processes.environment(os.environ).get("WORLD_SIZE", 1)) > 1:
        raise UsageError("adapt() starts its own processes, with gpus=N. Under torchrun or srun start neutreno-adapt.")
    with undisturbed():
        from ..engine import hub, resume

        config = resume.find_run(config)
        check(config)
        check_loggers(config.log)
        count = processes.count_gpus(config.gpus, config.device) if config.gpus else 1
        if count > 1:
            return _adapted(*_in_processes(config, count), config)
        from ..engine.run import run

        document, text = run(config)
        if config.push_to_hub and not config.dry_run:
            address = hub.push(Path(document["output"]), hub.target(config), quiet=config.quiet)
            document = {**document, "pushed_to": address}
    return _adapted(document, text, config)


def _in_processes(config: Config, count: int) -> tuple[dict[str, Any], str]:
    """Run the command with the same options in several processes; what it prints comes back."""
    from ..reports.results import RunResult

    given = {name: getattr(config, name) for name in config.given - {"gpus", "quiet"}}
    printed = processes.launch_with({**given, "json": True, "quiet": config.quiet}, count, echo=not config.quiet)
    document = json.loads(printed.splitlines()[-1])
    finished = RunResult.read(Path(document["output"])) if "seed" in document else None
    return document, finished.text() if finished else seeds.text(document) if "seeds" in document else printed


def _adapted(document: dict[str, Any], text: str, config: Config) -> Result:
    if "models" not in document:  # a plan
        return Result({}, (), {}, document, text)
    folder = Path(document["output"]).absolute()  # the models are there, wherever the process goes
    several = "seeds" in document
    runs = {f"seed-{seed}/": folder / f"seed-{seed}" for seed in document["seeds"]} if several else {"": folder}
    trained = [key for key in document["models"] if tables.is_trained(key)]
    main = document.get("main") or next((key for key in trained if key != CONTROL), CONTROL)
    keys = sorted(trained, key=lambda key: key != main)
    saved = {name + key: place / "arms" / key for name, place in runs.items() for key in keys}
    paths = {"output": folder, **{path.name: path for path in sorted(folder.iterdir()) if path.is_file()}}
    models = {name: partial(_load, str(place)) for name, place in saved.items()}
    models[tables.CHECKPOINT] = partial(_load, config.checkpoint, config.arch, config.model_kwargs, config.weights)
    cells = seeds.cells(document) if several else tables.cells(document["models"], document["new_head"])
    return Result(document["models"], document["verdict"], {**paths, **saved}, document, text, cells, models)


def _load(checkpoint: str, *options: Any) -> nn.Module:
    from ..engine.checkpoint import build, resolve_checkpoint

    return build(resolve_checkpoint(checkpoint, *options))


@takes_options(*OF_EVALUATE, "quiet")
def evaluate(
    model: str | Path, *, per_class: bool = False, robustness: bool = False, output: str | Path | None = None,
    overwrite: bool = False, **options: Any,
) -> Result:  # fmt: skip
    """The val figures of a run's model, again, or of any checkpoint: `neutreno evaluate`.

    On a run's own data and device it gives the run's figures again, to the last digit. Options that are not given are
    the run's own. With `per_class` or `robustness` a run's folder stands for all its arms.

    Args:
        model: A run's folder (or a folder in it), or what adapt's `checkpoint` takes.
        per_class: Accuracy of each class, a picture of who takes what for what, and pairs with the control.
        robustness: Also corrupted and attacked images.
        output: Folder for what these two write; None for runs/<time>-evaluate.
        overwrite: Replace an earlier report in the folder.

    Raises:
        CliError: As `adapt`.
    """
    from ..commands import evaluate as command

    config, (name,) = to_config(options, evaluate), _names("model", [model])
    console = Console(config.quiet, bars="quiet" not in config.given or not config.quiet)
    folder = None if output is None else Path(output)
    with undisturbed():
        document, text = command.evaluated(name, config, console, per_class, robustness, folder, overwrite)
    if "models" not in document:
        rows = {name: {key: value for key, value in document.items() if key not in ("model", "data")}}
        metrics = tables.metrics_of([document])
        cells = [tables.header(metrics), tables.row(name, document, metrics)]
        loader = partial(_load, name, config.arch, config.model_kwargs, config.weights)
        return Result(rows, (), {}, document, text, cells, {name: loader})
    folder = Path(document["output"])
    paths = {"output": folder, **{path.name: path for path in sorted(folder.iterdir()) if path.is_file()}}
    places = {arm: Path(name) / "arms" / arm for arm in document["models"]}
    models = {arm: partial(_load, str(place) if place.is_dir() else name) for arm, place in places.items()}
    cells = tables.cells(document["models"], False)
    return Result(document["models"], document["verdict"], paths, document, text, cells, models)


def probe(
    models: str | Sequence[str], data: str | Path = "demo", *,
    method: str | Sequence[str] = "neutreno", fidelity: float | Sequence[float] | None = None,
    strength: dict[str, Sequence[float]] | None = None, layers: str | Sequence[str] = "all",
    output: str | Path | None = None, blocks: bool = False, pool: str = "class",
    neighbors: Sequence[int] | None = None, pca: int = 0, ignore_label: int | None = None,
    num_labels: int | None = None, img_size: int | tuple[int, int] | None = None, images: int | None = None,
    arch: str | None = None, batch_size: int = 16, workers: int = 0, device: str | None = None, seed: int = 0,
    overwrite: bool = False, quiet: bool | None = None,
) -> Result:  # fmt: skip
    """What frozen features are worth, as they are and with methods but without training: `neutreno probe`.

        result = timm_neutreno.probe("deit_tiny", "path/to/images", fidelity=[0.02, 0.05])
        print(*result.verdict, sep="\\n")

    Loaders and models of your own go to `timm_neutreno.probing.probe`.

    Args:
        models: One or several of what adapt's `checkpoint` takes, or run folders.
        data: Folder with class folders in train/, val/, test/, or images/ and annotations/; "demo" for the digits.
        method: Methods to try.
        fidelity: Strengths of neutreno to try; None for those of the command.
        strength: Strengths of other methods by name, such as {"gfsa": [0.1, 0.2]}.
        layers: Blocks that get the method, as on the command line: "all", "-4:", "2:6", "0,3"; or several of these.
        output: Folder for report.html, results.json and plots; None for runs/<time>-probe.
        blocks: Probe the tokens of every block.
        pool: "class" or "mean": what stands for an image.
        neighbors: Numbers of neighbours for k-NN to try; None for those of the command.
        pca: Show the patch tokens of so many photos as colours.
        ignore_label: Label in the masks that does not count.
        num_labels: Labels in the masks are 0 to this minus 1; None looks at all train masks.
        img_size: Pixels: one number, or (height, width); None for the model's.
        images: At most so many of each part; None for all.
        arch: timm name, for files that do not say what their weights are for.
        batch_size: Images at once.
        workers: Data loader processes.
        device: Such as "cpu" or "cuda"; None for a GPU if there is one.
        seed: Of the train patches that k-NN compares with, and of the bootstrap.
        overwrite: Replace an earlier report in the folder.
        quiet: False says what happens; True takes away a notebook's bar too.

    Raises:
        CliError: As `adapt`.
    """
    from ..commands import probe as command

    names = _names("models", models)
    given = {"fidelity": fidelity if fidelity is not None else command.STRENGTHS, **(strength or {})}
    sizes = (img_size,) if isinstance(img_size, int) else img_size or ()
    with undisturbed():
        result, folder, lines = command.measure_models(
            names, str(data),
            method=[method] if isinstance(method, str) else list(method),
            strengths={name: command.parse_numbers(name, _joined(values), float) for name, values in given.items()},
            layers=[layers] if isinstance(layers, str) else list(layers),
            output=None if output is None else Path(output), blocks=blocks, pool=pool,
            counts=command.parse_numbers("neighbors", _joined(neighbors or command.NEIGHBORS), int), pca=pca,
            ignore_label=ignore_label,
            num_labels=num_labels, size=command.parse_size("x".join(map(str, sizes))), images=images, arch=arch,
            batch_size=batch_size, workers=workers, device=device or "", seed=seed, overwrite=overwrite,
            console=Console(quiet is not False, bars=quiet is not True),
        )  # fmt: skip
    named = {f"{row.model}, {row.label}": row for row in result.rows}
    paths = {"output": folder, "results.json": folder / "results.json", "report.html": folder / "report.html"}
    loaders = {Path(name).name or name: partial(_load, name, arch) for name in names}
    verdict = [each.sentence for each in result.verdicts]
    table = [row for rows in lines.values() for row in rows]
    text = "\n\n".join([*(f"{words}\n{tables.plain(rows)}" for words, rows in lines.items()), "\n".join(verdict)])
    return Result(named, verdict, paths, result.to_dict(), text, table, loaders)


def _names(argument: str, models: Any) -> list[str]:
    """What models are called, one or several, as the command line has them.

    Raises:
        UsageError: If they are something else, such as a model itself.
    """
    found = [models] if isinstance(models, str | Path) else list(models) if isinstance(models, Sequence) else [models]
    if wrong := [model for model in found if not isinstance(model, str | Path)]:
        raise UsageError(f"{argument} takes a name, a file or a folder, got {type(wrong[0]).__name__}.")
    return [str(model) for model in found]


def _joined(values: Any) -> str:
    """Numbers as the command line has them."""
    return (
        values if isinstance(values, str) else ",".join(map(str, values if isinstance(values, Sequence) else [values]))
    )
