"""`neutreno export`: a model as an ONNX or .pt2 file, checked against the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[
        str, typer.Argument(help="A run's folder, a folder in it, or anything that adapt --checkpoint takes.")
    ],
    onnx: Annotated[Path | None, typer.Option(help="The ONNX file to write; it is checked in onnxruntime.")] = None,
    pt2: Annotated[Path | None, typer.Option(help="The file of torch.export to write, for torch.export.load.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Export a model to ONNX or torch.export, and check that the file gives the model's own answers.

    The exported model takes any number of images at once. The file's metadata say how they must be prepared (mean, std,
    crop, ...). Exit codes are those of adapt.

    # Both kinds of a run's model
      neutreno export runs/mine --onnx model.onnx --pt2 model.pt2
    """
    from ..engine import export as engine

    document = engine.export(model, onnx, pt2, overwrite)
    if as_json:
        print(json.dumps(document))
        return
    batches = ", ".join(map(str, engine.BATCHES))
    for kind in ("onnx", "pt2"):
        if kind in document:
            where = "in onnxruntime" if kind == "onnx" else "after loading it again"
            gap = document[kind]["largest_difference"]
            file = document[kind]["file"]
            print(f"{file}: equal to the model {where} (largest difference {gap:.2g}, batches of {batches})")
