"""Telling a person how a run goes, on stderr: a live bar on a terminal, plain lines elsewhere, nothing if quiet.

In a notebook a bar is HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich import console as rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import notebook

T = TypeVar("T")


class Console:
    """Says lines and shows bars.

    Args:
        quiet: Say nothing.
        bars: Whether bars are shown in a notebook; None: unless quiet.
    """

    def __init__(self, quiet: bool = False, bars: bool | None = None):
        self.quiet = quiet
        in_notebook = notebook.is_running() and (bars if bars is not None else not quiet)
        self.bar = notebook.Bar() if in_notebook else None
        self.console = rich.Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        if not self.quiet:
            self.console.print(line, markup=False)

    def warn(self, line: str) -> None:
        """Also if quiet: what must not be missed."""
        self.console.print(f"warning: {line}", markup=False)

    def track(self, items: Iterable[T], title: str, total: int) -> Iterator[T]:
        """Yield the items under a progress bar that disappears when they are through."""
        if self.bar:
            yield from self.bar.track(items, title, total)
            return
        if self.quiet or not self.console.is_terminal:
            yield from items
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield from progress.track(items, total=total, description=title)
