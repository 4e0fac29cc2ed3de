"""Telling a person how a run goes, on stderr: a live panel on a terminal, plain lines elsewhere, nothing if quiet.

In a notebook a bar is HTML.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TextIO, TypeVar

from rich import console as rich

from . import notebook

T = TypeVar("T")

EVERY = 300.0  # seconds between two plain lines where no panel can be drawn


class Console:
    """Says lines and shows bars.

    Args:
        quiet: Say nothing.
        bars: Whether bars are shown in a notebook; None: unless quiet.

    Attributes:
        figures: What the panel shows beside its bar, as live.FIGURES has them.
    """

    def __init__(self, quiet: bool = False, bars: bool | None = None):
        self.quiet = quiet
        in_notebook = notebook.is_running() and (bars if bars is not None else not quiet)
        self.bar = notebook.Bar() if in_notebook else None
        self.console = rich.Console(stderr=True, highlight=False, soft_wrap=True)
        self.figures: dict[str, Any] = {}

    @property
    def live(self) -> bool:
        """Whether a panel can be drawn."""
        return not self.quiet and self.console.is_terminal and not self.console.is_dumb_terminal

    def say(self, line: str, indent: int = 2) -> None:
        """Print a line; what does not fit a terminal goes on below, indented."""
        if not self.quiet:
            self._print(line, None, indent)

    def caution(self, line: str) -> None:
        """What a person should know before believing the figures. Nothing if quiet: the documents say it too."""
        if not self.quiet:
            self._print(f"warning: {line}", "yellow")

    def warn(self, line: str) -> None:
        """Also if quiet: what must not be missed."""
        self._print(f"warning: {line}", "yellow")

    def _print(self, line: str, style: str | None = None, indent: int = 2) -> None:
        if self.console.is_terminal:
            line = fold(line, self.console.width, " " * indent)
        self.console.print(line, markup=False, style=style)

    def waiting(self, title: str) -> AbstractContextManager:
        """A sign of life while something of unknown length goes on."""
        return self.console.status(title) if self.live else nullcontext()

    def show(self, **figures: Any) -> None:
        """Put figures into the panel, or take them out if they are None."""
        self.figures.update(figures)

    def track(self, items: Iterable[T], title: str, total: int, start: int = 0) -> Generator[T, None, None]:
        """Yield the items under a panel that disappears when they are through; plain lines, now and then, without one.

        Close it (contextlib.closing) where the loop may end early, so that what is said next is not said into a panel.

        Args:
            items: What is left to do.
            title: What is under way.
            total: How many items there are in all.
            start: How many of them are done before the first.
        """
        if self.bar:
            yield from self.bar.track(items, title, total)
            return
        if self.quiet:
            yield from items
            return
        from . import live

        if self.live:
            yield from live.track(items, title, total, self.figures, self.console, start)
            return
        said = time.perf_counter()
        for done, item in enumerate(items, start + 1):
            yield item
            if time.perf_counter() - said > EVERY:
                said = time.perf_counter()
                self.say(", ".join([f"{title}: {done} of {total}", *live.words(self.figures)]))


def width(stream: TextIO | None = None) -> int | None:
    """Columns of the terminal that a stream, or standard output, goes to; None if it goes elsewhere."""
    there = (stream or sys.stdout).isatty() and os.environ.get("TERM") != "dumb"
    return shutil.get_terminal_size().columns if there else None


def fold(text: str, columns: int | None, indent: str = "") -> str:
    """The text with its long lines broken between words, continued under an indent; as it is without a width."""
    if columns is None:
        return text
    wrapper = textwrap.TextWrapper(
        columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True,
        replace_whitespace=False,
    )  # fmt: skip
    return "\n".join(wrapper.fill(line) if len(line) > columns else line for line in text.splitlines())
