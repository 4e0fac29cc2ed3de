"""Telling a person how a run goes, on stderr: a live bar on a terminal, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich import console as rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


class Console:
    """Says lines and shows bars.

    Args:
        quiet: Say nothing.
    """

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.console = rich.Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        if not self.quiet:
            self.console.print(line, markup=False)

    def warn(self, line: str) -> None:
        """Also if quiet: what must not be missed."""
        self.console.print(f"warning: {line}", markup=False)

    def track(self, items: Iterable[T], title: str, total: int) -> Iterator[T]:
        """Yield the items under a progress bar that disappears when they are through."""
        if self.quiet or not self.console.is_terminal:
            yield from items
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield from progress.track(items, total=total, description=title)
