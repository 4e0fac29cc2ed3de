"""`neutreno compare`: runs, or any models, on the same val images, in pairs with the first."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ..config import OF_EVALUATE, OPTIONS, Config, check
from ..reports.tables import count
from ..runtime.console import Console, fold, width
from .options import takes_config

NAMES = "Runs, folders in a run (RUN/arms/control), or checkpoints; the others are compared with the first."


@takes_config(*(name for name in OF_EVALUATE if OPTIONS[name].task != "segmentation" and name != "task"))
def compare(
    config: Config,
    models: Annotated[list[str], typer.Argument(help=NAMES, metavar="RUN RUN...")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Compare models on the same val images: the figures of each, and the paired differences from the first.

    Options that are not given are each run's own. Exit codes are those of adapt.

    # Is one run better than another?
      neutreno compare runs/first runs/second
    # A run's model, its control and the checkpoint that it came from
      neutreno compare runs/mine/arms/control runs/mine deit_tiny
    """
    check(config)
    from ..engine.compare import compare as compared
    from ..reports import tables

    document = compared(models, config, Console())
    if as_json:
        print(json.dumps(document))
        return
    metrics = tables.metrics_of(document["models"].values())
    rows = [tables.row(name, found, metrics) for name, found in document["models"].items()]
    print(tables.plain([tables.header(metrics), *rows], width()))
    print()
    for name, pair in document["differences"].items():
        print(fold(sentence(name, models[0], pair, len(document["differences"])), width()))


def sentence(name: str, first: str, pair: dict[str, Any], comparisons: int) -> str:
    """What one pair shows."""
    worse, better = pair["high"] < 0, pair["low"] > 0
    what = "Better" if better else "Worse" if worse else "No difference shown"
    many = f", widened for {comparisons} comparisons" if comparisons > 1 else ""
    return (
        f"{what}: {name} against {first}: {pair['difference']:+.2f} points of top-1, 95 % interval {pair['low']:+.2f} "
        f"to {pair['high']:+.2f} (over images{many}). {name} alone recognises {count(pair['won'], 'image')}, "
        f"{first} alone {pair['lost']}."
    )
