"""`neutreno evaluate`: the val figures of a run's model, again, or of any checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

HEADER = ("model", "fidelity", "images", "top-1", "top-5", "loss", "similarity")


def evaluate(
    model: Annotated[str, typer.Argument(help="A run's folder (or control/ or ema/ in it), or what adapt --checkpoint takes.")],
    data: Annotated[str | None, typer.Option(help="As for adapt. (default: the run's, or the embedded digits)")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Where a torch/, hfds/, wds/ or tfds/ source keeps its files.")] = None,
    val_split: Annotated[str | None, typer.Option(help="As for adapt.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="For a source that does not say.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at once. (default: the run's, or 64)", min=1)] = None,
    limit_batches: Annotated[int | None, typer.Option(help="At most so many batches. (default: as the run)", min=1)] = None,
    workers: Annotated[int | None, typer.Option(help="Data loader processes.", min=0)] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... (default: the run's, or cuda if there is one)")] = None,
    amp: Annotated[bool | None, typer.Option("--amp/--no-amp", help="Mixed precision. (default: as the run)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:  # fmt: skip
    """Evaluate a model. On a run's own data and device it gives the run's figures again, to the last digit.

    Exit codes: those of adapt.
    """
    given = {
        "data": data, "data_dir": data_dir, "num_classes": num_classes, "limit_batches": limit_batches,
        "workers": workers, "device": device, "amp": amp,
    }  # fmt: skip
    if val_split is not None:
        from .adapt import val_options

        given |= val_options(val_split)
    from ..engine.evaluate_model import evaluate_model

    document = evaluate_model(model, {k: v for k, v in given.items() if v is not None}, batch_size)
    if as_json:
        print(json.dumps(document))
        return
    row = (
        document["model"], document["fidelity"], str(document["images"]), f"{document['top1']:.2f}",
        f"{document['top5']:.2f}", f"{document['loss']:.4f}", f"{document['similarity'][-1]:.4f}",
    )  # fmt: skip
    widths = [max(map(len, pair)) for pair in zip(HEADER, row, strict=True)]
    for line in (HEADER, row):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    print(f"data: {document['data']}", file=sys.stderr)


def run_of(folder: Path) -> Path | None:
    """The run that a folder is, or is a part of."""
    return next(
        (path for path in (folder, folder.parent, folder.parent.parent) if (path / "args.yaml").is_file()), None
    )
