"""`neutreno evaluate`: the val figures of a run's model, again, or of any checkpoint; class by class, and corrupted."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ..config import OF_EVALUATE, Config, check
from ..errors import UsageError
from ..reports import tables
from ..runtime.console import Console, width
from .analyze import prepared_output
from .completion import models
from .options import takes_config

OUTPUT = "Folder for confusion.png, the tables and results.json. (default: runs/TIME-evaluate)"
MODEL = typer.Argument(
    help="A run's folder, a folder in it, or anything that adapt --checkpoint takes.", autocompletion=models
)


@takes_config(*OF_EVALUATE)
def evaluate(
    config: Config,
    model: Annotated[str, MODEL],
    per_class: Annotated[bool, typer.Option("--per-class", help="Also the accuracy of each class, and which classes are taken for which.")] = False,
    robustness: Annotated[bool, typer.Option("--robustness", help="Also the accuracy on corrupted and on attacked images (FGSM, PGD).")] = False,
    output: Annotated[Path | None, typer.Option(help=OUTPUT)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier report in the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:  # fmt: skip
    """Evaluate a model. On a run's own data and device it gives the run's figures again, to the last digit.

    With --per-class or --robustness a run's folder stands for all its arms, which are compared in pairs with the
    control. Options that are not given are those of the run. Exit codes are those of adapt.

    # The model of a run, and its control, on the run's own val images
      neutreno evaluate runs/mine
      neutreno evaluate runs/mine/arms/control
    # A checkpoint on a folder of class folders, or one with val/
      neutreno evaluate deit_tiny --data imagenet/
    """
    check(config)
    document, text = evaluated(model, config, Console(), per_class, robustness, output, overwrite)
    if as_json:
        print(json.dumps(document))
        return
    print(text)
    images = document["images"] if "images" in document else next(iter(document["models"].values()))["images"]
    print(f"data: {document['data']}, {tables.count(images, 'image')}", file=sys.stderr)


def evaluated(
    model: str, config: Config, console: Console, per_class: bool, robustness: bool, output: Path | None, overwrite: bool
) -> tuple[dict, str]:  # fmt: skip
    """All that the command does but print: the document, and the text to print.

    Args:
        model: As the command's, like all that follow.
        config: What was given.
        console: Is told what happens.
        per_class: As the command's.
        robustness: Likewise.
        output: Likewise.
        overwrite: Likewise.

    Raises:
        CliError: As the command.
    """
    from ..engine.evaluate_model import evaluate_model
    from ..engine.examine import examine, printed

    if not (per_class or robustness):
        if output:
            raise UsageError("--output is for --per-class and --robustness, which are missing.")
        document = evaluate_model(model, config, console)
        metrics = tables.metrics_of([document])
        return document, tables.plain(
            [tables.header(metrics), tables.row(document["model"], document, metrics)], width()
        )
    folder = output or Path("runs") / time.strftime("%Y%m%d-%H%M%S-evaluate")
    with prepared_output(folder, overwrite):
        document = examine(model, config, console, folder, per_class=per_class, robust=robustness)
    parts = [tables.plain(tables.cells(document["models"], False))]
    parts += [f"{title}\n\n{tables.plain(rows)}" for title, rows in printed(document)]
    parts += [f"{arm} most often: {words}." for arm, words in document.get("mistaken", {}).items() if words]
    return document, "\n\n".join([*parts, "\n".join(document["verdict"]), f"Tables and plots: {folder}"])
