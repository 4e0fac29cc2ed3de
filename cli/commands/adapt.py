"""`neutreno adapt`: what it starts, and what it prints. Its options are in config.py, the run is engine/run.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..config import RUN, Config, check
from ..runtime.console import Console
from ..runtime.loggers import check as check_loggers
from .options import read_file, show_all, takes_config


def show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"timm-neutreno {version('timm-neutreno')}")
        raise typer.Exit


FILE = typer.Option(
    "--config",
    help="A YAML file of options, such as a run's args.yaml. Options given here, or as NEUTRENO_OPTION, go before it.",
    rich_help_panel=RUN, envvar="NEUTRENO_CONFIG", show_envvar=False, callback=read_file, is_eager=True, hidden=True,
)  # fmt: skip
VERSION = typer.Option(
    "--version", help="Print the version.", rich_help_panel=RUN, callback=show_version, is_eager=True, hidden=True,
    allow_from_autoenv=False,
)  # fmt: skip
HELP_ALL = typer.Option(
    "--help-all", help="Show every option.", callback=show_all, is_eager=True, allow_from_autoenv=False
)


@takes_config()
def adapt(
    config: Config, config_path: Annotated[str | None, FILE] = None, version: Annotated[bool, VERSION] = False,
    help_all: Annotated[bool, HELP_ALL] = False,
) -> None:  # fmt: skip
    """Fine-tune a pretrained checkpoint into a NeuTRENO model, and compare it with a control.

    # A first run with the embedded model and digits: some minutes on a CPU
      neutreno adapt
    # Your own images: a folder of class folders, or one with train/ and val/
      neutreno adapt --checkpoint deit_tiny --data photos/
    # What would it take? A few measured steps; nothing is written
      neutreno adapt --checkpoint deit_tiny --data photos/ --dry-run
    # Two methods and a control, three seeds each, with an interval
      neutreno adapt --checkpoint deit_tiny --data photos/ --method neutreno --method gfsa --seeds 3
    # Go on with a run that was stopped
      neutreno adapt --resume runs/20260101-120000-neutreno-deit_tiny

    Exit codes: 0 done, 2 usage, 3 data, 4 checkpoint or model, 5 Hub,
    6 output cannot be written, 7 training failed, 130 interrupted, 1 other.
    """
    console = Console(config.quiet or int(os.environ.get("RANK", 0)) > 0)
    with console.waiting("loading torch and timm"):
        from ..engine import resume
        from ..runtime import processes

    config = resume.find_run(config)
    check(config)
    check_loggers(config.log)
    if config.gpus and not processes.in_worker():
        count = processes.count_gpus(config.gpus, config.device)
        if count > 1:
            sys.exit(processes.launch(count, sys.argv))
    with console.waiting("loading torch and timm"):
        from ..engine.run import run

    document, text = run(config)
    if processes.rank():
        return
    print(json.dumps(document) if config.json else text)
    if config.push_to_hub and not config.dry_run:  # after everything is saved and printed: a failed push costs nothing
        from ..engine import hub

        address = hub.push(Path(document["output"]), hub.target(config), quiet=config.quiet)
        print(f"pushed to {address}", file=sys.stderr if config.json or config.quiet else sys.stdout)
