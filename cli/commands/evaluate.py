"""`neutreno evaluate`: the val figures of a run's model, again, or of any checkpoint."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from ..config import Config
from ..reports import tables
from .options import takes_config


@takes_config(
    "task", "data", "data_dir", "val_split", "num_classes", "ignore_label", "reduce_zero_label", "window_stride",
    "multi_scale", "batch_size", "limit_batches", "workers", "device", "amp",
)  # fmt: skip
def evaluate(
    config: Config,
    model: Annotated[str, typer.Argument(help="A run's folder (or a folder in it), or what adapt --checkpoint takes.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Evaluate a model. On a run's own data and device it gives the run's figures again, to the last digit.

    Options that are not given are the run's own. Exit codes: those of adapt.
    """
    from ..engine.evaluate_model import evaluate_model

    document = evaluate_model(model, config)
    if as_json:
        print(json.dumps(document))
        return
    metrics = tables.metrics_of([document])
    print(tables.plain([tables.header(metrics), tables.row(document["model"], document, metrics)]))
    print(f"data: {document['data']}, {document['images']} images", file=sys.stderr)
