"""`neutreno evaluate`: the val figures of a run's model, again, or of any checkpoint."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from ..config import Config, check
from ..reports import tables
from ..runtime.console import width
from .completion import models
from .options import takes_config

MODEL = typer.Argument(
    help="A run's folder, a folder in it, or anything that adapt --checkpoint takes.", autocompletion=models
)


@takes_config("data", "data_dir", "val_split", "num_classes", "batch_size", "limit_batches", "workers", "device", "amp")
def evaluate(
    config: Config,
    model: Annotated[str, MODEL],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Evaluate a model. On a run's own data and device it gives the run's figures again, to the last digit.

    Options that are not given are those of the run. Exit codes are those of adapt.

    # The model of a run, and its control, on the run's own val images
      neutreno evaluate runs/mine
      neutreno evaluate runs/mine/arms/control
    # A checkpoint on a folder of class folders, or one with val/
      neutreno evaluate deit_tiny --data imagenet/
    """
    check(config)
    from ..engine.evaluate_model import evaluate_model

    document = evaluate_model(model, config)
    if as_json:
        print(json.dumps(document))
        return
    print(tables.plain([tables.HEADER, tables.row(document["model"], document)], width()))
    print(f"data: {document['data']}, {tables.count(document['images'], 'image')}", file=sys.stderr)
