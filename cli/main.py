"""The commands, and the one place where errors become a sentence and an exit code."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, NoReturn

import typer

from .commands.adapt import adapt, show_version
from .commands.analyze import analyze
from .commands.command import Command, Group
from .commands.compare import compare
from .commands.env import env
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.models import models
from .commands.predict import predict
from .commands.probe import probe
from .commands.push import push
from .commands.runs import runs
from .errors import DEAD_WORKER, CliError, one_line
from .runtime import processes
from .runtime.console import fold, width
from .runtime.signals import Interruption

Version = Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")]


def options(version: Version = False) -> None:
    """NeuTRENO attention for any pretrained timm Vision Transformer.

    # Try it with what is embedded: a small ViT, and handwritten digits
      neutreno adapt
    # Adapt a pretrained model to your own images, and compare it with a control
      neutreno adapt --checkpoint deit_tiny --data photos/
    # See how alike the tokens of two models become, layer by layer
      neutreno analyze deit_tiny neutreno_deit_tiny --data photos/ --output smoothing
    # What are frozen features worth, with and without NeuTRENO? Nothing is trained
      neutreno probe deit_tiny --data photos/ --fidelity 0.02,0.05,0.1
    # Which models of timm can have it?
      neutreno models dinov2
    """


SETTINGS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(cls=Group, no_args_is_help=True, pretty_exceptions_enable=False, context_settings=SETTINGS)
app.callback()(options)
app.command(cls=Command)(adapt)
app.command(cls=Command)(evaluate)
app.command(cls=Command)(compare)
app.command(cls=Command)(export)
app.command(cls=Command)(analyze)
app.command(cls=Command)(models)
app.command(cls=Command)(predict)
app.command(cls=Command)(probe)
app.command(cls=Command)(push)
app.command(cls=Command)(runs)
app.command(cls=Command)(env)

adapt_app = typer.Typer(pretty_exceptions_enable=False, context_settings=SETTINGS)
adapt_app.command(cls=Command)(adapt)


def run(commands: typer.Typer) -> None:
    """Run a command line. NEUTRENO_DEBUG=1 shows the traceback behind an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an ASCII terminal, an umlaut to print
    interruption = Interruption()
    processes.end_with_parent()
    try:
        commands()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if interruption.came:  # Typer ends without a word, and torch's import says that something is missing
            print("error: interrupted.", file=sys.stderr)
            leave(130)
        if isinstance(error, SystemExit) or os.environ.get("NEUTRENO_DEBUG"):
            raise
        report(error)


def report(error: BaseException) -> NoReturn:
    """Say what went wrong in one line, in one process, and leave with its code."""
    code = error.exit_code if isinstance(error, CliError) else 1
    # an interruption comes to all, and rank 0 saves; one that another process's error brought is not another error
    speaks = (code != 130 or processes.rank() == 0) and processes.claims_first_error()
    words = one_line(error)
    if not isinstance(error, CliError):
        words = (
            f"unexpected {type(error).__name__}: {words[:500]} This is a bug of timm-neutreno: run again with "
            "NEUTRENO_DEBUG=1 and report the traceback."
        )
    if speaks:
        say(f"error: {where()}{words}")
    leave(code)


def say(line: str) -> None:
    """One line on stderr; on a terminal its words stay whole."""
    print(fold(line, width(sys.stderr)), file=sys.stderr)


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
