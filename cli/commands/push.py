"""`neutreno push`: a run directory to the Hugging Face Hub; `neutreno adapt --push-to-hub` ends with the same."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..config import place


def push(
    run: Annotated[str, typer.Argument(help="Run directory of neutreno-adapt, or a saved model's folder.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub, or NAME of your own; made if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is made.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if missing. (default: main)")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card and what would go; ask nobody.")] = False,
) -> None:
    """Push a run's model, with a model card, to the Hugging Face Hub."""
    from ..engine import hub

    target = hub.Target(repo, private, revision, create_pr)
    if not dry_run:
        print(hub.push(place(run), target))
        return
    card, files = hub.preview(place(run), target)
    print(card)
    for path in files:
        print(f"would go too: {path.name}, {path.stat().st_size / 2**20:.1f} MiB", file=sys.stderr)
