"""`neutreno push`: a run directory to the Hugging Face Hub; `neutreno adapt --push-to-hub` ends with the same."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..config import place
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
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the card and the names of the files that would be pushed. The Hub is not asked."
        ),
    ] = False,
) -> None:
    """Push a run's model, with a model card, to the Hugging Face Hub.

    # A run's model, into a repository of your own that others cannot see
      neutreno push runs/mine my-neutreno --private
    # What would be pushed? Prints the card and asks the Hub for nothing
      neutreno push runs/mine me/my-neutreno --dry-run
    """
    from ..engine import hub

    target = hub.Target(repo, private, revision, create_pr)
    if not dry_run:
        print(hub.push(place(run), target))
        return
    card, files = hub.preview(place(run), target)
    print(card)
    for path in files:
        size = path.stat().st_size
        shown = f"{size / 2**20:.1f} MiB" if size > 2**19 else f"{size / 2**10:.1f} KiB"
        print(f"would be pushed with this card: {path.name}, {shown}", file=sys.stderr)
