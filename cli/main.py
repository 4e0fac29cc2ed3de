"""The commands, and the one place where errors become a sentence and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from .commands.adapt import adapt, show_version
from .commands.analyze import analyze
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.models import models
from .commands.probe import probe
from .commands.push import push
from .errors import DEAD_WORKER, CliError, one_line
from .runtime import processes

Version = Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")]


def options(version: Version = False) -> None:
    """NeuTRENO attention for any pretrained timm Vision Transformer."""


SETTINGS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, context_settings=SETTINGS)
app.callback()(options)
app.command()(adapt)
app.command()(evaluate)
app.command()(export)
app.command()(analyze)
app.command()(models)
app.command()(probe)
app.command()(push)

adapt_app = typer.Typer(pretty_exceptions_enable=False, context_settings=SETTINGS)
adapt_app.command()(adapt)


def run(commands: typer.Typer) -> None:
    """Run a command line. NEUTRENO_DEBUG=1 shows the traceback behind an error."""
    try:
        commands()
    except CliError as error:
        if os.environ.get("NEUTRENO_DEBUG"):
            raise
        # an interruption comes to all, and the first one saves
        if processes.rank() == 0 if error.exit_code == 130 else processes.claims_first_error():
            print(f"error: {where()}{one_line(error)}", file=sys.stderr)
        leave(error.exit_code)
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        leave(130)
    except Exception as error:
        if os.environ.get("NEUTRENO_DEBUG"):
            raise
        if not processes.claims_first_error():
            leave(1)
        print(
            f"error: {where()}unexpected {type(error).__name__}: {one_line(error)[:500]} This is a bug of "
            "timm-neutreno: run again with NEUTRENO_DEBUG=1 and report the traceback.",
            file=sys.stderr,
        )
        leave(1)


def where() -> str:
    """Which process speaks, if it is not the first: its error may be its machine's."""
    return f"[process {processes.rank()}] " if processes.rank() else ""


def leave(code: int) -> NoReturn:
    """Exit; in a run of several processes at once, since a clean end would wait for the others."""
    said, other = DEAD_WORKER, sys.unraisablehook
    # torch raises it by a signal for every dead worker, also while the loaders are taken down: one line has said it
    sys.unraisablehook = lambda caught: None if str(caught.exc_value).startswith(said) else other(caught)
    if processes.in_worker():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main() -> None:
    """`neutreno`."""
    run(app)


def adapt_main() -> None:
    """`neutreno-adapt`: the same as `neutreno adapt`."""
    run(adapt_app)


if __name__ == "__main__":  # a worker, with the whole command line of its launcher
    sys.argv = sys.argv[1:]
    (adapt_main if "adapt" in os.path.basename(sys.argv[0]) else main)()
