"""A progress bar in a notebook, by IPython's own display: there are no widgets to install."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any, TypeVar

T = TypeVar("T")
EVERY = 0.2  # seconds between two updates


def is_running() -> bool:
    """Whether this process is a notebook's kernel, which shows HTML; a terminal's IPython is not."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


class Bar:
    """One place in the cell's output, where one progress after another is shown; empty between them."""

    def __init__(self) -> None:
        self.place: Any = None

    def track(self, items: Iterable[T], title: str, total: int) -> Iterator[T]:
        """Yield the items under a bar."""
        start = shown = time.monotonic()
        self._show(_html(title, 0, total, 0.0))
        try:
            for done, item in enumerate(items, 1):
                yield item
                now = time.monotonic()
                if now - shown > EVERY:
                    shown = now
                    self._show(_html(title, done, total, (now - start) / done * (total - done)))
        finally:
            self._show("")

    def _show(self, html: str) -> None:
        from IPython.display import HTML, display

        if self.place is None:
            self.place = display(HTML(html), display_id=True)
        else:
            self.place.update(HTML(html))


def _html(title: str, done: int, total: int, left: float) -> str:
    return (
        f'<label>{escape(title)} <progress value="{done}" max="{total}"></progress> '
        f"{done}/{total}{f', {left:.0f} s left' if done else ''}</label>"
    )
