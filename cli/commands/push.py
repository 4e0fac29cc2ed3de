"""`neutreno push`: a run directory to the Hugging Face Hub; `neutreno adapt --push-to-hub` ends with the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .completion import runs


def push(
    run: Annotated[str, typer.Argument(help="Folder of a finished run, or of a saved model.", autocompletion=runs)],
    repo: Annotated[
        str,
        typer.Argument(
            help="Repository on the Hub: OWNER/NAME, or NAME for one of your own. It is made if it is missing."
        ),
    ],
    private: Annotated[
        bool, typer.Option("--private", help="If the repository has to be made, make it private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to push to, which is made if it is missing. (default: main)")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of pushing to the branch.")
    ] = False,
) -> None:
    """Push a run's model, with a model card, to the Hugging Face Hub.

    # A run's model, into a repository of your own that others cannot see
      neutreno push runs/mine my-neutreno --private
    """
    from ..engine import hub

    print(hub.push(Path(run), hub.Target(repo, private, revision, create_pr)))
