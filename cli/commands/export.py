"""`neutreno export`: a model as an ONNX or .pt2 file, checked against the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[str, typer.Argument(help="A run's folder (or a folder in it), or what adapt --checkpoint takes.")],
    onnx: Annotated[Path | None, typer.Option(help="ONNX file to write, checked in onnxruntime.")] = None,
    pt2: Annotated[Path | None, typer.Option(help="File of torch.export to write, for torch.export.load.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Export a model, for batches of any size. A file is put in its place after it gave the model's own answers.

    The file says how images must be prepared (mean, std, crop, ...), in its metadata. Exit codes: those of adapt.
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
